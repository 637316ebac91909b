"""PostgreSQL: backends killed and frozen, the server stopped, demoted, overcrowded, and without a byte to write on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg

from tcc.dev.programs import LOOPBACK, ServerError
from tcc.dev.servers import PostgresServer
from tests.faults.disk import no_small_disk
from tests.faults.stage import Fault, Stage

KILL_OURS: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tcc%'"


async def _connect(server: PostgresServer) -> asyncpg.Connection[Any]:
    return await asyncpg.connect(host=LOOPBACK, port=server.port, user="postgres", database="tcc", timeout=5)


async def _tell(server: PostgresServer, *statements: str) -> list[Any]:
    connection = await _connect(server)
    try:
        found: list[Any] = []
        for statement in statements:
            found = await connection.fetch(statement)
        return found
    finally:
        await connection.close()


async def backends_killed(stage: Stage) -> None:
    for _ in range(3):
        stage.hit()
        await asyncio.gather(_tell(stage.fleet.home, KILL_OURS), _tell(stage.fleet.payments, KILL_OURS))
        await stage.hold(0.1, 0.8)


def stopped(how: Callable[[PostgresServer], None]) -> Callable[[Stage], Awaitable[None]]:
    """The server is gone, and comes back after crash recovery."""

    async def play(stage: Stage) -> None:
        server: PostgresServer = stage.choose(stage.fleet.home, stage.fleet.payments)
        stage.hit()
        await asyncio.to_thread(how, server)
        await stage.hold(0.2, 2.5)
        await asyncio.to_thread(server.start)

    return play


async def backend_frozen(stage: Stage) -> None:
    """One backend does nothing more, locks and all, and tells nobody."""
    server: PostgresServer = stage.choose(stage.fleet.home, stage.fleet.payments)
    busy = f"{KILL_OURS.replace('pg_terminate_backend(pid)', 'pid')} ORDER BY (state = 'active') DESC, random() LIMIT 1"
    pid = (await _tell(server, busy))[0]["pid"]
    stage.hit()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        await stage.hold(4, 8)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def demoted(stage: Stage) -> None:
    """A primary that takes no writes any more, though connections to it are as good as ever."""
    server: PostgresServer = stage.choose(stage.fleet.home, stage.fleet.payments)
    stage.hit()
    await _tell(server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        await stage.hold(1, 4)
    finally:
        off = "SET default_transaction_read_only = off"
        await _tell(server, off, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


async def overcrowded(stage: Stage) -> None:
    """All connections are taken by others, and ours are gone."""
    server: PostgresServer = stage.choose(stage.fleet.home, stage.fleet.payments)
    others: list[asyncpg.Connection[Any]] = []
    ours = await _connect(server)
    try:
        stage.hit()
        for _ in range(3):
            await ours.fetch(KILL_OURS)
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await _connect(server))
        await stage.hold(1, 4)
    finally:
        for connection in (ours, *others):
            connection.terminate()


async def disk_full(stage: Stage) -> None:
    """Not a byte is left for payments' PostgreSQL; what it does then is its own affair, down to ending itself."""
    server = stage.fleet.payments
    filler = server.data / "filler"
    stage.hit()
    await asyncio.to_thread(_fill, filler)
    try:
        await stage.hold(3, 6)
    finally:
        filler.unlink()
        if not server.running or not await _answers(server):
            with suppress(ServerError):
                await asyncio.to_thread(server.stop, "immediate")
            await asyncio.to_thread(server.start)


def _fill(filler: Path) -> None:
    """Take what is left of the disk, to the last byte."""
    with filler.open("wb", buffering=0) as file:
        size = 0
        for step in (16 << 20, 1 << 20, 4096):
            with suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step


async def _answers(server: PostgresServer) -> bool:
    try:
        await _tell(server, "SELECT 1")
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False
    return True


FAULTS: Final = (
    Fault("PostgreSQL: backends killed", backends_killed),
    Fault("PostgreSQL: stopped (immediate)", stopped(lambda server: server.stop("immediate"))),
    Fault("PostgreSQL: killed", stopped(PostgresServer.kill)),
    Fault("PostgreSQL: a backend frozen", backend_frozen),
    Fault("PostgreSQL: read-only", demoted),
    Fault("PostgreSQL: no connections left", overcrowded),
    Fault("PostgreSQL: disk full", disk_full, no_small_disk),
)
