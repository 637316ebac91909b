"""`check` is silent on a healthy database, and finds every promise that was broken on purpose."""

from __future__ import annotations

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from tcc.checks import findings
from tcc.service import Service
from tests.conftest import OpenService
from tests.recovery.scenes import (
    CONTEXT,
    LAYOUTS,
    TENANT,
    broken,
    card,
    eventually,
    hold,
    in_both_layouts,
    place,
    put_stock,
    stock,
)


@pytest_asyncio.fixture
async def healthy(start_service: OpenService) -> Service:
    """A database with a bit of everything, all of it as it must be."""
    service = start_service()
    await put_stock(service, "MUG", 10)
    await place(service, "MUG")
    await place(service, "MUG", method="tok_declined")
    await place(service, "MUG", confirm="manual")
    await hold(service, "inventory", stock(("MUG", 2)))
    authorising = (await hold(service, "payments", card())).view
    assert authorising is not None
    await service.reserver.settle(CONTEXT, authorising)
    return service


async def tamper(service: Service, resource: str | None, sql: str) -> None:
    """Do what nobody may do: without triggers and CHECK constraints."""
    database = (service.stores.of(resource) if resource else service.stores.home).database
    async with database.reads.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        rows = await connection.exec_driver_sql(
            "SELECT conrelid::regclass AS relation, conname FROM pg_constraint "
            "WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        )
        for row in rows.fetchall():
            await connection.exec_driver_sql(f'ALTER TABLE {row.relation} DROP CONSTRAINT "{row.conname}"')
        done = await connection.exec_driver_sql(sql)
        assert done.rowcount >= 1, sql


CAPTURED = "resource = 'payments' AND state = 'confirmed'"
SINGLE = "resource = 'inventory' AND transaction_id IS NULL AND state = 'tried'"
YESTERDAY = "expires_at = expires_at - interval '1 day'"
BREAKS = {
    "more held than reserved": (
        "inventory",
        "UPDATE inventory_items SET held = held + 1, available = available - 1",
        "I1",
    ),
    "less held than reserved": ("inventory", "UPDATE inventory_items SET held = 0, available = on_hand", "I1"),
    "an order confirmed alone": (
        "orders",
        "UPDATE orders SET state = 'confirmed' WHERE id = (SELECT id FROM orders WHERE state = 'pending' LIMIT 1)",
        "I2",
    ),
    "a payment captured alone": ("payments", "UPDATE payments SET state = 'captured' WHERE state = 'authorised'", "I2"),
    "a payment voided alone": ("payments", "UPDATE payments SET state = 'voided' WHERE state = 'captured'", "I2"),
    "a branch that went its own way": (
        "payments",
        f"UPDATE reservations SET state = 'cancelled', reason = 'requested' WHERE {CAPTURED}",
        "I3",
    ),
    "a branch that is gone": ("payments", f"DELETE FROM reservations WHERE {CAPTURED}", "I3"),
    "a transaction that changed its mind": (
        None,
        "UPDATE transactions SET state = 'cancelled', reason = 'requested' WHERE state = 'confirmed'",
        "I3",
    ),
    "a hold past its expiry": ("inventory", f"UPDATE reservations SET {YESTERDAY} WHERE {SINGLE}", "I4"),
    "a parked hold past its expiry": (
        "inventory",
        f"UPDATE reservations SET {YESTERDAY}, due_at = NULL, attention = 'x' WHERE {SINGLE}",
        "I4",
    ),
    "a branch past its transaction": (
        "inventory",
        f"UPDATE reservations SET {YESTERDAY} WHERE transaction_id IS NOT NULL AND state = 'tried'",
        "I4",
    ),
    "an undecided transaction past its deadline": (
        None,
        f"UPDATE transactions SET {YESTERDAY} WHERE state = 'tried'",
        "I4",
    ),
    "a forgotten transaction": (None, "UPDATE transactions SET due_at = NULL WHERE state = 'tried'", "I8"),
    "a forgotten hold": ("inventory", f"UPDATE reservations SET due_at = NULL WHERE {SINGLE}", "I8"),
}


ACROSS = ("a branch that went its own way", "a branch that is gone", "a branch past its transaction")
"""What takes two databases to find, where there are two."""


@in_both_layouts
async def test_a_healthy_database_breaks_nothing(healthy: Service) -> None:
    assert await broken(healthy) == []


@pytest.mark.parametrize(
    ("layout", "what"),
    [*((LAYOUTS[0], what) for what in BREAKS), *((LAYOUTS[1], what) for what in ACROSS)],
    indirect=["layout"],
)
async def test_what_is_broken_on_purpose_is_found(healthy: Service, what: str) -> None:
    resource, sql, invariant = BREAKS[what]
    await tamper(healthy, resource, sql)
    assert invariant in {finding.invariant for finding in await broken(healthy)}


async def test_a_connection_idle_in_a_transaction_is_found(healthy: Service, database_url: str) -> None:
    parsed = make_url(database_url)
    idle = await asyncpg.connect(
        host=parsed.host,
        port=parsed.port,
        user=parsed.username,
        database=parsed.database,
        server_settings={"application_name": "tcc-idle"},
    )
    async with idle.transaction():
        await idle.execute("SELECT 1")

        async def found() -> bool:
            every = findings(healthy, tenant_id=TENANT, recent=10, reconcile=False, idle_seconds=0.2)
            return "I7" in [finding.invariant async for _, found in every for finding in found]

        assert not await found()
        await eventually(found)
    await idle.close()
