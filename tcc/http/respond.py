"""From a reply to a response, and from a key that somebody holds to the reply it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from litestar import Response

from tcc.errors import Rejected, Unavailable
from tcc.http.problems import MEDIA_TYPE
from tcc.idempotency import Claim, Held, Reply
from tcc.service import Service

T = TypeVar("T")

Current = Callable[[Held], Awaitable[Reply | None]]
"""The reply to a request that crashed, from what there is now of its subject; None while that is under way, and for
no longer than the request itself would have waited: then it is the 202 that it would have been given."""


def respond(reply: Reply, *, replayed: bool = False, retry: bool = False) -> Response[bytes]:
    """A reply as it goes out: `replayed` where it is a stored one, `retry` where asking again soon is right."""
    headers = {}
    if reply.location:
        headers["Location"] = reply.location
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if retry or reply.status == 202:
        headers["Retry-After"] = "1"
    return Response(
        reply.body,
        status_code=reply.status,
        media_type=MEDIA_TYPE if reply.status >= 400 else "application/json",
        headers=headers,
    )


async def replay(
    service: Service,
    resource: str | None,
    claim: Claim,
    held: Held,
    current: Current,
) -> Response[bytes]:
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
    return respond(reply, replayed=True)


async def within(task: asyncio.Task[T], seconds: float) -> T | None:
    """The task's result, or None when it takes longer; it goes on then. Raises what it raised."""
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return task.result() if done else None
