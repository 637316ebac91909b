"""Claims on the same shelves with their lines and branches in any order, from several processes: nobody deadlocks."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Final
from uuid import UUID

import aiohttp
import msgspec

from tests.client import Answer, Api, new_key
from tests.faults.expiry_races import Pool, connections, persistently, put_on_shelf, said

CUSTOMERS: Final = 24
"""How many have claims under way at once."""
PACK: Final = 4
"""Claims that one customer tries together, and then ends in another order."""
MOST_LINES: Final = 6
LOCATIONS: Final = ("default", "annex")
"""The API refuses two lines for the same SKU at one location; at two they are two rows to lock."""
SETTLE_SECONDS: Final = 20.0
FLUSH_SECONDS: Final = 1.5
"""A backend that works reports what it counted at most once a second, when it has come to the end of something."""

_RESTING: Final = ("trying", "confirming", "cancelling")

Shelf = tuple[str, str]
Line = dict[str, Any]

_CONFLICTS: Final = re.compile(r'^tcc_batch_failures_total\{failure="conflict"\} (\S+)$', re.MULTILINE)


class Deadlocks(msgspec.Struct, frozen=True):
    """How the claims came out. `done`: held, then confirmed or cancelled. `refused`: there wasn't enough stock.

    `deadlocks`: those that PostgreSQL counted in this database, or those that the APIs say they have met, whichever
    is more.
    """

    claims: int
    done: int
    refused: int
    deadlocks: int
    violations: list[str]


class _Claim(msgspec.Struct):
    """What is asked for, and what shall become of it. `path`: of what it is, once it is held."""

    path: str
    body: dict[str, Any]
    tried_by: Api
    ended_by: Api
    confirms: bool
    lines: list[Line]
    held: bool = False

    @property
    def auto(self) -> bool:
        return bool(self.body.get("confirm") == "auto")


async def claim_in_random_order(
    apis: Sequence[Api], database_url: str, *, claims: int, skus: int, seed: int
) -> Deadlocks:
    """Try claims on a few shelves, then confirm or cancel them, all in random order and from all `apis` at once.

    Two in three are single reservations of two to six lines, the others whole orders. `database_url`: where the
    inventory is.
    """
    run = new_key()[:8]
    rng = random.Random(seed)
    names = [f"LOCK-{run}-{n}" for n in range(skus)]
    # One in five is scarce, so that claims which come out badly lock rows as well.
    on_hand = {
        (sku, location): max(2, claims // 10) if n % 5 == 4 else 100 * claims
        for n, sku in enumerate(names)
        for location in LOCATIONS
    }
    async with connections(database_url, most=2) as pool:
        for (sku, location), units in on_hand.items():
            await put_on_shelf(apis[0], sku, units, location)
        before = await _counted(pool), await _conflicts(apis)
        waiting = [_drawn(apis, list(on_hand), rng) for _ in range(claims)]
        crowd = _Crowd(waiting, rng)
        async with asyncio.TaskGroup() as running:
            for _ in range(CUSTOMERS):
                running.create_task(crowd.customer())
        counted = await _settled(pool, apis, names[0]) - before[0]
        violations = crowd.violations + await _wrong_stock(pool, on_hand, crowd.sold)
        return Deadlocks(
            claims, crowd.done, crowd.refused, max(counted, await _conflicts(apis) - before[1]), violations
        )


def _drawn(apis: Sequence[Api], shelves: Sequence[Shelf], rng: random.Random) -> _Claim:
    lines = _lines(shelves, rng)
    confirms = rng.random() < 0.5
    path, body = "/v1/inventory/reservations", dict[str, Any](lines=lines)
    if rng.random() < 1 / 3:
        path, body = "/v1/transactions", _order(lines, rng)
        confirms = confirms or body["confirm"] == "auto"
    return _Claim(path, {**body, "ttl_seconds": 300}, rng.choice(apis), rng.choice(apis), confirms, lines)


def _lines(shelves: Sequence[Shelf], rng: random.Random) -> list[Line]:
    chosen = rng.sample(shelves, min(rng.randint(2, MOST_LINES), len(shelves)))
    return [{"sku": sku, "location": location, "quantity": rng.randint(1, 3)} for sku, location in chosen]


def _order(lines: Sequence[Line], rng: random.Random) -> dict[str, Any]:
    """A transaction whose branches, two of them of stock, come in any order."""
    middle = len(lines) // 2
    units = Counter[str]()
    for line in lines:
        units[line["sku"]] += line["quantity"]
    priced = [{"sku": sku, "quantity": quantity, "unit_amount": 100} for sku, quantity in units.items()]
    card = {"amount": 100 * units.total(), "currency": "EUR", "payment_method": "tok_ok"}
    branches = [
        {"resource": "inventory", "claim": {"lines": lines[:middle]}},
        {"resource": "inventory", "claim": {"lines": lines[middle:]}},
        {"resource": "payments", "claim": card},
        {"resource": "orders", "claim": {"customer": "ada", "currency": "EUR", "lines": priced}},
    ]
    rng.shuffle(branches)
    return {"branches": branches, "confirm": rng.choice(("auto", "manual"))}


class _Crowd:
    """Customers, each with a few claims at a time."""

    def __init__(self, waiting: list[_Claim], rng: random.Random) -> None:
        self.done = 0
        self.refused = 0
        self.sold: Counter[Shelf] = Counter()
        self.violations: list[str] = []
        self._waiting = waiting
        self._rng = rng

    async def customer(self) -> None:
        while self._waiting:
            pack, self._waiting = self._waiting[:PACK], self._waiting[PACK:]
            await self._all(self._try(claim) for claim in pack)
            held = [claim for claim in pack if claim.held and not claim.auto]
            self._rng.shuffle(held)
            await self._all(self._end(claim) for claim in held)

    async def _all(self, work: Iterator[Awaitable[None]]) -> None:
        await asyncio.gather(*work)

    async def _try(self, claim: _Claim) -> None:
        answer = await _followed(claim.tried_by, claim.path, claim.body)
        if answer is None or answer.status >= 500:
            self.violations.append(f"A Try was answered {said(answer)}.")
        elif answer.status == 409 and answer.code in ("insufficient_stock", "transaction_refused"):
            self.refused += 1
        elif answer.status < 300 and answer.json["state"] == ("confirmed" if claim.auto else "tried"):
            claim.held = True
            claim.path += f"/{UUID(answer.json['id'])}"
            if claim.auto:
                self._count(claim)
        elif answer.status < 300 and answer.json["state"] == "cancelled":  # refused after it was answered 202
            self.refused += 1
        else:
            self.violations.append(f"A Try was answered {said(answer)}.")

    async def _end(self, claim: _Claim) -> None:
        answer = await _followed(claim.ended_by, f"{claim.path}/{'confirm' if claim.confirms else 'cancel'}")
        wanted = "confirmed" if claim.confirms else "cancelled"
        if answer is None or answer.status != 200 or answer.json["state"] != wanted:
            self.violations.append(f"{claim.path} should be {wanted}, and was answered {said(answer)}.")
        else:
            self._count(claim)

    def _count(self, claim: _Claim) -> None:
        self.done += 1
        if claim.confirms:
            self.sold.update({(line["sku"], line["location"]): line["quantity"] for line in claim.lines})


async def _followed(api: Api, path: str, body: Any = None) -> Answer | None:
    """The answer; where it is 202, how it stands once it is at rest."""
    answer = await persistently(api, "POST", path, body, key=new_key())
    asked = 0
    while answer is not None and answer.status < 300 and answer.json["state"] in _RESTING and asked < 3:
        answer = await persistently(api, "GET", f"{answer.headers.get('location', path)}?wait=5")
        asked += 1
    return answer


async def _counted(pool: Pool) -> int:
    """The deadlocks that PostgreSQL has been told of so far."""
    number: int = await pool.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return number


async def _conflicts(apis: Sequence[Api]) -> int:
    """The batches that the APIs say they have lost against others."""
    total = 0
    for api in apis:
        try:
            scraped = await api.get("/metrics")
        except (aiohttp.ClientError, TimeoutError):
            continue
        total += sum(int(float(value)) for value in _CONFLICTS.findall(scraped.body.decode()))
    return total


async def _settled(pool: Pool, apis: Sequence[Api], sku: str) -> int:
    """The deadlocks counted when no backend can have more to tell.

    One that has nothing to do keeps what it counted for up to ten seconds: every API is given a little to do, until
    two counts agree that are further apart than a backend at work waits.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    counted, since = await _counted(pool), loop.time()
    while loop.time() - since < FLUSH_SECONDS and loop.time() < deadline:
        await asyncio.gather(*(_nudge(api, sku) for api in apis for _ in range(PACK)))
        if (now := await _counted(pool)) != counted:
            counted, since = now, loop.time()
        await asyncio.sleep(0.2)
    return counted


async def _nudge(api: Api, sku: str) -> None:
    """Something that begins and ends with nothing held."""
    body = {"lines": [{"sku": sku, "quantity": 1}]}
    tried = await persistently(api, "POST", "/v1/inventory/reservations", body, key=new_key())
    if tried is not None and tried.status == 201:
        await persistently(api, "POST", f"/v1/inventory/reservations/{tried.json['id']}/cancel", key=new_key())


async def _wrong_stock(pool: Pool, on_hand: dict[Shelf, int], sold: Counter[Shelf]) -> list[str]:
    """Nothing is held, what is confirmed is sold, and the rest is there."""
    rows = await pool.fetch(
        "SELECT sku, location, available, held, sold FROM inventory_items "
        "WHERE tenant_id = 'default' AND sku = ANY ($1)",
        list({sku for sku, _ in on_hand}),
    )
    found = {(row["sku"], row["location"]): (row["available"], row["held"], row["sold"]) for row in rows}
    wrong = []
    for shelf, units in on_hand.items():
        right = (units - sold[shelf], 0, sold[shelf])
        if found.get(shelf) != right:
            wrong.append(f"{shelf}: (available, held, sold) is {found.get(shelf)}, and should be {right}.")
    return wrong
