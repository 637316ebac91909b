"""The outermost layer of the API: correlation ids, the access log, card numbers in addresses, and what stopping means.

One plain ASGI callable, because Litestar's `after_request` is not called on every error reply.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import structlog

from tcc.errors import TccError, Unavailable
from tcc.http.cards import has_card_number
from tcc.http.direct import Direct
from tcc.http.draining import Draining
from tcc.http.problems import MEDIA_TYPE, Problems, retry_after
from tcc.http.requests import card_number_refused, correlation

log = structlog.get_logger("tcc.access")

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_CUT_OFF = (
    "The service is stopping; what you asked for may or may not have happened. "
    "Ask again with the same Idempotency-Key or id: it is never done twice."
)


class Edge:
    """Wraps the application. Puts `correlation_id` and `headers` into the request's state, and the id into replies."""

    def __init__(self, application: Any, problems: Problems, direct: Direct, draining: Draining) -> None:
        self._application = application
        self._direct = direct
        self._problems = problems
        self._draining = draining

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
                if self._draining.begun:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        path = scope["path"]
        try:
            if has_card_number(_plain(scope["raw_path"])) or has_card_number(_plain(scope["query_string"])):
                path = "(refused)"
                await self._refuse(sending, card_number_refused("path"), correlation_id)
            elif handler := self._direct.handler(scope):
                await self._direct.answer(handler, scope, receive, sending)
            else:
                await self._application(scope, receive, sending)
        except asyncio.CancelledError:  # by the server, which is stopping, and has no more patience
            if status or not self._draining.begun:
                raise
            await self._refuse(sending, Unavailable("outcome_unknown", _CUT_OFF), correlation_id)
        if path not in _QUIET:
            log.info(
                "request",
                method=scope["method"],
                path=path,
                status=status,
                seconds=round(time.perf_counter() - started, 6),
                correlation_id=correlation_id,
            )

    async def _refuse(self, send: Any, error: TccError, correlation_id: str) -> None:
        """Answer a request with an error."""
        problem = self._problems.of_error(error, correlation_id)
        body = msgspec.json.encode(problem)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        if seconds := retry_after(problem, error):
            headers.append((b"retry-after", str(seconds).encode()))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _plain(quoted: bytes) -> bytes:
    """A part of an address, as it was before it was quoted."""
    quoted = quoted.replace(b"+", b" ")
    return unquote_to_bytes(quoted) if b"%" in quoted else quoted
