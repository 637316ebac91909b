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

_HELD_TOO_LONG = Invariant(
    name="I4",
    promise="Nothing is held past its expiry and the grace.",
    sql="""
SELECT resource || ' ' || id AS subject, 'It is ' || state || ', and expired at ' || expires_at AS detail
FROM reservations
WHERE state IN ('trying', 'tried') AND transaction_id IS NULL AND due_at IS NOT NULL
  AND expires_at < clock_timestamp() - make_interval(secs => :grace_seconds)""",
)
_UNDECIDED_TOO_LONG = Invariant(
    name="I4",
    promise="No transaction stays undecided past its deadline and the grace.",
    sql="""
SELECT 'transaction ' || id AS subject, 'It is ' || state || ', and its deadline was ' || expires_at AS detail
FROM transactions
WHERE state IN ('trying', 'tried') AND due_at IS NOT NULL
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
  AND state_change < clock_timestamp() - interval '5 seconds'""",
)
_PROTOCOL: Final = (_HELD_TOO_LONG, _UNDECIDED_TOO_LONG, _FORGOTTEN, _IDLE)

_ENDS: Final = {
    State.CONFIRMED: frozenset({State.CONFIRMED}),
    State.CANCELLED: frozenset({State.CANCELLED, State.REFUSED, None}),
}


async def findings(
    service: Service, *, tenant_id: str, recent: int, reconcile: bool
) -> AsyncIterator[tuple[str, list[Finding]]]:
    """Check after check: what it promises, and what breaks it. `recent`: how many transactions to look through."""
    parameters = {"grace_seconds": service.settings.grace_seconds}
    for batcher, resources in service.stores.distinct():
        for invariant in (*_PROTOCOL, *(i for resource in resources for i in resource.invariants)):
            bound = {k: v for k, v in parameters.items() if f":{k}" in invariant.sql}
            rows = await batcher.database.read(text(invariant.sql), bound)
            found = [Finding(invariant.name, row.subject, row.detail) for row in rows]
            yield f"{invariant.name} {invariant.promise} ({batcher.database.name})", found
    yield "I3 All branches of a transaction end alike.", await _unlike(service, tenant_id, recent)
    if reconcile:
        sweeper = Sweeper(service, "check")
        found = await sweeper.reconcile(tenant_id=tenant_id, since=timedelta(days=1))
        yield "I2 What the gateway holds is what we think it holds.", found


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
