"""A server that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answerer = Callable[[Asked], tuple[int, dict[str, str], bytes] | None]
"""Status, headers and body; None closes the connection instead."""


class Answering:
    """Where it listens, what it was asked, and over how many connections. While `gate` is closed nobody is answered."""

    def __init__(self, answer: Answerer) -> None:
        self.port = 0
        self.asked: list[Asked] = []
        self.connections = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.gate_opens_at: int | None = None
        """Open the gate once so many were asked."""
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                asked = await _read(reader)
                self.asked.append(asked)
                if len(self.asked) == self.gate_opens_at:
                    self.gate.set()
                await self.gate.wait()
                answer = self._answer(asked)
                if answer is None:
                    return
                status, headers, body = answer
                lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
                head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()
                writer.write(head[:20])
                await writer.drain()
                writer.write(head[20:] + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request, *lines = head.strip().split("\r\n")
    method, path, _ = request.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@asynccontextmanager
async def answering(answer: Answerer) -> AsyncIterator[Answering]:
    """Such a server, on a free port."""
    one = Answering(answer)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one
        one.gate.set()
