"""Never answering: an ASGI server answers 500 for an application that says nothing, so this goes below it."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Response
from litestar.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "tcc.drop"


class DroppableProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which also hands the application a way to drop its connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"drop": self.transport.abort}}


class LostReply(Response[None]):
    """Holds the connection for so many seconds, or until the client has gone, and drops it."""

    def __init__(self, held_seconds: float) -> None:
        super().__init__(None)
        self._held_seconds = held_seconds

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Litestar calls what this returns as an ASGI application."""
        return self._hold

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._held_seconds):
                await _gone(receive)
        except (TimeoutError, asyncio.CancelledError):  # cancelled: the server is stopping
            extensions: dict[str, Any] = scope["extensions"] or {}
            extensions[EXTENSION]["drop"]()
            await _gone(receive)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
