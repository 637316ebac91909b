"""Applies Try and Move commands to the reservations of one resource, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import DONE, REPEATED, Move, Outcome, ReservationView, Try, View
from tcc.db import Conflict, fetch
from tcc.machine import RESERVATION, Event, Machine, Reason, State
from tcc.resource import Resource
from tcc.sql import bury_sql, move_sql, try_sql

AGAIN = "again"
"""The code of a command that must be applied once more in the same transaction: others came first."""

_encode = msgspec.json.Encoder().encode


def reservation_view(row: Any) -> ReservationView:
    """A reservation from a row that has the columns of `tcc.sql.RESERVATION_VIEW`."""
    return ReservationView(
        resource=row.resource,
        id=row.id,
        state=State(row.state),
        reason=row.reason,
        reference=row.reference,
        transaction_id=row.transaction_id,
        claim=row.claim,
        detail=row.detail,
        attention=row.attention,
        attention_since=row.attention_since,
        attempts=row.attempts,
        expires_at=row.expires_at,
        extendable_until=row.expires_cap,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


class Tries:
    """The Try of one resource."""

    def __init__(self, resource: Resource, *, lease_seconds: float) -> None:
        self._sql = text(try_sql(resource.name, resource.effects, external=resource.external))
        self._lease_seconds = lease_seconds
        self._external = resource.external

    async def apply(self, connection: AsyncConnection, commands: Sequence[Try]) -> list[Outcome[ReservationView]]:
        """One outcome for each command, in their order. A refusal's code is the resource's, or of `tcc.errors`."""
        parameters: dict[str, Any] = {"commands": _encode(commands).decode()}
        if self._external:
            parameters["lease_seconds"] = self._lease_seconds
        rows = await fetch(connection, self._sql, parameters)
        found = {row.ord: self._outcome(row) for row in rows}
        return [found[n] for n in range(1, len(commands) + 1)]

    def _outcome(self, row: Any) -> Outcome[ReservationView]:
        if row.id is None:
            return Outcome(row.code, None, row.now, detail=row.refusal)
        view = reservation_view(row)
        code: str = row.code
        if row.known:
            if view.state in (State.CANCELLED, State.CANCELLING):
                code = "expired" if view.reason == Reason.EXPIRED else "already_cancelled"
            elif view.state is State.REFUSED and code == REPEATED:
                code = view.reason or "already_refused"
        return Outcome(code, view, row.now, detail=view.detail)


def verdict(machine: Machine, event: Event, row: Any) -> str:
    """The code of what became of an event, from a row of one of the statements that move."""
    if row.how == "moved":
        return DONE
    if not row.owned:
        return "part_of_transaction"
    if row.allowed and not row.in_time:
        return "not_expired" if event is Event.EXPIRE else "expired"
    return machine.code(event, State(row.before), row.reason)


def moved(
    machine: Machine,
    events: Sequence[Event],
    rows: Sequence[Any],
    view: Callable[[Any], View],
    missing: Sequence[str],
) -> list[Outcome[View]]:
    """The outcomes of events, from the rows of one of the statements that move; `missing` where there is no row."""
    now = rows[0].now
    found = {row.ord: Outcome(verdict(machine, events[row.ord - 1], row), view(row), now) for row in rows if row.ord}
    return [found.get(n) or Outcome(code, None, now) for n, code in enumerate(missing, start=1)]


class Moves:
    """Every event of one resource's reservations."""

    def __init__(self, resource: Resource, *, lease_seconds: float) -> None:
        self._sql = text(move_sql(resource.name, resource.effects, external=resource.external))
        self._bury_sql = text(bury_sql(resource.name))
        self._lease_seconds = lease_seconds

    async def apply(self, connection: AsyncConnection, commands: Sequence[Move]) -> list[Outcome[ReservationView]]:
        """One outcome for each command, in their order."""
        parameters = {"commands": _encode(commands).decode(), "lease_seconds": self._lease_seconds}
        rows = await fetch(connection, self._sql, parameters)
        outcomes = moved(
            RESERVATION,
            [command.event for command in commands],
            rows,
            reservation_view,
            ["not_found"] * len(commands),
        )
        empty = [n for n, command in enumerate(commands) if command.event is Event.CANCEL and not outcomes[n].view]
        if empty:
            buried = await self._bury(connection, [commands[n] for n in empty])
            for n, outcome in zip(empty, buried, strict=True):
                outcomes[n] = outcome
        return outcomes

    async def _bury(self, connection: AsyncConnection, cancels: Sequence[Move]) -> list[Outcome[ReservationView]]:
        """Leave tombstones for cancels of ids that were never tried."""
        rows = await fetch(connection, self._bury_sql, {"commands": _encode(cancels).decode()})
        if len(rows) < len(cancels):
            # A Try of the same id committed after our snapshot. Its row comes before what we have locked by now.
            raise Conflict("An id was tried while its cancel looked for it.")
        views = {row.ord: reservation_view(row) for row in rows}
        return [Outcome(DONE, views[n], views[n].updated_at) for n in range(1, len(cancels) + 1)]
