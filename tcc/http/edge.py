"""The outermost layer of the API: correlation ids, the access log, and card numbers in addresses.

One plain ASGI callable, because Litestar's `after_request` is not called on every error reply.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import structlog

from tcc.http.cards import has_card_number
from tcc.http.direct import Direct
from tcc.http.problems import MEDIA_TYPE, Problems
from tcc.http.requests import card_number_refused, correlation

log = structlog.get_logger("tcc.access")

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class Edge:
    """Wraps the application. Puts `correlation_id` and `headers` into the request's state, and the id into replies."""

    def __init__(self, application: Any, problems: Problems, direct: Direct) -> None:
        self._application = application
        self._direct = direct
        self._problems = problems

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        correlation_id, traceparent = correlation(headers)
        scope.setdefault("state", {}).update(correlation_id=correlation_id, headers=headers)
        extra = [(b"x-correlation-id", correlation_id.encode()), (b"traceparent", traceparent.encode())]
        status = 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        path = scope["path"]
        if has_card_number(_plain(scope["raw_path"])) or has_card_number(_plain(scope["query_string"])):
            path = "(refused)"
            problem = self._problems.of_error(card_number_refused("path"), correlation_id)
            await _send(sending, problem.status, msgspec.json.encode(problem))
        elif handler := self._direct.handler(scope):
            await self._direct.answer(handler, scope, receive, sending)
        else:
            await self._application(scope, receive, sending)
        if path not in _QUIET:
            log.info(
                "request",
                method=scope["method"],
                path=path,
                status=status,
                seconds=round(time.perf_counter() - started, 6),
                correlation_id=correlation_id,
            )


def _plain(quoted: bytes) -> bytes:
    """A part of an address, as it was before it was quoted."""
    quoted = quoted.replace(b"+", b" ")
    return unquote_to_bytes(quoted) if b"%" in quoted else quoted


async def _send(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
