"""The invariants of DESIGN.md while everything is being broken, as an outsider sees them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tests.faults.books import AWAY, Books
from tests.faults.diary import Diary

IDLE_SECONDS: Final = 12.0
"""PostgreSQL ends a transaction that rests for ten; a process that was stopped can't do so itself."""
OVERDUE_SECONDS: Final = 45.0
"""Longer than any fault and the recovery from it."""
SAMPLE: Final = 100

STOCK: Final = """
WITH live AS (
  SELECT x.sku, sum(x.quantity) AS held
  FROM reservations r CROSS JOIN LATERAL jsonb_to_recordset(r.claim -> 'lines') AS x(sku text, quantity bigint)
  WHERE r.resource = 'inventory' AND r.state IN ('trying', 'tried', 'confirming', 'cancelling') GROUP BY 1)
SELECT i.sku, i.on_hand, i.available, i.held, COALESCE(l.held, 0) AS live
FROM inventory_items i LEFT JOIN live l USING (sku)
WHERE i.available + i.held <> i.on_hand OR i.available < 0 OR i.held <> COALESCE(l.held, 0)"""

IDLE: Final = """
SELECT pid, application_name, state_change FROM pg_stat_activity
WHERE application_name LIKE 'tcc%' AND state LIKE 'idle in transaction%'
  AND state_change < clock_timestamp() - make_interval(secs => $1)"""

OVERDUE: Final = """
SELECT 'transaction' AS what, id, state, expires_at FROM transactions
WHERE state IN ('trying', 'tried') AND expires_at < clock_timestamp() - make_interval(secs => $1)
UNION ALL SELECT resource, id, state, expires_at FROM reservations
WHERE transaction_id IS NULL AND state IN ('trying', 'tried')
  AND expires_at < clock_timestamp() - make_interval(secs => $1)"""

ENDED: Final = """
SELECT id, state, branches, updated_at FROM transactions
WHERE state IN ('confirmed', 'cancelled') AND updated_at > $1::timestamptz - interval '2 s'
ORDER BY updated_at LIMIT 2000"""

BRANCHES: Final = """
SELECT id, state FROM reservations
WHERE tenant_id = 'default' AND resource = ANY ($1::text[]) AND id = ANY ($2::uuid[])"""

ENDS_ALIKE: Final[dict[str, set[str | None]]] = {
    "confirmed": {"confirmed"},
    "cancelled": {"cancelled", "refused", None},
}


