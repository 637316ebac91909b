"""What was left lying, and how long one worker takes to work it off.

A backlog is committed all at once, before the eyes of a worker that is running already.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import asyncpg

from bench.copies import Connection, Copier, Source
from bench.stage import Stage, asyncpg_url, post
from bench.workloads import HOT, SKUS, TRY_BODY, order, sku

Backlog = Callable[[Connection], Awaitable[None]]

LONGEST_SECONDS = 300.0
_POLL_SECONDS = 0.25
_APART_SECONDS = 0.01
_SOON = "clock_timestamp() + interval '1 minute'"
"""What a worker has taken up is due again after its lease; what is served meanwhile is due much later."""


def abandoned(stage: Stage, url: str, tries: int, skus: int = SKUS) -> Backlog:
    """Tries on so many units, all expired just now."""
    held = post(
        f"{stage.api(url).url}/v1/inventory/reservations", json.loads(TRY_BODY.replace("{pick}", sku(0))), "abandoned"
    )
    given = {
        "claim": f"CAST(replace(s.claim::text, '{sku(0)}', 'SKU-' || c.n % {skus}) AS jsonb)",
        "expires_at": "now()",
        "due_at": "now()",
    }

    async def backlog(connection: Connection) -> None:
        copier = Copier(connection, _APART_SECONDS)
        await copier.prepare([Source("reservations", f"id = '{held['id']}'", given)])
        await copier.copy(tries, 1)
        await _hold(connection, tries, skus)

    return backlog


def undriven(stage: Stage, url: str, transactions: int) -> Backlog:
    """Whole orders whose process died when all was held and the card was about to be authorised."""
    transaction, branches = _crashed(stage, url)
    listed = ", ".join(f"'{id}'" for id in branches)
    deadline = {"expires_at": "s.expires_at"}
    sources = [
        Source("transactions", f"id = '{transaction}'", deadline | {"due_at": "now()"}, named=("branches",)),
        Source("reservations", f"id IN ({listed})", deadline),
        Source("orders", f"id IN ({listed})"),
        Source("payments", f"id IN ({listed})"),
        Source("journal", f"subject_id IN ('{transaction}', {listed})", named=("entries",)),
    ]

    async def backlog(connection: Connection) -> None:
        copier = Copier(connection, _APART_SECONDS)
        await copier.prepare(sources, [str(id) for id in branches])
        await copier.copy(transactions, 1)
        await _hold(connection, transactions, 1)

    return backlog


def _crashed(stage: Stage, url: str) -> tuple[UUID, Sequence[UUID]]:
    """The ids of an order whose process was killed before the card was authorised, and of its branches."""
    doomed = stage.api(url, TCC_TEST_MODE="1", TCC_FAILPOINTS="after_intent")
    with suppress(http.client.HTTPException, OSError):
        post(f"{doomed.url}/v1/transactions", json.loads(order(HOT).steps[0].body.replace("{pick}", sku(0))), "crashed")
    name = url.rpartition("/")[2]
    (row,) = stage.query(name, "SELECT id FROM transactions WHERE state = 'trying'")
    branches = stage.query(name, "SELECT id FROM reservations WHERE transaction_id = $1", row["id"])
    return row["id"], [branch["id"] for branch in branches]


async def _hold(connection: Connection, units: int, skus: int) -> None:
    """Have the shelves say that so many units are held."""
    await connection.execute(
        """
UPDATE inventory_items i SET available = available - h.units, held = held + h.units
FROM (SELECT 'SKU-' || n % $2 AS sku, count(*) AS units FROM generate_series(1, $1) AS n GROUP BY 1) h
WHERE i.sku = h.sku""",
        units,
        skus,
    )


def work_off(
    stage: Stage,
    url: str,
    backlog: Backlog,
    table: str,
    *,
    begin: Callable[[], None] = lambda: None,
    tell: Callable[[int], None] = lambda _: None,
) -> float:
    """Seconds from the moment at which the backlog is there until one worker has worked it off. `begin` is called just
    before that moment; `tell` is told how many rows of `table` are left. Raises RuntimeError where that has no end."""
    stage.worker(url)
    return asyncio.run(_work_off(asyncpg_url(url), backlog, table, begin, tell))


async def _work_off(
    url: str, backlog: Backlog, table: str, begin: Callable[[], None], tell: Callable[[int], None]
) -> float:
    connection: Connection = await asyncpg.connect(url)
    async with connection.transaction():
        await backlog(connection)
        begin()
    started = time.perf_counter()
    left: Any = 1
    while left:
        await asyncio.sleep(_POLL_SECONDS)
        left = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE due_at < {_SOON}")
        tell(left)
        if time.perf_counter() - started > LONGEST_SECONDS:
            raise RuntimeError(f"{left} of {table} are still due after {LONGEST_SECONDS:.0f} s")
    seconds = time.perf_counter() - started
    attention = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE attention IS NOT NULL")
    await connection.close()
    if attention:
        raise RuntimeError(f"{attention} of {table} wait for a person")
    return seconds
