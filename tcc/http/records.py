"""A resource's own record of a reservation, such as an order, shown under the reservation's id."""

from __future__ import annotations

from typing import Any

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

_encode = msgspec.json.Encoder().encode


def record_handler(service: Service, resource: str, record: type[msgspec.Struct]) -> Any:
    """`GET /v1/{resource}/{id}`, from the table of the resource's name, whose columns are the fields of `record`."""
    columns = ", ".join(record.__struct_fields__)
    query = text(f"SELECT {columns} FROM {resource} WHERE tenant_id = :tenant_id AND id = :id")
    noun = record.__name__.lower()

    @get(
        f"/v1/{resource}/{{id:str}}",
        name=f"show_{noun}",
        summary=f"Show one of the {resource}",
        operation_class=operation(replies={200: (f"The {noun}.", record)}),
        tags=[resource],
    )
    async def show(request: Request[Any, Any, Any], id: FromPath[str]) -> Response[bytes]:
        parameters = {"tenant_id": context_of(request).tenant_id, "id": parse_id(id)}
        rows = await service.stores.of(resource).database.read(query, parameters)
        if not rows:
            raise Rejected("not_found", f"There is no {noun} under this id.")
        return respond(Reply(200, _encode(record(**dict(rows[0])))))

    return show
