"""What the product is compared with does the whole of the work: the same rows, the same keys, the same refusals."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from bench import peers
from bench.peers.prepare import STOCK, dsn, prepare
from tcc.dev.patience import wait_until
from tcc.dev.programs import LOOPBACK, free_port, postgres_environment, postgres_programs
from tcc.dev.servers import SUPERUSER, PostgresServer
from tests.client import Api, new_key, whole_order

SCRIPTS = Path(peers.__file__).parent
ROOT = SCRIPTS.parents[1]
SKUS = 4

LOGGED = Counter(
    {
        ("begin", None, None, "trying"): 1,
        ("try", "inventory", None, "tried"): 1,
        ("try", "payments", None, "trying"): 1,
        ("try", "orders", None, "tried"): 1,
        ("try_succeeded", "payments", "trying", "tried"): 1,
        ("commit", None, "trying", "confirming"): 1,
        ("confirm", "inventory", "tried", "confirmed"): 1,
        ("confirm", "payments", "tried", "confirming"): 1,
        ("confirm", "orders", "tried", "confirmed"): 1,
        ("confirm_succeeded", "payments", "confirming", "confirmed"): 1,
        ("confirm_succeeded", None, "confirming", "confirmed"): 1,
    }
)
CONFIRMED = {
    "journal": LOGGED,
    "transactions": Counter({("confirmed",): 1}),
    "reservations": Counter((resource, "confirmed") for resource in ("inventory", "payments", "orders")),
    "payments": Counter({("captured", 1250): 1}),
    "orders": Counter({("confirmed", 1250): 1}),
    "idempotency_keys": Counter({("orders.place", 201): 1}),
}
_LEFT = {
    "journal": "SELECT event, resource, source, target FROM journal",
    "transactions": "SELECT state FROM transactions",
    "reservations": "SELECT resource, state FROM reservations",
    "payments": "SELECT state, amount FROM payments",
    "orders": "SELECT state, total FROM orders",
    "idempotency_keys": "SELECT operation, status FROM idempotency_keys",
}

_numbers = itertools.count(1)


class Peer:
    """A peer that serves, and its database."""

    def __init__(self, api: Api, url: str) -> None:
        self.api = api
        self.url = url

    async def order(self, branches: list[dict[str, Any]], key: str) -> tuple[int, bytes]:
        answer = await self.api.post("/orders", {"confirm": "auto", "branches": branches}, key=key)
        return answer.status, answer.body


def _empty_database(postgres: PostgresServer) -> str:
    name = f"peers_{next(_numbers)}"
    postgres.create_database(name)
    return postgres.url(name)


async def _fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn(url))
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def _left(url: str) -> dict[str, Counter[tuple[Any, ...]]]:
    """How many rows of each kind every table has."""
    return {table: Counter(await _fetch(url, statement)) for table, statement in _LEFT.items()}


async def _shelf(url: str, sku: str) -> tuple[int, int, int]:
    """Units taken off what is available, held, and sold; what is on hand has to follow."""
    ((taken, held, sold),) = await _fetch(
        url, f"SELECT {STOCK} - available, held, sold FROM inventory_items WHERE sku = '{sku}'"
    )
    return taken, held, sold


def _serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/healthz", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(params=["bare 3", "bare 9", "orm 3", "orm 9"])
def serving(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[tuple[int, str]]:
    """The port of a peer as the benchmark runs it, and the URL of its database, which was empty."""
    name, commits = request.param.split()
    url, port = _empty_database(postgres), free_port()
    command = [sys.executable, "-m", f"bench.peers.{name}", "--port", str(port), "--commits", commits]
    process = subprocess.Popen([*command, "--skus", str(SKUS)], cwd=ROOT, env={**os.environ, "TCC_DATABASE_URL": url})
    try:
        assert wait_until(lambda: _serves(port), within=60)
        yield port, url
    finally:
        process.terminate()
        process.wait(30)


@pytest_asyncio.fixture
async def peer(serving: tuple[int, str]) -> AsyncIterator[Peer]:
    """A peer to order from."""
    port, url = serving
    async with aiohttp.ClientSession() as session:
        yield Peer(Api(session, f"http://{LOOPBACK}:{port}"), url)


async def test_an_order_is_the_same_work_and_a_repeat_the_same_answer(peer: Peer) -> None:
    key, branches = new_key(), whole_order("SKU-1")
    first = await peer.order(branches, key)
    assert first[0] == 201
    assert await _left(peer.url) == CONFIRMED
    assert await _shelf(peer.url, "SKU-1") == (1, 0, 1)

    assert await peer.order(branches, key) == first
    status, body = await peer.order(whole_order("SKU-2"), key)
    assert (status, b'"idempotency_key_reused"' in body) == (409, True)
    assert await _left(peer.url) == CONFIRMED

    # What can't be had is given back, all of it, and stays refused.
    half = whole_order("SKU-2")
    half[0]["claim"]["lines"].append({"sku": "SKU-NONE", "quantity": 1})
    for refused, code in (
        (whole_order("SKU-NONE"), b'"insufficient_stock"'),
        (half, b'"insufficient_stock"'),
        (whole_order("SKU-2", "tok_declined"), b'"card_declined"'),
    ):
        key = new_key()
        status, body = await peer.order(refused, key)
        assert (status, code in body) == (409, True), body
        assert await peer.order(refused, key) == (status, body)
        assert await _shelf(peer.url, "SKU-2") == (0, 0, 0)
    left = await _left(peer.url)
    assert left["transactions"] == Counter({("confirmed",): 1, ("cancelled",): 3})
    assert left["idempotency_keys"] == Counter({("orders.place", 201): 1, ("orders.place", 409): 3})
    assert {state for _, state in left["reservations"]} == {"confirmed", "cancelled", "refused"}


def _pgbench(postgres: PostgresServer, script: str, url: str) -> None:
    """Run a script once."""
    command: list[str | Path] = [
        postgres_programs() / "pgbench",
        *("--host", LOOPBACK, "--port", str(postgres.port), "--username", SUPERUSER),
        *("--protocol", "prepared", "--no-vacuum", "--transactions", "1", "--define", "skus=1"),
        *("--file", SCRIPTS / script, url.rpartition("/")[2]),
    ]
    ended = subprocess.run(command, env=postgres_environment(), capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr


async def _pgbench_on_empty(postgres: PostgresServer, script: str) -> str:
    """The URL of the database that a script was run on."""
    url = _empty_database(postgres)
    await prepare(url, SKUS)
    await asyncio.to_thread(_pgbench, postgres, script, url)
    return url


async def test_pgbench_leaves_the_rows_of_an_order(postgres: PostgresServer) -> None:
    url = await _pgbench_on_empty(postgres, "order.sql")
    assert await _left(url) == CONFIRMED
    assert await _shelf(url, "SKU-0") == (1, 0, 1)


async def test_pgbench_leaves_the_rows_of_a_try(postgres: PostgresServer) -> None:
    url = await _pgbench_on_empty(postgres, "try.sql")
    assert {table: rows for table, rows in (await _left(url)).items() if rows} == {
        "journal": Counter({("try", "inventory", None, "tried"): 1}),
        "reservations": Counter({("inventory", "tried"): 1}),
        "idempotency_keys": Counter({("inventory.try", 201): 1}),
    }
    assert await _shelf(url, "SKU-0") == (1, 1, 0)
