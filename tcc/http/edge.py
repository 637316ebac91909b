"""The outermost layer of the API: correlation ids, the access log, card numbers in addresses, and what stopping means.

One plain ASGI callable, because Litestar's `after_request` is not called on every error reply.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog

from tcc.errors import Unavailable
from tcc.http.cards import has_card_number
from tcc.http.direct import Direct
from tcc.http.draining import Draining
from tcc.http.replies import Replies
from tcc.http.requests import card_number_refused, correlation
from tcc.http.respond import headers_of
from tcc.idempotency import Reply

log = structlog.get_logger("tcc.access")

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_CUT_OFF = (
    "The service is stopping; what you asked for may or may not have happened. "
    "Ask again with the same Idempotency-Key or id: it is never done twice."
)


class Edge:
    """Wraps the application. Puts `correlation_id` and `headers` into the request's state, and the id into replies."""

    def __init__(self, application: Any, replies: Replies, direct: Direct, draining: Draining) -> None:
        self._application = application
        self._replies = replies
        self._direct = direct
        self._draining = draining
        self._log = log.bind()  # once for all: an unbound one finds out how it is configured each time

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        correlation_id, traceparent = correlation(headers)
        scope.setdefault("state", {}).update(correlation_id=correlation_id, headers=headers)
        ids = [(b"x-correlation-id", correlation_id.encode()), (b"traceparent", traceparent.encode())]
        way_out = _WayOut(send, ids, self._draining)
        path = scope["path"]
        try:
            if has_card_number(_plain(scope["raw_path"] + b"?" + scope["query_string"])):
                path = "(refused)"
                await way_out.reply(self._replies.of_error(card_number_refused("path"), correlation_id))
            elif handler := self._direct.handler(scope):
                if reply := await self._direct.reply(handler, scope, receive):
                    await way_out.reply(reply)
            else:
                await self._application(scope, receive, way_out)
        except asyncio.CancelledError:  # by the server, which is stopping, and has no more patience
            if way_out.status or not self._draining.begun:
                raise
            await way_out.reply(self._replies.of_error(Unavailable("outcome_unknown", _CUT_OFF), correlation_id))
        if path not in _QUIET:
            self._log.info(
                "request",
                method=scope["method"],
                path=path,
                status=way_out.status,
                seconds=round(time.perf_counter() - started, 6),
                correlation_id=correlation_id,
            )


class _WayOut:
    """`send` of a request: puts headers of ours on the answer, and remembers its status."""

    def __init__(self, send: Any, ids: list[tuple[bytes, bytes]], draining: Draining) -> None:
        self.status = 0
        self._send = send
        self._ids = ids
        self._draining = draining

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._ids]
            if self._draining.begun:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def reply(self, reply: Reply) -> None:
        """Answer with one of our replies."""
        headers = headers_of(reply)
        if reply.status != 204:  # which has no body, and must not say how long it is (RFC 9110, 8.6)
            headers.append((b"content-length", b"%d" % len(reply.body)))
        await self({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self({"type": "http.response.body", "body": reply.body})


def _plain(quoted: bytes) -> bytes:
    """A part of an address, as it was before it was quoted."""
    quoted = quoted.replace(b"+", b" ")
    return unquote_to_bytes(quoted) if b"%" in quoted else quoted
