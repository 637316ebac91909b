"""Whether cost grows with history: the same work on tables that hold millions of past reservations, and on empty ones.

The past is of whole orders and of single Tries, all confirmed, with all that the service keeps of them, and is spread
evenly over thirty days. Of idempotency keys there are those that are kept by then, and some that are due to be purged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import msgspec

from bench.copies import Connection, Copier, Source
from bench.results import Table
from bench.stage import Server, asyncpg_url, post
from bench.workloads import HOT, order, sku

TABLES = ("transactions", "reservations", "journal", "idempotency_keys", "orders", "payments")
SINGLES = 7
"""So many single Tries for each whole order, which is three reservations."""
_PAST_DAYS = 30.0
_KEYS_DAYS = 3.6
"""Keys are kept for three days."""
_CHUNK = 2_500
_SIDE_BY_SIDE = 2


class Past(msgspec.Struct, frozen=True):
    """The ids of what the copies are made of."""

    transaction: str
    branches: list[str]
    singles: list[str]


_LOOK = """
SELECT c.relname AS name, pg_total_relation_size(c.oid) / 1e6 AS megabytes, c.reltuples::bigint AS rows,
  pg_stat_get_dead_tuples(c.oid) AS dead, pg_stat_get_tuples_updated(c.oid) AS updated,
  pg_stat_get_tuples_hot_updated(c.oid) AS hot, pg_stat_get_autovacuum_count(c.oid) AS autovacuums
FROM unnest($1::text[]) WITH ORDINALITY AS t(name, place) JOIN pg_class c ON c.oid = t.name::regclass
ORDER BY t.place"""


def live(server: Server) -> Past:
    """Something for copies to be made of: an order and some single Tries, confirmed over HTTP."""
    body = json.loads(order(HOT).steps[0].body.replace("{pick}", sku(0)))
    placed = post(f"{server.url}/v1/transactions", body, "past-order")
    singles = []
    for number in range(SINGLES):
        claim = {"lines": [{"sku": sku(number), "quantity": 1}]}
        held = post(f"{server.url}/v1/inventory/reservations", claim, f"past-{number}")
        post(f"{server.url}/v1/inventory/reservations/{held['id']}/confirm")
        singles.append(held["id"])
    return Past(placed["id"], [branch["id"] for branch in placed["branches"]], singles)


def fill(url: str, past: Past, reservations: int, tell: Callable[[int, int], None]) -> float:
    """Give the database at `url` so many past reservations, as copies of what was done there. `tell` hears how many of
    how many steps are done. The seconds that it took."""
    started = time.perf_counter()
    asyncio.run(_fill(asyncpg_url(url), past, reservations // (len(past.branches) + len(past.singles)), tell))
    return time.perf_counter() - started


async def _fill(url: str, past: Past, copies: int, tell: Callable[[int, int], None]) -> None:
    chunks = iter(range(copies, 0, -_CHUNK))
    done = 0

    async def work() -> None:
        nonlocal done
        connection: Connection = await asyncpg.connect(url)
        await connection.execute("SET synchronous_commit = off")  # of the past alone; a checkpoint follows
        copier = Copier(connection, _PAST_DAYS * 86400 / copies)
        await copier.prepare(_sources(past, round(copies * _KEYS_DAYS / _PAST_DAYS)), past.branches)
        for first in chunks:
            last = max(1, first - _CHUNK + 1)
            await copier.copy(first, last)
            done += first - last + 1
            tell(done, copies)
        await connection.close()

    await asyncio.gather(*(work() for _ in range(_SIDE_BY_SIDE)))
    connection = await asyncpg.connect(url)
    for table in TABLES:
        await connection.execute(f"VACUUM (ANALYZE) {table}")
    await connection.execute("CHECKPOINT")
    await connection.close()


def _sources(past: Past, keys: int) -> list[Source]:
    """Everything that is kept of it."""
    transaction, branches, singles = f"'{past.transaction}'", _listed(past.branches), _listed(past.singles)
    return [
        Source("idempotency_keys", f"subject_id IN ({transaction}, {singles})", most=keys),
        Source("transactions", f"id = {transaction}", named=("branches",)),
        Source("reservations", f"id IN ({branches}, {singles})"),
        Source("orders", f"id IN ({branches})"),
        Source("payments", f"id IN ({branches})"),
        Source("journal", f"subject_id IN ({transaction}, {branches}, {singles})", named=("entries",)),
    ]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(f"'{id}'" for id in ids)


def look(url: str) -> list[Any]:
    """How the tables stand."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(asyncpg_url(url))
        try:
            return list(await connection.fetch(_LOOK, TABLES))
        finally:
            await connection.close()

    return asyncio.run(ask())


def compared(before: list[Any], after: list[Any]) -> list[Table]:
    """What became of the tables between two looks."""
    return [
        Table(
            name=one["name"],
            rows=one["rows"],
            megabytes=float(one["megabytes"]),
            megabytes_after=float(two["megabytes"]),
            dead=one["dead"],
            dead_after=two["dead"],
            updated=two["updated"] - one["updated"],
            hot=two["hot"] - one["hot"],
            autovacuums=two["autovacuums"],
        )
        for one, two in zip(before, after, strict=True)
    ]
