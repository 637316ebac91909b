"""The order on bare asyncpg, by hand: whatever is to be durable by itself is one statement, round trip and commit.

`--commits 3` commits as seldom as can be without a transaction open while the gateway is asked: before it authorises,
before it captures, and after. `--commits 9` commits each step by itself.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any, Final, TypeAlias

import asyncpg
import click
import msgspec

from bench.peers import statements as sql
from bench.peers.prepare import dsn, prepare
from bench.peers.serving import Answer, Edge, Place, serve
from bench.peers.wire import IN_FLIGHT, REUSED, Refused, authorise, capture, encoded, fingerprint, insist, read

CONNECTIONS: Final = 24

_STORED: Final = """
SELECT fingerprint, status, body FROM idempotency_keys
WHERE tenant_id = 'default' AND caller = 'anonymous' AND operation = 'orders.place' AND key = $1"""

_NAMED: Final = re.compile(r"(?<![:\w]):(\w+)")

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Known = dict[str, Any]


class Steps(msgspec.Struct, frozen=True):
    """The statements between two calls of the gateway. `first` claims the key, and `hold` holds the stock."""

    first: str
    hold: str
    then: tuple[str, ...]
    authorised: tuple[str, ...]
    captured: tuple[str, ...]


STEPS: Final = {
    3: Steps(sql.TRY, sql.TRY, (), (sql.CONFIRM,), (sql.FINISH,)),
    9: Steps(
        sql.BEGIN, sql.HOLD, (sql.PLACE, sql.INTEND), (sql.AUTHORISED, sql.DECIDE, sql.SELL), (sql.CAPTURED, sql.END)
    ),
}


@cache
def _numbered(statement: str) -> tuple[str, tuple[str, ...]]:
    """A statement with $1 for the first of its names, and the names in order."""
    names = tuple(dict.fromkeys(_NAMED.findall(statement)))
    return _NAMED.sub(lambda match: f"${names.index(match.group(1)) + 1}", statement), names


async def _tell(on: Any, statement: str, known: Known) -> asyncpg.Record:
    """Run a statement on a pool or a connection, and give the row that it tells."""
    numbered, names = _numbered(statement)
    row: asyncpg.Record = await on.fetchrow(numbered, *(known[name] for name in names))
    return row


async def _tell_all(pool: Pool, statements: tuple[str, ...], known: Known) -> None:
    """Run statements, each to be committed before the next. Raises RuntimeError where one did nothing."""
    for statement in statements:
        if not (await _tell(pool, statement, known))["moved"]:
            raise RuntimeError("somebody else has decided this order")


async def _tell_whole(pool: Pool, statement: str, known: Known) -> asyncpg.Record:
    """Run a statement that holds stock: all lines or none. One line is held or not by the statement itself."""
    if len(known["skus"]) == 1:
        return await _tell(pool, statement, known)
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        row = await _tell(connection, statement, known)
        await (transaction.commit() if row["held"] else transaction.rollback())
        return row


async def _tried(pool: Pool, steps: Steps, known: Known) -> tuple[bool, bool]:
    """Whether the key is ours, and whether all could be held."""
    if steps.first is not steps.hold:
        if not (await _tell(pool, steps.first, known))["claimed"]:
            return False, False
        return True, bool((await _tell_whole(pool, steps.hold, known))["held"])
    row = await _tell_whole(pool, steps.hold, known)
    if row["claimed"] and not row["held"] and len(known["skus"]) > 1:
        row = await _tell(pool, sql.BEGIN, known)  # what was rolled back: there must be something to cancel
        return bool(row["claimed"]), False
    return bool(row["claimed"]), bool(row["held"])


async def _stored(pool: Pool, known: Known) -> Answer:
    """What was answered under this key."""
    row = await pool.fetchrow(_STORED, known["key"])
    if row is None or row["fingerprint"] != known["fingerprint"]:
        return 409, REUSED
    return (row["status"], row["body"]) if row["status"] else (409, IN_FLIGHT)


async def place(pool: Pool, steps: Steps, key: str, body: bytes) -> Answer:
    """Place an order, or answer as it was answered before."""
    purchase = read(body)
    known = sql.parameters(purchase) | {"key": key, "fingerprint": fingerprint(body)}
    claimed, held = await _tried(pool, steps, known)
    if not claimed:
        return await _stored(pool, known)
    try:
        insist(held)
        await _tell_all(pool, steps.then, known)
        authorisation = await authorise(purchase)
    except Refused as refused:
        known |= {"reason": refused.code, "status": 409, "body": purchase.refusal(refused.code)}
        await _tell_all(pool, (sql.CANCEL,), known)
        return known["status"], known["body"]
    known |= {"authorisation_id": authorisation["authorisation_id"], "detail": encoded(authorisation)}
    await _tell_all(pool, steps.authorised, known)
    await capture(purchase, authorisation)
    known |= {"status": 201, "body": purchase.reply(authorisation)}
    await _tell_all(pool, steps.captured, known)
    return known["status"], known["body"]


async def _as_it_is(connection: Any) -> None:
    """Nothing is left behind on a connection, so that nothing need be reset."""


def create(url: str, commits: int) -> Edge:
    """The application."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Place]:
        async with asyncpg.create_pool(
            dsn(url),
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            max_queries=1_000_000_000,
            reset=_as_it_is,
            server_settings=sql.SETTINGS,
        ) as pool:
            yield partial(place, pool, STEPS[commits])

    return Edge(opened)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--commits", type=click.Choice(["3", "9"]), default="3", show_default=True)
@click.option("--skus", default=1000, show_default=True)
def main(port: int, commits: str, skus: int) -> None:
    """Serve orders from the database at TCC_DATABASE_URL."""
    url = os.environ["TCC_DATABASE_URL"]
    asyncio.run(prepare(url, skus))
    serve(create(url, int(commits)), port)


if __name__ == "__main__":
    main()
