"""What became of Try and Move commands of reservations, read from the rows of the statements that applied them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import msgspec

from tcc.commands import DONE, MOMENT, REPEATED, Foreseen, Move, MoveTransaction, Outcome, ReservationView, Try, View
from tcc.machine import RESERVATION, Event, Guard, Machine, Reason, State
from tcc.sql import ROW

_encode = msgspec.json.Encoder().encode

STATES: Final = {state.value: state for state in State}

# A row's columns by their position: by name, reading them costs as much as all else that is done with a batch here.
_NOW, ORD, _HOW, _SOURCE, _ALLOWED, _IN_TIME, _OWNED, _KEPT, _SAME, _DETAIL = map(
    list(ROW).index, ("now", "ord", "how", "source", "allowed", "in_time", "owned", "kept", "same", "detail")
)


def reservation_view(row: Sequence[Any]) -> ReservationView:
    """A reservation from a row whose last columns are those of `tcc.sql.RESERVATION_VIEW`."""
    resource, id, state, *rest = row[-15:]
    return ReservationView(resource, id, STATES[state], *rest)


def tried(commands: Sequence[Try], rows: Sequence[Any], held: State) -> list[Outcome[ReservationView]]:
    """The outcomes of Tries, in their order; what they have come to where nothing stood against them is `held`. A
    refusal's code is the resource's, or of `tcc.errors`."""

    def refused(command: Try, row: Sequence[Any]) -> Outcome[ReservationView]:
        code, now, detail = row[_HOW], row[_NOW], row[_DETAIL]
        view = as_asked(command, now, State.REFUSED, code, detail) if row[_KEPT] else None
        return Outcome(code, view, now, detail)

    return recorded(
        commands,
        rows,
        lambda command, now: as_asked(command, now, held),
        refused,
        lambda row, now: _repeated(row[_SAME], reservation_view(row), now),
    )


def recorded(
    commands: Sequence[Any],
    rows: Sequence[Any],
    as_asked: Callable[[Any, datetime], View],
    refused: Callable[[Any, Sequence[Any]], Outcome[View]],
    repeated: Callable[[Sequence[Any], datetime], Outcome[View]],
) -> list[Outcome[View]]:
    """The outcomes of commands that record something, in their order.

    The rows name those that didn't go as they were asked for, and say when the others were recorded: what these look
    like we know. Where a turn left some to be decided again, the next turn's rows follow, with a time of their own.
    """
    outcomes: list[Any] = [None] * len(commands)
    left: Sequence[int] = range(len(commands))
    now: Any = None
    for time, turn in groupby(rows, itemgetter(_NOW)):
        if time is None:
            for row in turn:
                outcomes[row[ORD] - 1] = repeated(row, now)
            continue
        now = time
        named = {row[ORD] - 1: row for row in turn if row[ORD] is not None}
        for n in left:
            outcomes[n] = (
                refused(commands[n], named[n]) if n in named else Outcome(DONE, as_asked(commands[n], now), now)
            )
        left = [n for n, row in named.items() if row[_HOW] == "again"]
    return outcomes


def as_asked(
    command: Try, now: datetime, state: State, reason: str | None = None, detail: Any = None
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


def moved(
    machine: Machine, commands: Sequence[Any], rows: Sequence[Any], view: Callable[[Any], View]
) -> list[Outcome[View]]:
    """The outcomes of events, in their order."""
    outcomes: list[Any] = [None] * len(commands)
    found: dict[int, Any] = {}
    for row in rows:
        how, n = row[_HOW], row[ORD] - 1
        if how in ("moved", "buried"):
            outcomes[n] = Outcome(DONE, view(row), row[_NOW])
        elif how == "missing":
            outcomes[n] = Outcome("not_found", None, row[_NOW])
        elif how == "found":
            found[n] = row
        else:
            seen = view(row)
            outcomes[n] = Outcome(_verdict(machine, commands[n].event, found[n], seen), seen, found[n][_NOW])
    return outcomes


def _verdict(machine: Machine, event: Event, row: Sequence[Any], seen: Any) -> str:
    """The code of what became of an event that moved nothing, from its row, and the view of what it found."""
    if not row[_OWNED]:
        return "part_of_transaction"
    if row[_ALLOWED] and not row[_IN_TIME]:
        return "not_expired" if event is Event.EXPIRE else "expired"
    return machine.code(event, STATES[row[_SOURCE]], seen.reason)


_AHEAD: Final = frozenset(Event) - {Event.POSTPONE, Event.RETRY, Event.EXTEND}
_TARGET: Final = {True: cache(RESERVATION.target), False: cache(RESERVATION.local().target)}
"""By whether the effects are elsewhere."""
_guard: Final = cache(RESERVATION.guard)


def followed(
    view: Any, command: Move | MoveTransaction, target: State | None, guard: Guard, **more: Any
) -> Foreseen | None:
    """What the event that leads to `target` leaves behind if nobody else moves the row before; None where there is no
    saying."""
    if target is None or command.event not in _AHEAD:
        return None
    after = msgspec.structs.replace(
        view,
        state=target,
        reason=command.reason or view.reason,
        detail=view.detail if command.detail is None else msgspec.Raw(_encode(command.detail)),
        attention=None,
        attention_since=None,
        attempts=0,
        updated_at=MOMENT,
        **more,
    )
    return Foreseen(after, view, guard)


def foresee(view: ReservationView, command: Move, *, external: bool) -> Foreseen | None:
    """What a move leaves behind if nobody else moves the reservation before; None where there is no saying."""
    if command.transaction_id != view.transaction_id:
        return None
    cap = command.cap or view.extendable_until
    until = min(view.expires_at, cap) if cap else view.expires_at
    target = _TARGET[external](command.event, view.state)
    guard = _guard(command.event)
    if guard is Guard.LIVE and command.transaction_id:  # its time is that of its transaction
        guard = Guard.ANY
    return followed(view, command, target, guard, expires_at=until, extendable_until=cap)


def moved_reservations(commands: Sequence[Move], rows: Sequence[Any]) -> list[Outcome[ReservationView]]:
    """The outcomes of events of reservations, in their order."""
    return moved(RESERVATION, commands, rows, reservation_view)
