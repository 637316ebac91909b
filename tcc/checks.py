"""Whether what must always hold does hold, in the databases as they are now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

from sqlalchemy import text

from tcc import reads
from tcc.machine import State
from tcc.resource import Finding, Invariant
from tcc.service import Service
from tcc.sweeps import Sweeper

PAGE: Final = 500
IDLE_SECONDS: Final = 5.0
"""How long a transaction of ours may rest between two statements before that is a mistake, and not a slow machine."""

_HELD_TOO_LONG = Invariant(
    name="I4",
    promise="Nothing is held past its expiry and the grace.",
    sql="""
SELECT resource || ' ' || id AS subject, 'It is ' || state || ', and expired at ' || expires_at AS detail
FROM reservations
WHERE state IN ('trying', 'tried') AND transaction_id IS NULL
  AND expires_at < clock_timestamp() - make_interval(secs => :grace_seconds)""",
)
_UNDECIDED_TOO_LONG = Invariant(
    name="I4",
    promise="No transaction stays undecided past its deadline and the grace.",
    sql="""
SELECT 'transaction ' || id AS subject, 'It is ' || state || ', and its deadline was ' || expires_at AS detail
FROM transactions
WHERE state IN ('trying', 'tried')
  AND expires_at < clock_timestamp() - make_interval(secs => :grace_seconds)""",
)
_FORGOTTEN = Invariant(
    name="I8",
    promise="What is not at its end is due to somebody, or waits for a person.",
    sql="""
SELECT 'transaction ' || id AS subject, 'It is ' || state || ', and nobody will look at it again.' AS detail
FROM transactions WHERE due_at IS NULL AND attention IS NULL AND state NOT IN ('confirmed', 'cancelled')
UNION ALL
SELECT resource || ' ' || id, 'It is ' || state || ', and nobody will look at it again.' FROM reservations
WHERE transaction_id IS NULL AND due_at IS NULL AND attention IS NULL
  AND state NOT IN ('confirmed', 'cancelled', 'refused')""",
)
_IDLE = Invariant(
    name="I7",
    promise="No connection of ours is idle in a transaction.",
    sql="""
SELECT application_name || ' ' || pid AS subject, 'Idle in a transaction since ' || state_change AS detail
FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'tcc%' AND state LIKE 'idle in transaction%'
  AND state_change < clock_timestamp() - make_interval(secs => :idle_seconds)""",
)
_OUTLIVED = text(
    """
SELECT resource || ' ' || id AS subject, state, expires_at, transaction_id FROM reservations
WHERE tenant_id = :tenant_id AND transaction_id IS NOT NULL AND state IN ('trying', 'tried')
  AND expires_at < clock_timestamp() - make_interval(secs => :grace_seconds)
ORDER BY expires_at LIMIT :limit"""
)
_FATES = text("SELECT id, state FROM transactions WHERE tenant_id = :tenant_id AND id = ANY (CAST(:ids AS uuid[]))")

_PROTOCOL: Final = (_HELD_TOO_LONG, _UNDECIDED_TOO_LONG, _FORGOTTEN, _IDLE)

_ENDS: Final = {
    State.CONFIRMED: frozenset({State.CONFIRMED}),
    State.CANCELLED: frozenset({State.CANCELLED, State.REFUSED, None}),
}


async def findings(
    service: Service, *, tenant_id: str, recent: int, reconcile: bool, idle_seconds: float = IDLE_SECONDS
) -> AsyncIterator[tuple[str, list[Finding]]]:
    """Check after check: what it promises, and what breaks it. `recent`: how many transactions to look through.

    Raises `Unavailable` when a database is away, `OutsideUnreachable` when what is to be reconciled can't be.
    """
    parameters = {"grace_seconds": service.settings.grace_seconds, "idle_seconds": idle_seconds}
    for batcher, resources in service.stores.distinct():
        for invariant in (*_PROTOCOL, *(i for resource in resources for i in resource.invariants)):
            bound = {k: v for k, v in parameters.items() if f":{k}" in invariant.sql}
            rows = await batcher.database.survey(text(invariant.sql), bound)
            found = [Finding(invariant.name, row.subject, row.detail) for row in rows]
            yield f"{invariant.name} {invariant.promise} ({batcher.database.name})", found
    yield "I3 All branches of a transaction end alike.", await _unlike(service, tenant_id, recent)
    yield "I4 No branch is held longer than its transaction.", await _outlived(service, tenant_id)
    if reconcile:
        sweeper = Sweeper(service, "check")
        found = await sweeper.reconcile(tenant_id=tenant_id, since=timedelta(days=1))
        yield "I2 What the gateway holds is what we think it holds.", found


async def _outlived(service: Service, tenant_id: str) -> list[Finding]:
    """Branches past their expiry and the grace whose transaction doesn't explain it: gone, undecided, or over."""
    found: list[Finding] = []
    parameters = {"tenant_id": tenant_id, "grace_seconds": service.settings.grace_seconds, "limit": PAGE}
    for batcher, _ in service.stores.distinct():
        rows = await batcher.database.read(_OUTLIVED, parameters)
        ids = list({row.transaction_id for row in rows})
        fates = await service.stores.home.database.read(_FATES, {"tenant_id": tenant_id, "ids": ids})
        states = {row.id: row.state for row in fates}
        for row in rows:
            fate = states.get(row.transaction_id, "not there")
            if fate not in (State.CONFIRMING, State.CANCELLING):
                detail = f"It is {row.state}, and expired at {row.expires_at}; its transaction is {fate}."
                found.append(Finding("I4", row.subject, detail))
    return found


async def _unlike(service: Service, tenant_id: str, recent: int) -> list[Finding]:
    found: list[Finding] = []
    before = None
    looked = 0
    while looked < recent:
        views = await reads.transactions(
            service.stores.home.database, tenant_id, state=None, attention=None, before=before, limit=PAGE
        )
        if not views:
            break
        looked += len(views)
        before = views[-1].id
        for transaction in await service.coordinator.complete(tenant_id, views):
            allowed = _ENDS.get(transaction.view.state)
            for branch in transaction.branches:
                if allowed is not None and branch.state not in allowed:
                    detail = f"It is {transaction.view.state}, its branch on {branch.plan.resource} {branch.state}."
                    found.append(Finding("I3", f"transaction {transaction.view.id}", detail))
    return found
