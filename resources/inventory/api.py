"""Managing stock: what is on the shelf."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, put
from litestar.params import FromPath
from msgspec import Meta
from sqlalchemy import text

from resources.inventory.claims import DEFAULT_LOCATION, Location, Sku
from tcc.errors import FieldError, Rejected
from tcc.http.openapi import operation
from tcc.http.requests import context_of, invalid, read_body
from tcc.http.respond import respond
from tcc.idempotency import Reply
from tcc.service import Service

MAX_ON_HAND: Final = 1_000_000_000_000


class SetStock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many units are on the shelf, held ones included."""

    on_hand: Annotated[int, Meta(ge=0, le=MAX_ON_HAND)]
    location: Location = DEFAULT_LOCATION


class Shelf(msgspec.Struct, frozen=True):
    """Units of a SKU at one location: available + held = on_hand."""

    location: str
    on_hand: int
    available: int
    held: int
    sold: int


class Item(msgspec.Struct, frozen=True):
    """Units of a SKU, in all and at each location."""

    sku: str
    on_hand: int
    available: int
    held: int
    sold: int
    locations: list[Shelf]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SetStock)

_SET = text(
    """
INSERT INTO inventory_items AS i (tenant_id, sku, location, on_hand, available)
VALUES (:tenant_id, :sku, :location, :on_hand, :on_hand)
ON CONFLICT (tenant_id, sku, location) DO UPDATE
  SET on_hand = EXCLUDED.on_hand, available = EXCLUDED.on_hand - i.held WHERE EXCLUDED.on_hand >= i.held
RETURNING i.sku"""
)
_GET = text(
    """
SELECT location, on_hand, available, held, sold FROM inventory_items
WHERE tenant_id = :tenant_id AND sku = :sku ORDER BY location"""
)


def _sku(given: str) -> str:
    try:
        return msgspec.convert(given, Sku)
    except msgspec.ValidationError as error:
        raise invalid(str(error), "sku") from error


def handlers(service: Service) -> list[Any]:
    """Litestar handlers for stock."""
    database = service.stores.of("inventory").database

    async def item(tenant_id: str, sku: str) -> Item:
        rows = await database.read(_GET, {"tenant_id": tenant_id, "sku": sku})
        if not rows:
            raise Rejected("not_found", "There is no such SKU.", (FieldError("sku", "unknown_sku", "Put it first."),))
        shelves = [Shelf(row.location, row.on_hand, row.available, row.held, row.sold) for row in rows]
        totals = {name: sum(getattr(s, name) for s in shelves) for name in ("on_hand", "available", "held", "sold")}
        return Item(sku=sku, **totals, locations=shelves)

    @put(
        "/v1/inventory/items/{sku:str}",
        status_code=200,
        summary="Set how many units are on the shelf",
        operation_class=operation(
            body=SetStock, replies={200: ("The item.", Item)}, problems={409: "More than that is held."}
        ),
        tags=["inventory"],
    )
    async def set_stock(request: Request[Any, Any, Any], sku: FromPath[str]) -> Response[bytes]:
        body = await read_body(request, _decode)
        tenant_id = context_of(request).tenant_id
        parameters = {
            "tenant_id": tenant_id,
            "sku": _sku(sku),
            "location": body.location,
            "on_hand": body.on_hand,
        }
        async with database.transaction() as connection:
            stored = (await connection.execute(_SET, parameters)).fetchall()
        if not stored:
            field = FieldError(
                "on_hand", "less_than_held", "More units than that are held; wait, or cancel them first."
            )
            raise Rejected("less_than_held", field.detail, (field,))
        return respond(Reply(200, _encode(await item(tenant_id, sku))))

    @get(
        "/v1/inventory/items/{sku:str}",
        summary="Show stock",
        operation_class=operation(replies={200: ("The item.", Item)}),
        tags=["inventory"],
    )
    async def show(request: Request[Any, Any, Any], sku: FromPath[str]) -> Response[bytes]:
        return respond(Reply(200, _encode(await item(context_of(request).tenant_id, _sku(sku)))))

    return [set_stock, show]
