"""How every peer is served: as `bench.noop` and the API are, in one process, with nothing between uvicorn and the work
but what reads a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final

import msgspec
import uvicorn

from tcc.dev.programs import LOOPBACK
from tcc.http.gathering import GatheringProtocol

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, bytes]
"""A status and a body, in JSON."""
Place = Callable[[str, bytes], Awaitable[Answer]]
"""Places an order: its idempotency key and the request's body in, the answer out."""

_JSON: Final = (b"content-type", b"application/json")


class Edge:
    """The smallest ASGI application that takes orders. `opened` gives what places them, for as long as it runs."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Place]]) -> None:
        self._opened = opened
        self._place: Place | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/orders" and scope["method"] == "POST":
            await _send(send, await self._order(scope, receive))
        elif scope["path"] == "/healthz":
            await _send(send, (200, b"{}"))
        else:
            await _send(send, (404, b"{}"))

    async def _live(self, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            self._place = await stack.enter_async_context(self._opened())
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _order(self, scope: Scope, receive: Receive) -> Answer:
        assert self._place is not None
        key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
        if not key:
            return 400, b'{"code":"idempotency_key_missing"}'
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            return await self._place(key.decode("latin-1"), body)
        except msgspec.MsgspecError as error:
            return 400, msgspec.json.encode({"code": "invalid_request", "detail": str(error)})


async def _send(send: Send, answer: Answer) -> None:
    status, body = answer
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def serve(app: Callable[..., Any], port: int) -> None:
    """Serve until the process is told to end."""
    uvicorn.run(
        app,
        host=LOOPBACK,
        port=port,
        access_log=False,
        log_level="warning",
        loop="uvloop",
        http=GatheringProtocol,
        server_header=False,
        date_header=False,
        ws="none",
        proxy_headers=False,
        lifespan="on",
    )