class Watch:
    """Looks twice a second; whatever can't be read now is looked at the next time."""

    def __init__(self, books: Books, diary: Diary) -> None:
        self._books = books
        self._diary = diary
        self._ends: dict[UUID, str] = {}
        self._since: Any = None
        self._seq = 0
        self._keys: dict[tuple[str, str], str] = {}
        self._effects: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.blind = {"stock", "idle", "overdue", "ends", "gateway", "promises"}
        """Checks that have seen nothing yet."""
        self._captured: set[UUID] = set()
        """Of which it isn't known yet whether it was decided so."""

    async def run(self) -> None:
        """Until cancelled."""
        checks = (self.stock, self.idle, self.overdue, self.ends, self.gateway, self.promises)
        while True:
            for check in checks:
                try:
                    await check()
                    self.blind.discard(check.__name__)
                except AWAY as error:
                    if isinstance(error, asyncpg.SyntaxOrAccessError):  # a mistake of ours, not of what is broken
                        self._diary.violate("harness", f"{check.__name__} can't look: {error}")
            await asyncio.sleep(0.5)

    async def stock(self) -> None:
        """I1, in one snapshot."""
        for row in await self._books.home(STOCK):
            self._diary.violate("I1", f"{dict(row)}")

    async def idle(self) -> None:
        """I7."""
        for read in (self._books.home, self._books.payments):
            for row in await read(IDLE, IDLE_SECONDS):
                self._diary.violate("I7", f"{row['application_name']} {row['pid']} idle since {row['state_change']}")

    async def overdue(self) -> None:
        """I4, with all the time that a fault may take."""
        for read in (self._books.home, self._books.payments):
            for row in await read(OVERDUE, OVERDUE_SECONDS):
                self._diary.violate(
                    "I4", f"{row['what']} {row['id']} is {row['state']}, and expired {row['expires_at']}"
                )

    async def ends(self) -> None:
        """I3: who has ended stays so, and so have all branches."""
        if self._since is None:
            self._since = (await self._books.home("SELECT clock_timestamp() AS now"))[0]["now"]
        rows = await self._books.home(ENDED, self._since)
        branches: dict[UUID, list[tuple[str, UUID]]] = {}
        for row in rows:
            self._since = max(self._since, row["updated_at"])
            if row["id"] not in self._ends:
                self._ends[row["id"]] = row["state"]
                branches[row["id"]] = [
                    (b["resource"], UUID(b["id"])) for b in msgspec.json.decode(row["branches"].encode())
                ]
        await self._alike(branches)
        known = random.sample(list(self._ends), min(SAMPLE, len(self._ends)))
        found = await self._books.home("SELECT id, state FROM transactions WHERE id = ANY ($1::uuid[])", known)
        now = {row["id"]: row["state"] for row in found}
        for id in known:
            if now.get(id) != self._ends[id]:
                self._diary.violate("I3", f"transaction {id} was {self._ends[id]}, and is {now.get(id)}")

    async def _alike(self, branches: dict[UUID, list[tuple[str, UUID]]]) -> None:
        every = [branch for of in branches.values() for branch in of]
        states: dict[UUID, str] = {}
        for read, resources in ((self._books.home, ["inventory", "orders"]), (self._books.payments, ["payments"])):
            ids = [id for resource, id in every if resource in resources]
            states |= {row["id"]: row["state"] for row in await read(BRANCHES, resources, ids)}
        for transaction, of in branches.items():
            allowed = ENDS_ALIKE[self._ends[transaction]]
            if unlike := [f"{resource} {states.get(id)}" for resource, id in of if states.get(id) not in allowed]:
                self._diary.violate("I3", f"transaction {transaction} is {self._ends[transaction]}, but {unlike}")

    async def gateway(self) -> None:
        """I2, I6: no effect twice, one key for each operation, and no capture before its decision."""
        lines, _, seq = await self._books.ledger(self._seq)
        for line in lines:
            what = (line["reference"] or line["authorisation_id"], line["operation"])
            if self._keys.setdefault(what, line["key"]) != line["key"]:
                self._diary.violate("I6", f"{what[1]} of {what[0]} was asked under two keys")
            self._effects[what] += line["had_effect"]
            if self._effects[what] > 1:
                self._diary.violate("I2", f"{what[1]} of {what[0]} had its effect {self._effects[what]} times")
        self._seq = seq
        self._captured |= {
            UUID(one["reference"]) for one in lines if one["operation"] == "capture" and one["had_effect"]
        }
        await self._decided(list(self._captured))
        self._captured.clear()

    async def _decided(self, captures: list[UUID]) -> None:
        rows = await self._books.payments(
            "SELECT id, state, transaction_id FROM reservations WHERE resource = 'payments' AND id = ANY ($1::uuid[])",
            captures,
        )
        of = {row["id"]: row for row in rows}
        decided = await self._books.home(
            "SELECT id FROM transactions WHERE id = ANY ($1::uuid[]) AND state IN ('confirming', 'confirmed')",
            [row["transaction_id"] for row in rows if row["transaction_id"]],
        )
        known = {row["id"] for row in decided}
        for id in captures:
            row = of.get(id)
            if row is None or row["state"] not in ("confirming", "confirmed"):
                self._diary.violate("I2", f"payment {id} is captured, though it is {row and row['state']}")
            elif row["transaction_id"] and row["transaction_id"] not in known:
                self._diary.violate("I2", f"payment {id} is captured, and nobody decided so")

    async def promises(self) -> None:
        """I5: what was acknowledged is there."""
        promised = [i for i in self._diary.intents[-2000:] if i.promised and i.id and i.kind != "payments"]
        some = random.sample(promised, min(SAMPLE, len(promised)))
        found = await self._books.home(
            "SELECT id FROM transactions WHERE id = ANY ($1::uuid[]) UNION ALL "
            "SELECT id FROM reservations WHERE resource = 'inventory' AND id = ANY ($1::uuid[])",
            [i.id for i in some],
        )
        known = {str(row["id"]) for row in found}
        for intent in some:
            if intent.id not in known:
                self._diary.violate("I5", f"{intent.kind} {intent.reference} was acknowledged, and isn't there")


@asynccontextmanager
async def watched(books: Books, diary: Diary) -> AsyncIterator[None]:
    """Watch while the block runs."""
    watch = Watch(books, diary)
    watching = asyncio.create_task(watch.run())
    try:
        yield
        if watch.blind:
            diary.violate("harness", f"nobody could look at {', '.join(sorted(watch.blind))}")
        if watching.done():  # by a mistake of its own: then nobody has watched
            watching.result()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
