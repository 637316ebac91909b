"""Taking up what is due: expired tries, undecided and unfinished transactions, unanswered questions, old keys.

The rows hold the schedule (`due_at`). A sweep takes rows by pushing `due_at` one lease ahead, skipping those that
another sweep has locked, and then does what any request would do, through the same batchers. Whoever dies in between
loses nothing: the lease runs out, and the row is due again. Every `run_once` has a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import text

from tcc import idempotency
from tcc.batch import Batcher
from tcc.commands import Context, Outcome, ReservationView
from tcc.db import Database, Failure, failure_of
from tcc.errors import Unavailable
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tcc.machine import RESTING, TERMINAL, Event, Reason, State
from tcc.reservations import reservation_view
from tcc.resource import Finding
from tcc.service import Service
from tcc.sql import RESERVATION_VIEW, expire_sql

log = structlog.get_logger(__name__)

CONCURRENCY: Final = 32
"""How many transactions, or questions to the outside, one sweep has under way at once. A worker's sweeps take no more
than that, so that none waits for its turn while its lease runs out."""

PAGE: Final = 500
"""How many reservations are looked up at once, in comparing with the outside."""


class OutsideUnreachable(Exception):
    """The other side of a resource can't be asked what it holds. One line that says which, and why."""


_TAKE_RESERVATIONS = text(
    f"""
UPDATE reservations r SET due_at = clock_timestamp() + make_interval(secs => :lease_seconds)
WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM reservations
  WHERE due_at <= now() AND resource || '' = :resource
  ORDER BY due_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED))
RETURNING r.tenant_id, r.correlation_id, r.expires_at <= clock_timestamp() AS expired,
  EXTRACT(epoch FROM clock_timestamp() - r.expires_at)::float8 AS lag,
  {", ".join(f"r.{name.strip()}" for name in RESERVATION_VIEW.replace(chr(10), " ").split(","))}"""
)
"""By their place in the table, which no planner can turn into a scan of all that is done. A row that has just moved to
another place is left to the next sweep."""

_TAKE_TRANSACTIONS = text(
    """
UPDATE transactions t SET due_at = clock_timestamp() + make_interval(secs => :lease_seconds)
WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM transactions
  WHERE due_at <= now()
    AND (NOT :overdue OR (state IN ('trying', 'tried') AND expires_at <= clock_timestamp()))
  ORDER BY due_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED))
RETURNING t.tenant_id, t.id, t.correlation_id"""
)

_CLOCK = text("SELECT clock_timestamp() AS now")

_STANDING = text(
    """
SELECT id, state FROM reservations
WHERE tenant_id = :tenant_id AND resource = :resource AND id = ANY (CAST(:ids AS uuid[]))"""
)


