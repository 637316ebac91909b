"""Responses sent in one piece: what is written while the event loop goes round is one write to the socket.

uvicorn writes the head of a response, and then its body, and uvloop hands each to the kernel at once. That is a system
call more than it takes, and the client is woken for half an answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, on a transport that gathers what is written."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathering = _Gathering(transport, self.loop)
        super().connection_made(self._gathering)  # type: ignore[arg-type]

    def eof_received(self) -> None:
        """Send what was written: the client asks nothing more, but it listens, and the transport is closed now."""
        self._gathering.send()


class _Gathering:
    """A transport that writes when the event loop comes round; in all else the one that it was given."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self.send)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, and close."""
        self.send()
        self._transport.close()

    def send(self) -> None:
        if self._written and not self._transport.is_closing():  # else the client went away meanwhile
            self._transport.write(b"".join(self._written))
        self._written.clear()
