"""The order as a durable workflow: DBOS over HTTP, in one process, its system database beside that of the orders.

The workflow's id is the idempotency key, and its result is the reply: DBOS remembers both, and finishes an order that a
crash has interrupted. What changes our own tables are transactions of a datasource, which records each in the commit
that it makes; what asks the gateway are steps. The statements are those of `bare.py` for three commits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, TypeVar

import click
from dbos import DBOS, DBOSConfig, SetWorkflowID, SQLAlchemyDatasource
from sqlalchemy import text

from bench.peers import statements as sql
from bench.peers.prepare import dsn, prepare
from bench.peers.serving import Answer, Edge, Place, serve
from bench.peers.wire import REUSED, Purchase, Refused, authorise, capture, encoded, fingerprint, insist, read

THREADS: Final = 16
"""So many orders at once. DBOS keeps its books with calls that block, and workflows that block as well, in a thread
each, do half as many orders again in a second as coroutines."""

Told = tuple[bytes, int, bytes]
"""What a workflow gives: the fingerprint of the request that it began with, and the reply."""
Order = Callable[[Purchase, bytes], Told]
T = TypeVar("T")

_text: Final = cache(text)


def _run(datasource: SQLAlchemyDatasource, statement: str, known: dict[str, Any]) -> Any:
    return datasource.sql_session().execute(_text(statement), known).one()


def _move(datasource: SQLAlchemyDatasource, statement: str, known: dict[str, Any]) -> None:
    """Run a statement that must move the transaction on. Raises RuntimeError where it didn't."""
    if not _run(datasource, statement, known).moved:
        raise RuntimeError("somebody else has decided this order")


def _hold(datasource: SQLAlchemyDatasource, purchase: Purchase) -> bool:
    """Whether all that is wanted could be held; if not, nothing is."""
    known = sql.parameters(purchase)
    if len(known["skus"]) == 1:
        return bool(_run(datasource, sql.TRY_KEYLESS, known).held)
    with datasource.sql_session().begin_nested() as part:
        held = bool(_run(datasource, sql.TRY_KEYLESS, known).held)
        if not held:
            part.rollback()
    if not held:
        _run(datasource, sql.BEGIN_KEYLESS, known)
    return held


def _confirm(datasource: SQLAlchemyDatasource, purchase: Purchase, authorisation: dict[str, Any]) -> None:
    learned = {"authorisation_id": authorisation["authorisation_id"], "detail": encoded(authorisation)}
    _move(datasource, sql.CONFIRM, sql.parameters(purchase) | learned)


def _finish(datasource: SQLAlchemyDatasource, purchase: Purchase, authorisation: dict[str, Any]) -> bytes:
    _move(datasource, sql.FINISH_KEYLESS, sql.parameters(purchase))
    return purchase.reply(authorisation)


def _cancel(datasource: SQLAlchemyDatasource, purchase: Purchase, reason: str) -> bytes:
    _move(datasource, sql.CANCEL_KEYLESS, sql.parameters(purchase) | {"reason": reason})
    return purchase.refusal(reason)


def _answered(asked: Coroutine[Any, Any, T]) -> T:
    """What the gateway says, which is in this process and never waits."""
    try:
        asked.send(None)
    except StopIteration as stopped:
        answer: T = stopped.value
        return answer
    raise RuntimeError("the gateway waits")


def _authorised(purchase: Purchase) -> dict[str, Any]:
    return _answered(authorise(purchase))


def _captured(purchase: Purchase, authorisation: dict[str, Any]) -> None:
    _answered(capture(purchase, authorisation))


def workflow(datasource: SQLAlchemyDatasource) -> Order:
    """The order, step by step."""

    def change(step: Callable[..., T], *known: Any) -> T:
        # Rows are moved only from where they may be: SERIALIZABLE, the default, would cost retries and add nothing.
        options = {"name": step.__name__, "isolation_level": "READ COMMITTED"}
        changed: T = datasource.run_tx_step(options, step, datasource, *known)
        return changed

    def ask(step: Callable[..., T], *known: Any) -> T:
        asked: T = DBOS.run_step({"name": step.__name__}, step, *known)
        return asked

    def order(purchase: Purchase, request: bytes) -> Told:
        try:
            insist(change(_hold, purchase))
            authorisation = ask(_authorised, purchase)
        except Refused as refused:
            return request, 409, change(_cancel, purchase, refused.code)
        change(_confirm, purchase, authorisation)
        ask(_captured, purchase, authorisation)
        return request, 201, change(_finish, purchase, authorisation)

    durable: Order = DBOS.workflow()(order)
    return durable


def create(url: str) -> Edge:
    """The application."""
    connection = dsn(url)
    config: DBOSConfig = {
        "name": "orders",
        "system_database_url": f"{connection}_dbos",
        "sys_db_pool_size": THREADS,
        "db_engine_kwargs": {"pool_pre_ping": False},
        "log_level": "ERROR",
    }

    @asynccontextmanager
    async def opened() -> AsyncIterator[Place]:
        told = " ".join(f"-c {name}={value}" for name, value in sql.SETTINGS.items())
        pool = {"pool_size": THREADS, "max_overflow": 0, "connect_args": {"options": told}}
        datasource = SQLAlchemyDatasource.create(connection, pool)
        order = workflow(datasource)
        DBOS(config=config)
        DBOS.launch()

        def run(key: str, purchase: Purchase, request: bytes) -> Told:
            with SetWorkflowID(key):
                return order(purchase, request)

        async def place(key: str, body: bytes) -> Answer:
            request = fingerprint(body)
            loop = asyncio.get_running_loop()
            began_with, status, reply = await loop.run_in_executor(threads, run, key, read(body), request)
            return (status, reply) if began_with == request else (409, REUSED)

        with ThreadPoolExecutor(THREADS) as threads:
            yield place
        DBOS.destroy()

    return Edge(opened)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--skus", default=1000, show_default=True)
def main(port: int, skus: int) -> None:
    """Serve orders from the database at TCC_DATABASE_URL."""
    url = os.environ["TCC_DATABASE_URL"]
    asyncio.run(prepare(url, skus))
    serve(create(url), port)


if __name__ == "__main__":
    main()