class Sweeper:
    """The sweeps of one process."""

    def __init__(self, service: Service, actor: str) -> None:
        self._service = service
        self._actor = actor
        self._lease_seconds = service.settings.lease_seconds
        self._expiring = {
            name: text(expire_sql(name, resource.effects))
            for name, resource in service.stores.resources.items()
            if not resource.external
        }

    async def reservations(self, limit: int) -> int:
        """Give back single reservations that were abandoned, and ask again for those that rest. How many were due."""
        return await _total(self.reservations_of(name, limit) for name in self._service.stores.resources)

    async def reservations_of(self, resource: str, limit: int) -> int:
        """The same for one resource. Raises `Unavailable` when its database is away."""
        database = self._service.stores.of(resource).database
        if resource not in self._expiring:
            return await self._take_up(database, resource, limit)
        moved, unmoved = await self._expire_all(database, resource, limit)
        return moved + (await self._take_up(database, resource, limit) if unmoved else 0)

    async def _expire_all(self, database: Database, resource: str, limit: int) -> tuple[int, int]:
        """Expire what is due of a resource whose effects are local: all in one statement, as nobody outside must be
        asked. How many moved, and how many didn't, which are then to be looked at one by one."""
        entries = [new_id() for _ in range(limit)]
        parameters = {"actor": self._actor, "entries": entries, "lease_seconds": self._lease_seconds}
        try:
            rows = await database.commit(self._expiring[resource], parameters)
        except Exception as error:
            if failure_of(error) is Failure.LOST:
                raise Unavailable("database_unavailable") from error
            log.warning("expiring_one_by_one", resource=resource, error=str(error)[:300])
            return 0, limit
        late = [row.late for row in rows if row.moved]
        for seconds in late:
            self._service.metrics.expiry_lag.observe(max(0.0, seconds))
        self._service.metrics.swept.labels("reservations").inc(len(late))
        return len(late), len(rows) - len(late)

    async def _take_up(self, database: Database, resource: str, limit: int) -> int:
        """Take up what is due of a resource, one by one. How many were due."""
        rows = await _take(
            database, _TAKE_RESERVATIONS, resource=resource, limit=limit, lease_seconds=self._lease_seconds
        )
        self._service.metrics.swept.labels("reservations").inc(len(rows))
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(row: Any) -> None:
            view = reservation_view(row)
            context = Context(row.tenant_id, self._actor, row.correlation_id)
            if row.expired and view.state in (State.TRYING, State.TRIED):
                self._service.metrics.expiry_lag.observe(max(0.0, row.lag))
                view = await self._expire(context, view) or view
            if view.state in RESTING:
                async with gate:
                    await self._service.reserver.settle(context, view)

        await _all(one(row) for row in rows)
        return len(rows)

    async def _expire(self, context: Context, view: ReservationView) -> ReservationView | None:
        result = await self._service.reserver.move(
            context, resource=view.resource, id=view.id, event=Event.EXPIRE, reason=Reason.EXPIRED
        )
        outcome: Outcome[ReservationView] = result.outcomes[0]
        return outcome.view

    async def transactions(self, limit: int, *, overdue: bool = False) -> int:
        """Drive transactions on that nobody drives: past their deadline, or left in the middle. How many were due.

        `overdue`: only those past their deadline, whose stock must not wait for somebody else's gateway.
        """
        rows = await _take(
            self._service.stores.home.database,
            _TAKE_TRANSACTIONS,
            overdue=overdue,
            limit=limit,
            lease_seconds=self._lease_seconds,
        )
        self._service.metrics.swept.labels("transactions").inc(len(rows))
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(row: Any) -> None:
            async with gate:
                await self.drive(row.tenant_id, row.id, row.correlation_id)

        await _all(one(row) for row in rows)
        return len(rows)

    async def drive(self, tenant_id: str, id: UUID, correlation_id: str | None = None) -> Transaction:
        """Take one transaction as far as it goes now. Raises `Rejected` (`not_found`)."""
        context = Context(tenant_id, self._actor, correlation_id or new_id().hex)
        transaction = await self._service.coordinator.load(tenant_id, id)
        if transaction.view.state not in TERMINAL:
            transaction = await self._service.coordinator.drive(context, transaction)
        return transaction

    async def purge(self, limit: int) -> int:
        """Forget idempotency keys older than the retention. How many went."""

        async def purge_of(batcher: Batcher) -> int:
            async with batcher.database.transaction() as connection:
                return await idempotency.purge(
                    connection, retention_seconds=self._service.settings.key_retention_seconds, limit=limit
                )

        gone = await _total(purge_of(batcher) for batcher, _ in self._service.stores.distinct())
        self._service.metrics.swept.labels("keys").inc(gone)
        return gone

    async def reconcile(self, *, tenant_id: str, since: timedelta) -> list[Finding]:
        """Compare what the outside holds with what we hold, for what changed there lately.

        Raises `OutsideUnreachable`, and `Unavailable` when a database is away.
        """
        findings: list[Finding] = []
        # Whoever sweeps may have a clock that is hours off, and would look at nothing: the time is the database's. The
        # other side's may still differ from it: look back a little further.
        (clock,) = await self._service.stores.home.database.read(_CLOCK)
        moment = clock.now - since - timedelta(minutes=5)
        for resource in self._service.stores.resources.values():
            if resource.external:
                findings += await self._mismatches(resource.name, tenant_id, moment)
        for finding in findings:
            log.warning("reconciliation", **msgspec.structs.asdict(finding))
        return findings

    async def _mismatches(self, resource: str, tenant_id: str, since: datetime) -> list[Finding]:
        theirs = await self._theirs(resource, since)
        ours = await self._ours(resource, tenant_id, [id for id, _ in theirs])
        suspects = {id for id, held in theirs if _mismatch(resource, id, held, ours.get(id))}
        if not suspects:
            return []
        # What came to its end here since the first look had done so there before: a second look there tells.
        theirs = await self._theirs(resource, since)
        found = [_mismatch(resource, id, held, ours.get(id)) for id, held in theirs if id in suspects]
        return [finding for finding in found if finding]

    async def _theirs(self, resource: str, since: datetime) -> list[tuple[str, str]]:
        """What the other side holds: our reservation's id, and its standing there."""
        try:
            return [pair async for pair in self._service.stores.external(resource).claims_of_theirs(since)]
        except Exception as error:
            raise OutsideUnreachable(f"The other side of {resource} can't be asked what it holds: {error}.") from error

    async def _ours(self, resource: str, tenant_id: str, references: Sequence[str]) -> dict[str, str]:
        """The states of those of the reservations that exist."""
        database = self._service.stores.of(resource).database
        ids = [id for id in map(_uuid, references) if id]
        found: dict[str, str] = {}
        for start in range(0, len(ids), PAGE):
            page = {"tenant_id": tenant_id, "resource": resource, "ids": ids[start : start + PAGE]}
            found |= {str(row.id): row.state for row in await database.read(_STANDING, page)}
        return found


async def _total(work: Iterable[Awaitable[int]]) -> int:
    """The sum of what is done side by side. Where a database is away, that is left for the next time."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            log.warning("sweep_failed", error=str(result)[:300], kind=type(result).__name__)
    return sum(result for result in results if isinstance(result, int))


async def _take(database: Database, statement: Any, **parameters: Any) -> list[Any]:
    async with database.transaction() as connection:
        return list((await connection.execute(statement, parameters)).fetchall())


async def _all(work: Any) -> None:
    """Wait for all; what fails is due again when its lease is over."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, Unavailable):
            log.info("left_for_later", code=result.code)
        elif isinstance(result, BaseException):
            log.error("sweep_of_one_failed", error=repr(result)[:300])


def _uuid(reference: str) -> UUID | None:
    """A reservation's id, or None: whoever else uses the gateway may write there what they like."""
    try:
        return UUID(reference)
    except ValueError:
        return None


_SETTLED: Final = {
    State.CONFIRMED: ("captured", "refunded"),
    State.CANCELLED: ("voided", "declined"),
    State.REFUSED: ("declined",),
}
_MAY_HOLD: Final = frozenset({"authorised", "captured"})


def _mismatch(resource: str, id: str, theirs: str, ours: str | None) -> Finding | None:
    """What is wrong between what they hold and what we think; None while it is under way, or right."""
    if ours is None:
        return (
            Finding("reconciliation", f"{resource} {id}", f"They hold '{theirs}' for a reservation we don't know.")
            if (theirs in _MAY_HOLD)
            else None
        )
    if State(ours) in _SETTLED and theirs not in _SETTLED[State(ours)]:
        return Finding("reconciliation", f"{resource} {id}", f"It is '{ours}' here and '{theirs}' there.")
    return None
