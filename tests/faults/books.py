"""The books, read past everything that is being tested: both databases, and the gateway's own ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import asyncpg
import msgspec

from tcc.dev.programs import LOOPBACK
from tests.faults.fleet import Fleet

AWAY: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, aiohttp.ClientError, TimeoutError)
"""What reading raises while what is read from is broken."""

PAGE: Final = 1000


class Books:
    """Reads; connects anew whenever it must."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession) -> None:
        self._fleet = fleet
        self._session = session
        self._connections: dict[int, asyncpg.Connection[Any]] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, fleet: Fleet) -> AsyncIterator[Books]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            books = cls(fleet, session)
            try:
                yield books
            finally:
                for connection in books._connections.values():
                    connection.terminate()

    async def home(self, sql: str, *arguments: Any) -> Sequence[Any]:
        """Rows of the database of inventory, orders and transactions."""
        return await self._rows(self._fleet.home.port, sql, arguments)

    async def payments(self, sql: str, *arguments: Any) -> Sequence[Any]:
        """Rows of the database of payments."""
        return await self._rows(self._fleet.payments.port, sql, arguments)

    async def _rows(self, port: int, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        connection = self._connections.get(port)
        if connection is None or connection.is_closed():
            connection = await asyncpg.connect(
                host=LOOPBACK, port=port, user="postgres", database="tcc", timeout=5, command_timeout=30
            )
            self._connections[port] = connection
        try:
            return await connection.fetch(sql, *arguments)
        except BaseException:
            connection.terminate()
            raise

    async def ledger(self, after: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        """What the gateway did after line `after`: lines, the accounts they speak of, the last line's number."""
        lines: list[dict[str, Any]] = []
        accounts: dict[str, dict[str, Any]] = {}
        while True:
            url = f"{self._fleet.sandbox_url}/ledger?after={after}&limit={PAGE}"
            async with self._session.get(url) as reply:
                page = msgspec.json.decode(await reply.read())
            lines += page["operations"]
            accounts |= {one["authorisation"]["id"]: one for one in page["accounts"]}
            after = max([after, *(line["seq"] for line in page["operations"])])
            if page["next"] is None:
                return lines, list(accounts.values()), after


async def eventually_empty(read: Any, *, within: float, every: float = 0.5) -> Sequence[Any]:
    """Read until there is nothing left, or the time is over; what was left then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        try:
            left: Sequence[Any] = await read()
        except AWAY:
            left = ["it can't be read"]
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(every)
