"""A TCP proxy that can be slow, deaf, rude or overworked."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from tcc.dev.programs import LOOPBACK, free_port

CHUNK = 64 * 1024
TOO_MANY = (
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {}\r\nContent-Type: application/json\r\n"
    "Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
)


class Connection:
    """One client's connection, and ours to the server behind."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.client, self.server = writers
        self.cut_at_reply = False
        self.late_seconds = 0.0

    def abort(self) -> None:
        """Reset both ends."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Stands between a client and one server. What it does to what passes is set from outside, at any time."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.delay_seconds = 0.0
        """Added to whatever passes, either way."""
        self.refusing = False
        """New connections are reset at once."""
        self.cut_on: bytes | None = None
        """A client's message with these bytes reaches the server, and its reply nobody."""
        self.cut_share = 1.0
        """The share of such messages that are cut."""
        self.overworked: tuple[int, ...] = ()
        """Every HTTP request is answered 429, with one of these as its Retry-After, and forgotten."""
        self.refusals = 0
        self.late_on: tuple[bytes, float] | None = None
        """Replies to a client's message with these bytes come so many seconds late."""
        self.cuts = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, backlog=512)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.reset()
        self._passing.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Reset every connection that is open."""
        for connection in list(self._connections):
            connection.abort()

    def swallow(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._passing.clear()

    def heal(self) -> None:
        """Let everything pass as if nothing had happened; what was held back comes now."""
        self.delay_seconds, self.refusing, self.overworked = 0.0, False, ()
        self.cut_on, self.late_on = None, None
        self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):  # cancelled: the proxy stops
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if self.refusing:
            return
        behind, to_server = await asyncio.open_connection(LOOPBACK, self._target_port)
        connection = Connection((writer, to_server))
        self._connections.add(connection)
        ways = [
            asyncio.create_task(self._upward(connection, reader)),
            asyncio.create_task(self._downward(connection, behind)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._connections.discard(connection)
            await _finish(connection)

    async def _upward(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            await self._hold_up()
            if self.overworked:
                self.refusals += 1
                connection.client.write(TOO_MANY.format(random.choice(self.overworked)).encode())
                await connection.client.drain()
                with suppress(TimeoutError):  # to close at once would reset the reply on its way
                    async with asyncio.timeout(1):
                        await reader.read(CHUNK)
                return
            if self.cut_on and self.cut_on in data and random.random() < self.cut_share:
                self.cuts += 1
                connection.cut_at_reply = True
            if self.late_on and self.late_on[0] in data:
                connection.late_seconds = self.late_on[1]
            connection.server.write(data)
            await connection.server.drain()

    async def _downward(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            if connection.cut_at_reply:
                connection.abort()
                return
            await self._hold_up()
            if connection.late_seconds:
                await asyncio.sleep(connection.late_seconds)
                connection.late_seconds = 0.0
            connection.client.write(data)
            await connection.client.drain()

    async def _hold_up(self) -> None:
        await self._passing.wait()
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds * random.uniform(0.5, 1.5))


async def _finish(connection: Connection) -> None:
    for writer in (connection.client, connection.server):
        with suppress(OSError, TimeoutError):
            writer.close()
            async with asyncio.timeout(1):
                await writer.wait_closed()
