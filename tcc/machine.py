"""Every state, every event and every allowed transition of reservations and transactions.

This is the one place that says what may follow what. Python asks it (`Machine.code`), and the SQL that moves rows
is generated from it (`Machine.sql_target`), so the two cannot disagree. Nothing here does I/O.

A resource with an external effect (a card authorisation) *rests* in `trying`, `confirming` and `cancelling` while
the other side is asked. A resource whose effects are local passes through them inside one commit: its table of
transitions is the same one, with each resting state replaced by the state it leads to.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class State(StrEnum):
    """Where a reservation or a transaction stands."""

    TRYING = "trying"
    TRIED = "tried"
    REFUSED = "refused"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to a reservation or a transaction."""

    TRY_SUCCEEDED = "try_succeeded"
    TRY_REFUSED = "try_refused"
    CONFIRM = "confirm"
    CONFIRM_SUCCEEDED = "confirm_succeeded"
    CANCEL = "cancel"
    CANCEL_SUCCEEDED = "cancel_succeeded"
    EXPIRE = "expire"
    EXTEND = "extend"
    POSTPONE = "postpone"
    """Asked again later, or parked for a person; the state stays."""
    RETRY = "retry"
    """A person has looked at it: no longer parked, due at once."""
    COMMIT = "commit"
    """Transactions only: every branch is tried, and the coordinator decides to confirm."""


class Guard(StrEnum):
    """What the clock must say, read under the row's lock, for a transition to be allowed."""

    ANY = "any"
    LIVE = "live"
    EXPIRED = "expired"


class Reason(StrEnum):
    """Why something was cancelled."""

    REQUESTED = "requested"
    EXPIRED = "expired"
    TRANSACTION = "transaction"
    """The transaction that the reservation belongs to was cancelled."""
    REFUSED = "refused"
    """A branch of the transaction was refused."""
    NEVER_TRIED = "never_tried"
    """An empty cancel: the tombstone that a late Try will meet."""


class Transition(msgspec.Struct, frozen=True):
    event: Event
    source: State
    target: State
    guard: Guard = Guard.ANY


RESTING: Final = {
    State.TRYING: State.TRIED,
    State.CONFIRMING: State.CONFIRMED,
    State.CANCELLING: State.CANCELLED,
}
"""States in which somebody else is being asked, and where a local effect goes straight on to."""

TERMINAL: Final = frozenset({State.REFUSED, State.CONFIRMED, State.CANCELLED})
OPEN: Final = frozenset(State) - TERMINAL

_CONTRADICTIONS: Final = {
    State.TRYING: "not_ready",
    State.TRIED: "not_ready",
    State.REFUSED: "already_refused",
    State.CONFIRMING: "already_confirmed",
    State.CONFIRMED: "already_confirmed",
    State.CANCELLING: "already_cancelled",
    State.CANCELLED: "already_cancelled",
}


class Machine(msgspec.Struct, frozen=True):
    """A table of transitions.

    `satisfied` names, for an event, the states in which it has already had its way: a repeat that finds one of them
    is answered as the first call was.
    """

    name: str
    transitions: tuple[Transition, ...]
    satisfied: dict[Event, frozenset[State]]

    def target(self, event: Event, source: State) -> State | None:
        """The state that `event` leads to from `source`, or None where it may not happen."""
        return next((t.target for t in self.transitions if t.event is event and t.source is source), None)

    def guard(self, event: Event) -> Guard:
        """What the clock must say for `event`, in whatever state it finds the row."""
        return next((t.guard for t in self.transitions if t.event is event), Guard.ANY)

    def code(self, event: Event, source: State, reason: str | None) -> str:
        """What to answer when `event` found `source` and did not move it: `repeated`, or the contradiction's code."""
        if source in self.satisfied.get(event, frozenset()):
            return "repeated"
        if source in (State.CANCELLED, State.CANCELLING) and reason == Reason.EXPIRED:
            return "expired"
        return _CONTRADICTIONS[source]

    def local(self) -> Machine:
        """The same machine for effects that happen in the commit itself: it never rests."""
        through = tuple(
            msgspec.structs.replace(t, target=RESTING.get(t.target, t.target))
            for t in self.transitions
            if t.source not in RESTING
        )
        return msgspec.structs.replace(self, transitions=through)

    def guarded(self, guard: Guard) -> str:
        """The events that have a guard, as a SQL list."""
        return ", ".join(f"'{event}'" for event in sorted(Event) if self.guard(event) is guard)

    def sql_target(self, event: str, source: str) -> str:
        """A SQL expression for the state that the event in one column leads to from the state in another; null where
        it may not happen."""
        by_event: dict[Event, str] = {}
        for t in self.transitions:
            by_event[t.event] = by_event.get(t.event, "") + f" WHEN '{t.source}' THEN '{t.target}'"
        cases = "".join(f" WHEN '{name}' THEN CASE {source}{sources} END" for name, sources in by_event.items())
        return f"CASE {event}{cases} END"

    def sql_satisfied(self, event: str, source: str) -> str:
        """A SQL expression for whether the event in one column has already had its way in the state in another."""
        by_event = {
            name: ", ".join(f"'{state}'" for state in sorted(states)) for name, states in self.satisfied.items()
        }
        cases = "".join(f" WHEN '{name}' THEN {source} IN ({states})" for name, states in by_event.items())
        return f"CASE {event}{cases} ELSE false END"


