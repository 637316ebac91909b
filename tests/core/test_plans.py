"""The plans of the hot statements, made while tables are empty: one look-up by key for each command, for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from resources.registry import RESOURCES
from tcc import idempotency, reads, sweeps
from tcc.db import Database, numbered
from tcc.foreseen_sql import change_sql, record_sql
from tcc.sql import (
    begin_sql,
    bury_sql,
    expire_sql,
    found_sql,
    found_transactions_sql,
    held_keys_sql,
    lock_transactions_sql,
    move_sql,
    move_transaction_sql,
    try_sql,
)

STATEMENTS = {
    **{f"try {r.name}": try_sql(r.name, r.effects, r.held) for r in RESOURCES},
    **{f"move {r.name}": move_sql(r.name, r.effects, external=r.external) for r in RESOURCES},
    **{f"expire {r.name}": expire_sql(r.name, r.effects) for r in RESOURCES if not r.external},
    **{f"bury {r.name}": bury_sql(r.name) for r in RESOURCES},
    "found reservations": found_sql("inventory"),
    "found transactions": found_transactions_sql(),
    "begin": begin_sql(),
    "move transaction": move_transaction_sql(),
    "lock transactions": lock_transactions_sql(),
    "look up keys": idempotency._LOOK.text,
    "find keys": held_keys_sql(),
    "record what is foreseen": record_sql(RESOURCES),
    "change what is foreseen": change_sql(RESOURCES),
    "store replies": idempotency._STORE.text,
    "read reservations": reads._RESERVATIONS.text,
    "read a transaction": reads._TRANSACTION.text,
    "read the journal": reads._JOURNAL.text,
}
KEY_COLUMNS = {"inventory_items": "sku", "idempotency_keys": "key", "journal": "subject_id"}

SOME = """
INSERT INTO reservations (tenant_id, resource, id, state, claim, expires_at, created_at, updated_at, correlation_id)
SELECT 'default', r, gen_random_uuid(), 'confirmed', '{}', now(), now(), now(), 'x'
FROM generate_series(1, 20), unnest('{inventory,orders,payments}'::text[]) AS r;
INSERT INTO transactions (tenant_id, id, state, confirm, branches, expires_at, decided_at, created_at, updated_at,
  correlation_id)
SELECT 'default', gen_random_uuid(), 'confirmed', 'auto', '[]', now(), now(), now(), now(), 'x'
FROM generate_series(1, 20);
INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, token, created_at)
SELECT 'default', 'anonymous', 'try', n::text, '', gen_random_uuid(), gen_random_uuid(), now()
FROM generate_series(1, 20) AS n;
INSERT INTO journal (tenant_id, subject_id, entry_id, at, event, target, correlation_id, actor)
SELECT 'default', gen_random_uuid(), gen_random_uuid(), now(), 'try', 'tried', 'x', 'x' FROM generate_series(1, 20);
INSERT INTO inventory_items (tenant_id, sku, location, on_hand, available)
SELECT 'default', n::text, 'default', 1, 1 FROM generate_series(1, 20) AS n;
INSERT INTO orders SELECT 'default', gen_random_uuid(), '', 'pending', '', 'EUR', 1, '[]', now(), now()
FROM generate_series(1, 20);
INSERT INTO payments (tenant_id, id, state, amount, currency, payment_method, created_at, updated_at)
SELECT 'default', gen_random_uuid(), 'authorising', 1, 'EUR', '', now(), now() FROM generate_series(1, 20);
ANALYZE"""


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes that read a table."""
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        yield node
    for child in node.get("Plans", []):
        yield from scans(child)


@pytest.mark.parametrize("tables", ["empty", "small and analyzed"])
@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_batch_looks_rows_up_by_their_key(name: str, tables: str, database_url: str) -> None:
    database = Database(database_url, application="tests")
    async with database.batches.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if tables != "empty":
            await driver.execute(SOME)
        sql, names = numbered(STATEMENTS[name])
        await driver.execute(f"PREPARE hot AS {sql}")
        given = ", ".join("NULL" for _ in names)
        (row,) = await driver.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE hot({given})")
        plan = row[0] if isinstance(row[0], list) else json.loads(bytes(row[0]))
    await database.close()
    read = list(scans(plan[0]["Plan"]))
    assert read or name in ("try orders", "try payments") or name.startswith("bury"), (
        "a move or a begin reads at least its own rows"
    )
    assert name.startswith("expire") == any(node.get("Index Name") == "reservations_due" for node in read)
    for node in read:
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), node
        if node["Index Name"] == "reservations_due":
            assert "due_at" in node["Index Cond"], node
            continue
        assert KEY_COLUMNS.get(node["Relation Name"], "id") in node["Index Cond"], node


PAST = """
INSERT INTO reservations (tenant_id, resource, id, state, claim, expires_at, created_at, updated_at, correlation_id)
SELECT 'default', 'inventory', gen_random_uuid(), 'confirmed', '{}', now(), now(), now(), 'x'
FROM generate_series(1, 20000);
INSERT INTO transactions (tenant_id, id, state, confirm, branches, expires_at, decided_at, created_at, updated_at,
  correlation_id)
SELECT 'default', gen_random_uuid(), 'confirmed', 'auto', '[]', now(), now(), now(), now(), 'x'
FROM generate_series(1, 20000);
ANALYZE reservations, transactions"""
SWEEPS = {
    "reservations_due": (sweeps._TAKE_RESERVATIONS, "30, 'inventory', 500"),
    "transactions_due": (sweeps._TAKE_TRANSACTIONS, "30, false, 500"),
}


@pytest.mark.parametrize("index", SWEEPS)
async def test_a_sweep_finds_what_is_due_without_a_look_at_what_is_done(index: str, database_url: str) -> None:
    statement, given = SWEEPS[index]
    database = Database(database_url, application="tests")
    async with database.reads.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute(PAST)
        sql, _ = numbered(statement.text)
        await driver.execute(f"PREPARE sweep AS {sql}")
        (row,) = await driver.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE sweep({given})")
        plan = row[0] if isinstance(row[0], list) else json.loads(bytes(row[0]))
    await database.close()
    read = list(scans(plan[0]["Plan"]))
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Tid Scan"}, read
    (due,) = [node for node in read if node.get("Index Name") == index]
    assert "due_at" in due["Index Cond"], due
