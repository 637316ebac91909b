"""Single reservations: tried, confirmed, cancelled, extended, and driven to rest where the outside must be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec

from tcc import reservations
from tcc.asking import Asking, fields
from tcc.commands import DONE, Command, Context, Foreseen, Move, Outcome, ReservationView, Try
from tcc.groups import Group, Result
from tcc.idempotency import Claim, KeyRef, Reply
from tcc.machine import RESTING, Event, Reason
from tcc.settings import Settings
from tcc.stores import Stores

ReservationReply = Callable[[Outcome[ReservationView]], Reply | None]
"""The reply to a request, or None while the reservation rests and there is nothing final to say."""


class Reserver:
    """What can be asked of one reservation on its own."""

    def __init__(self, stores: Stores, asking: Asking, settings: Settings) -> None:
        self._stores = stores
        self._asking = asking
        self._settings = settings

    async def hold(
        self,
        context: Context,
        *,
        resource: str,
        id: UUID,
        raw: msgspec.Raw,
        ttl_seconds: float,
        reference: str | None,
        claim: Claim | None,
        reply: ReservationReply | None,
    ) -> Result:
        """Try: record the reservation, and hold what is local. A `trying` one is then to be settled."""
        command = Try(
            **fields(context),
            id=id,
            resource=resource,
            claim=raw,
            ttl_seconds=ttl_seconds,
            reference=reference,
        )
        return await self._submit(resource, command, claim, None, reply)

    async def move(
        self,
        context: Context,
        *,
        resource: str,
        id: UUID,
        event: Event,
        reason: Reason | None = None,
        ttl_seconds: float | None = None,
        claim: Claim | None = None,
        reply: ReservationReply | None = None,
    ) -> Result:
        """Confirm, cancel, expire, extend or retry. One that rests afterwards is then to be settled."""
        command = Move(**fields(context), id=id, resource=resource, event=event, reason=reason, ttl_seconds=ttl_seconds)
        return await self._submit(resource, command, claim, None, reply)

    async def settle(
        self,
        context: Context,
        view: ReservationView,
        *,
        answers: KeyRef | None = None,
        reply: ReservationReply | None = None,
        patience_seconds: float = 0,
    ) -> Result:
        """Ask the outside until the reservation no longer rests, or `patience_seconds` are over. What the last answer
        came to, with the reply that is then stored under `answers`.

        What is left is for a sweep: the row says when it is due.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_seconds
        result = Result([Outcome(DONE, view, view.updated_at)])
        resting: ReservationView | None = view
        while resting is not None and resting.state in RESTING and not resting.attention:
            move = await self._asking.ask(context, resting)
            seconds = move.retry_seconds or 0
            patient = move.event is Event.POSTPONE and not move.attention and loop.time() + seconds < until
            if patient:
                # One that we shall ask again ourselves isn't due to anybody else before we had our turn.
                move = msgspec.structs.replace(move, retry_seconds=seconds + self._settings.lease_seconds)
            foreseen = reservations.foresee(resting, move, external=True)
            result = await self._submit(view.resource, move, None, answers, reply, foreseen)
            resting = result.outcomes[0].view
            if move.event is Event.POSTPONE:
                if not patient:
                    break
                await asyncio.sleep(seconds)
        return result

    async def _submit(
        self,
        resource: str,
        command: Command,
        claim: Claim | None,
        answers: KeyRef | None,
        reply: ReservationReply | None,
        foreseen: Foreseen | None = None,
    ) -> Result:
        def render(outcomes: Any) -> Reply | None:
            return reply(outcomes[0]) if reply else None

        return await self._stores.of(resource).submit(
            Group(
                commands=[command],
                claim=claim,
                answers=answers,
                render=render if reply else None,
                foreseen=[foreseen] if foreseen else None,
            )
        )