def _everywhere(event: Event, *states: State) -> tuple[Transition, ...]:
    return tuple(Transition(event, state, state) for state in states)


_DECIDED: Final = (State.CONFIRMING, State.CANCELLING)

_COMMON: Final = (
    Transition(Event.TRY_SUCCEEDED, State.TRYING, State.TRIED),
    Transition(Event.CONFIRM, State.TRIED, State.CONFIRMING, Guard.LIVE),
    Transition(Event.CONFIRM_SUCCEEDED, State.CONFIRMING, State.CONFIRMED),
    Transition(Event.CANCEL, State.TRYING, State.CANCELLING),
    Transition(Event.CANCEL, State.TRIED, State.CANCELLING),
    Transition(Event.CANCEL_SUCCEEDED, State.CANCELLING, State.CANCELLED),
    Transition(Event.EXPIRE, State.TRYING, State.CANCELLING, Guard.EXPIRED),
    Transition(Event.EXPIRE, State.TRIED, State.CANCELLING, Guard.EXPIRED),
    Transition(Event.EXTEND, State.TRIED, State.TRIED, Guard.LIVE),
    *_everywhere(Event.POSTPONE, State.TRYING, *_DECIDED),
    *_everywhere(Event.RETRY, State.TRYING, *_DECIDED),
)
_COMMON_SATISFIED: Final = {
    Event.TRY_SUCCEEDED: frozenset({State.TRIED, State.CONFIRMING, State.CONFIRMED}),
    Event.CONFIRM: frozenset({State.CONFIRMING, State.CONFIRMED}),
    Event.CONFIRM_SUCCEEDED: frozenset({State.CONFIRMED}),
    Event.CANCEL: frozenset({State.CANCELLING, State.CANCELLED}),
    Event.CANCEL_SUCCEEDED: frozenset({State.CANCELLED}),
    Event.EXPIRE: frozenset({State.CANCELLING, State.CANCELLED}),
    # Somebody else has heard the answer that we go on waiting for: there is nothing left to wait for.
    Event.POSTPONE: frozenset({State.TRIED, *TERMINAL}),
}

RESERVATION: Final = Machine(
    name="reservation",
    transitions=(*_COMMON, Transition(Event.TRY_REFUSED, State.TRYING, State.REFUSED)),
    satisfied={
        **_COMMON_SATISFIED,
        Event.TRY_REFUSED: frozenset({State.REFUSED}),
        Event.CANCEL: frozenset({State.CANCELLING, State.CANCELLED, State.REFUSED}),
    },
)
"""A reservation: one Try on one resource, and its fate."""

TRANSACTION: Final = Machine(
    name="transaction",
    transitions=(*_COMMON, Transition(Event.COMMIT, State.TRYING, State.CONFIRMING, Guard.LIVE)),
    satisfied={**_COMMON_SATISFIED, Event.COMMIT: frozenset({State.CONFIRMING, State.CONFIRMED})},
)
"""A transaction. COMMIT, CONFIRM, CANCEL and EXPIRE are the decision: one guarded UPDATE, after which nothing turns
back."""
