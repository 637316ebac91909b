"""One table: what a test needs to know of a resource in order to hold something of it.

The batteries run over every resource of the registry; a new one needs a line here, and nothing else.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

import msgspec
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc.ids import new_id
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import Answer, Api

NAMES: Final = [resource.name for resource in RESOURCES]
SKU: Final = "MUG"
PLENTY: Final = 1_000_000


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Claims of one resource. `refused` is None where it never refuses, `slow` where nobody outside is asked."""

    claim: dict[str, Any]
    other: dict[str, Any]
    """Another claim, for an id or a key that was used before."""
    refused: dict[str, Any] | None = None
    refusal: tuple[int, str] | None = None
    slow: dict[str, Any] | None = None
    """A claim that rests in `trying` for a while."""


def _lines(quantity: int) -> dict[str, Any]:
    return {"lines": [{"sku": SKU, "quantity": quantity}]}


def _payment(amount: int, method: str = "tok_ok") -> dict[str, Any]:
    return {"amount": amount, "currency": "EUR", "payment_method": method}


def _order(customer: str) -> dict[str, Any]:
    line = {"sku": SKU, "quantity": 2, "unit_amount": 1250}
    return {"customer": customer, "currency": "EUR", "lines": [line]}


SAMPLES: Final[dict[str, Sample]] = {
    "inventory": Sample(claim=_lines(2), other=_lines(3), refused=_lines(PLENTY), refusal=(409, "insufficient_stock")),
    "payments": Sample(
        claim=_payment(2500),
        other=_payment(2600),
        refused=_payment(2500, "tok_declined"),
        refusal=(402, "card_declined"),
        slow=_payment(2500, "tok_slow"),
    ),
    "orders": Sample(claim=_order("ada"), other=_order("grace")),
}


class Holder:
    """Somebody who holds one resource over HTTP, and can bring a reservation into any state."""

    def __init__(self, api: Api, service: Service, resource: str) -> None:
        self.api = api
        self.service = service
        self.resource = resource
        self.sample = SAMPLES[resource]
        self.base = f"/v1/{resource}/reservations"

    async def try_(self, id: str, claim: dict[str, Any] | None = None, **more: Any) -> Answer:
        """A Try of an id of the client's own."""
        return await self.api.post(self.base, {**(claim or self.sample.claim), "id": id, **more})

    async def ask(self, event: str, id: str) -> Answer:
        """An event, in the words of the tables."""
        match event:
            case "try":
                return await self.try_(id)
            case "try another claim":
                return await self.try_(id, self.sample.other)
            case "extend":
                return await self.api.post(f"{self.base}/{id}/extend", {"ttl_seconds": 3600})
            case "put":
                return await self.api.put(f"{self.base}/{id}")
            case "delete":
                return await self.api.delete(f"{self.base}/{id}")
            case _:
                return await self.api.post(f"{self.base}/{id}/{event}")

    async def reach(self, state: str) -> str:
        """The id of a new reservation in a state: a protocol's, or one of those that the tables name."""
        id = str(new_id())
        match state:
            case "unknown":
                return id
            case "buried":
                await self.ask("cancel", id)
            case "refused":
                await self.try_(id, self.sample.refused)
            case "trying":
                await self.try_(id, self.sample.slow)
            case _:
                await self.try_(id)
        if state in ("confirmed", "cancelled"):
            await self.ask({"confirmed": "confirm", "cancelled": "cancel"}[state], id)
        if state in ("overdue", "expired"):
            await let_time_pass(self.service, "reservations", id)
        if state == "expired":
            await Sweeper(self.service, "test").reservations(100)
        return id

    async def shown(self, id: str) -> dict[str, Any]:
        """The reservation as GET shows it."""
        answer = await self.api.get(f"{self.base}/{id}")
        assert answer.status == 200
        body: dict[str, Any] = answer.json
        return body


async def let_time_pass(service: Service, table: str, id: str) -> None:
    """Make a hold's end a moment ago, in every database that has it."""
    past = text(
        f"UPDATE {table} SET expires_at = clock_timestamp() - interval '1 second', due_at = clock_timestamp()"
        " WHERE id = CAST(:id AS uuid)"
    )
    for batcher, _ in service.stores.distinct():
        async with batcher.database.reads.begin() as connection:
            await connection.execute(past, {"id": id})


def some_id() -> str:
    """The id of nothing."""
    return str(uuid4())
