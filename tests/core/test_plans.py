"""The plans of the hot statements, made while tables are empty: one look-up by key for each command, for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from resources.registry import RESOURCES
from tcc.db import Database
from tcc.sql import begin_sql, bury_sql, found_sql, found_transactions_sql, move_sql, move_transaction_sql, try_sql

STATEMENTS = {
    **{f"try {r.name}": try_sql(r.name, r.effects, external=r.external) for r in RESOURCES},
    **{f"move {r.name}": move_sql(r.name, r.effects, external=r.external) for r in RESOURCES},
    **{f"bury {r.name}": bury_sql(r.name) for r in RESOURCES},
    "found reservations": found_sql("inventory"),
    "found transactions": found_transactions_sql(),
    "begin": begin_sql(),
    "move transaction": move_transaction_sql(),
}
KEY_COLUMNS = {"inventory_items": "sku"}


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes that read a table."""
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        yield node
    for child in node.get("Plans", []):
        yield from scans(child)


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_batch_looks_rows_up_by_their_key(name: str, database_url: str) -> None:
    database = Database(database_url, application="tests")
    async with database.batches.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        sql = STATEMENTS[name].replace(":commands", "$1").replace(":lease_seconds", "$2")
        await driver.execute(f"PREPARE hot(text, float8) AS {sql}")
        (row,) = await driver.fetch("EXPLAIN (FORMAT JSON) EXECUTE hot('[]', 1)")
        plan = row[0] if isinstance(row[0], list) else json.loads(bytes(row[0]))
    await database.close()
    read = list(scans(plan[0]["Plan"]))
    assert read or name in ("try orders", "try payments") or name.startswith("bury"), (
        "a move or a begin reads at least its own rows"
    )
    for node in read:
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), node
        assert KEY_COLUMNS.get(node["Relation Name"], "id") in node["Index Cond"], node
