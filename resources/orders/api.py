"""Looking at orders."""

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


class Order(msgspec.Struct, frozen=True):
    """An order: pending, confirmed or cancelled. `total` is in minor units."""

    id: UUID
    number: str
    state: str
    customer: str
    currency: str
    total: int
    lines: Any
    created_at: datetime
    updated_at: datetime


_encode = msgspec.json.Encoder().encode
_GET = text(f"SELECT {', '.join(Order.__struct_fields__)} FROM orders WHERE tenant_id = :tenant_id AND id = :id")


def handlers(service: Service) -> list[Any]:
    """Litestar handlers for orders."""

    @get(
        "/v1/orders/{order_id:str}",
        summary="Show an order",
        operation_class=operation(replies={200: ("The order.", Order)}),
        tags=["orders"],
    )
    async def show(request: Request[Any, Any, Any], order_id: FromPath[str]) -> Response[bytes]:
        parameters = {"tenant_id": context_of(request).tenant_id, "id": parse_id(order_id)}
        rows = await service.stores.of("orders").database.read(_GET, parameters)
        if not rows:
            raise Rejected("not_found", "There is no order under this id.")
        return respond(Reply(200, _encode(Order(**rows[0]._asdict()))))

    return [show]
