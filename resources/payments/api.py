"""Looking at payments."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.params import FromPath
from sqlalchemy import text

from tcc.errors import Rejected
from tcc.http.openapi import operation
from tcc.http.requests import context_of, parse_id
from tcc.http.respond import respond
from tcc.idempotency import Reply
from tcc.service import Service


class Payment(msgspec.Struct, frozen=True):
    """A payment, under the id of its reservation. `amount` is in minor units."""

    id: UUID
    state: str
    amount: int
    currency: str
    payment_method: str
    authorisation_id: str | None
    capture_before: datetime | None
    decline_code: str | None
    created_at: datetime
    updated_at: datetime


_encode = msgspec.json.Encoder().encode
_GET = text(f"SELECT {', '.join(Payment.__struct_fields__)} FROM payments WHERE tenant_id = :tenant_id AND id = :id")


def handlers(service: Service) -> list[Any]:
    """Litestar handlers for payments."""

    @get(
        "/v1/payments/{payment_id:str}",
        summary="Show a payment",
        operation_class=operation(replies={200: ("The payment.", Payment)}),
        tags=["payments"],
    )
    async def show(request: Request[Any, Any, Any], payment_id: FromPath[str]) -> Response[bytes]:
        parameters = {"tenant_id": context_of(request).tenant_id, "id": parse_id(payment_id)}
        rows = await service.stores.of("payments").database.read(_GET, parameters)
        if not rows:
            raise Rejected("not_found", "There is no payment under this id.")
        return respond(Reply(200, _encode(Payment(**rows[0]._asdict()))))

    return [show]
