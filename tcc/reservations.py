"""Applies Try and Move commands to the reservations of one resource, many at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import DONE, REPEATED, Move, Outcome, ReservationView, Try, View
from tcc.db import Conflict, fetch
from tcc.machine import RESERVATION, Event, Machine, Reason, State
from tcc.resource import Resource
from tcc.sql import bury_sql, found_sql, move_sql, try_sql

AGAIN = "again"
"""The code of a command that must be applied once more in the same transaction: others came first."""

STATES: Final = {state.value: state for state in State}

_encode = msgspec.json.Encoder().encode


def reservation_view(row: Sequence[Any]) -> ReservationView:
    """A reservation from a row whose last columns are those of `tcc.sql.RESERVATION_VIEW`."""
    resource, id, state, *rest = row[-15:]
    return ReservationView(resource, id, STATES[state], *rest)


class Tries:
    """The Try of one resource.

    The statement says only what didn't go as it was asked for: what a reservation looks like that did, we know.
    """

    def __init__(self, resource: Resource, *, lease_seconds: float) -> None:
        self._sql = text(try_sql(resource.name, resource.effects, external=resource.external))
        self._found_sql = text(found_sql(resource.name))
        self._lease_seconds = lease_seconds
        self._held = State.TRYING if resource.external else State.TRIED

    async def apply(self, connection: AsyncConnection, commands: Sequence[Try]) -> list[Outcome[ReservationView]]:
        """One outcome for each command, in their order. A refusal's code is the resource's, or of `tcc.errors`."""
        parameters = {"commands": _encode(commands).decode(), "lease_seconds": self._lease_seconds}
        rows = await fetch(connection, self._sql, parameters)
        now = rows[0][0]
        outcomes = [Outcome(DONE, _as_asked(command, self._held, now), now) for command in commands]
        known = []
        for _, ord, code, kept, detail in rows:
            if code == "known":
                known.append(ord - 1)
            elif ord is not None:
                view = _as_asked(commands[ord - 1], State.REFUSED, now, code, detail) if kept else None
                outcomes[ord - 1] = Outcome(code, None if code == AGAIN else view, now, detail)
        if known:
            for row in await _find(connection, self._found_sql, [commands[n] for n in known]):
                outcomes[known[row[0] - 1]] = _repeated(row[1], reservation_view(row), now)
        return outcomes


def _as_asked(
    command: Try, state: State, now: datetime, reason: str | None = None, detail: Any = None
) -> ReservationView:
    """The reservation that a Try has just recorded."""
    expires_at = now + timedelta(seconds=command.ttl_seconds)
    return ReservationView(
        command.resource,
        command.id,
        state,
        reason,
        command.reference,
        command.transaction_id,
        command.claim,
        detail,
        None,
        None,
        0,
        expires_at,
        None,
        now,
        now,
    )


def _repeated(same: bool, view: ReservationView, now: datetime) -> Outcome[ReservationView]:
    """What to answer to a Try whose id is there already."""
    code = REPEATED if same else "id_reused"
    if view.state in (State.CANCELLED, State.CANCELLING):
        code = "expired" if view.reason == Reason.EXPIRED else "already_cancelled"
    elif view.state is State.REFUSED and same:
        code = view.reason or "already_refused"
    return Outcome(code, view, now, view.detail)


def verdict(machine: Machine, event: Event, row: Sequence[Any], found: Any) -> str:
    """The code of what became of an event that moved nothing, from the row that one of the statements that move has
    for it, and the view of what it found."""
    _, _, _, before, allowed, in_time, owned, *_ = row
    if not owned:
        return "part_of_transaction"
    if allowed and not in_time:
        return "not_expired" if event is Event.EXPIRE else "expired"
    return machine.code(event, STATES[before], found.reason)


async def _find(connection: AsyncConnection, statement: TextClause, commands: Sequence[Any]) -> list[Any]:
    """The rows that are there under the ids of commands: (ord, same, the reservation's columns)."""
    return await fetch(connection, statement, {"commands": _encode(commands).decode()})


async def moved(
    machine: Machine,
    commands: Sequence[Any],
    rows: Sequence[Any],
    view: Callable[[Any], View],
    find: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]],
) -> list[Outcome[View]]:
    """The outcomes of events, in their order, from the rows of one of the statements that move.

    Those that moved nothing aren't shown by the statement: `find` gives the rows of such commands.
    """
    now = rows[0][0]
    outcomes = [Outcome[View]("not_found", None, now)] * len(commands)
    others = []
    for row in rows:
        if row[2] == "moved":
            outcomes[row[1] - 1] = Outcome(DONE, view(row), now)
        elif row[1] is not None:
            others.append(row)
    if others:
        found = await find([commands[row[1] - 1] for row in others])
        views = {there[0]: view(there) for there in found}
        for n, row in enumerate(others, start=1):
            code = verdict(machine, commands[row[1] - 1].event, row, views[n])
            outcomes[row[1] - 1] = Outcome(code, views[n], now)
    return outcomes


class Moves:
    """Every event of one resource's reservations."""

    def __init__(self, resource: Resource, *, lease_seconds: float) -> None:
        self._sql = text(move_sql(resource.name, resource.effects, external=resource.external))
        self._found_sql = text(found_sql(resource.name))
        self._bury_sql = text(bury_sql(resource.name))
        self._lease_seconds = lease_seconds

    async def apply(self, connection: AsyncConnection, commands: Sequence[Move]) -> list[Outcome[ReservationView]]:
        """One outcome for each command, in their order."""
        parameters = {"commands": _encode(commands).decode(), "lease_seconds": self._lease_seconds}
        rows = await fetch(connection, self._sql, parameters)
        find = partial(_find, connection, self._found_sql)
        outcomes = await moved(RESERVATION, commands, rows, reservation_view, find)
        empty = [n for n, command in enumerate(commands) if command.event is Event.CANCEL and not outcomes[n].view]
        if empty:
            buried = await self._bury(connection, [commands[n] for n in empty])
            for n, outcome in zip(empty, buried, strict=True):
                outcomes[n] = outcome
        return outcomes

    async def _bury(self, connection: AsyncConnection, cancels: Sequence[Move]) -> list[Outcome[ReservationView]]:
        """Leave tombstones for cancels of ids that were never tried."""
        rows = await _find(connection, self._bury_sql, cancels)
        if len(rows) < len(cancels):
            # A Try of the same id committed after our snapshot. Its row comes before what we have locked by now.
            raise Conflict("An id was tried while its cancel looked for it.")
        views = {row[0]: reservation_view(row) for row in rows}
        return [Outcome(DONE, views[n], views[n].updated_at) for n in range(1, len(cancels) + 1)]
