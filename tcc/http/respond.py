"""From a reply to a response, and from a key that somebody holds to the reply it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from litestar import Response

from tcc.errors import Rejected, Unavailable
from tcc.http.problems import MEDIA_TYPE
from tcc.http.replies import Outgoing
from tcc.idempotency import Claim, Held, Reply
from tcc.service import Service

T = TypeVar("T")

_PROBLEM = MEDIA_TYPE.encode()

Current = Callable[[Held], Awaitable[Reply | None]]
"""The reply to a request that crashed, from what there is now of its subject; None while that is under way, and for
no longer than the request itself would have waited: then it is the 202 that it would have been given."""


def headers_of(reply: Reply) -> list[tuple[bytes, bytes]]:
    """The headers of a reply, but for its length."""
    headers = [(b"content-type", _PROBLEM if reply.status >= 400 else b"application/json")] if reply.body else []
    if reply.location:
        headers.append((b"location", reply.location.encode()))
    retry_after_seconds = 1 if reply.status == 202 else 0
    if isinstance(reply, Outgoing):
        if reply.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        retry_after_seconds = reply.retry_after_seconds or retry_after_seconds
    if retry_after_seconds:
        headers.append((b"retry-after", b"%d" % retry_after_seconds))
    return headers


def respond(reply: Reply) -> Response[bytes]:
    """A reply as the framework sends it."""
    headers = {name.decode(): value.decode() for name, value in headers_of(reply)}
    return Response(reply.body, status_code=reply.status, headers=headers)


async def replay(
    service: Service,
    resource: str | None,
    claim: Claim,
    held: Held,
    current: Current,
) -> Reply:
    """Answer a request whose key is held: with the reply that is stored, or what the first request came to.

    Raises `Rejected` (`idempotency_key_reused`) and `Unavailable` (`request_in_flight`).
    """
    if held.fingerprint != claim.fingerprint:
        raise Rejected("idempotency_key_reused", "This Idempotency-Key was used before with another request.")
    reply = held.reply
    if reply is None and (now := await current(held)) is not None:
        reply = await service.answer(resource, claim.ref, now)
    if reply is None:
        raise Unavailable("request_in_flight", "The first request with this Idempotency-Key is still running.")
    return Outgoing(reply.status, reply.body, reply.location, replayed=True)


async def within(task: asyncio.Task[T], seconds: float) -> T | None:
    """The task's result, or None when it takes longer; it goes on then. Raises what it raised.

    `asyncio.wait` would do, but is a tenth of what an order costs the HTTP layer.
    """
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def end(*_: Any) -> None:
        if not over.done():
            over.set_result(None)

    task.add_done_callback(end)
    timer = loop.call_later(seconds, end)
    try:
        await over
    finally:
        timer.cancel()
    return task.result() if task.done() else None
