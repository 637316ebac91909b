"""What can be asked of the batcher: frozen structs, encoded as they stand for the SQL that applies them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from tcc.ids import new_id
from tcc.machine import Event, Guard, State


class Context(msgspec.Struct, frozen=True):
    """On whose behalf, and as part of which request, something is asked; on every row of the journal."""

    tenant_id: str
    actor: str
    correlation_id: str


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call to the outside and what came back. Payloads are free of secrets."""

    operation: str
    outcome: str
    request: Any
    response: Any = None
    status: int | None = None
    attempt: int = 1
    duration_seconds: float = 0.0


class Command(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A change of state that is asked for. Applied many at a time, each at most once.

    What kind it is tells its `type`: `isinstance` of a struct is a call of Python code (`abc.ABCMeta`), and a batch
    would make thousands.
    """

    tenant_id: str
    id: UUID
    correlation_id: str
    actor: str
    entry_id: UUID = msgspec.field(default_factory=new_id)
    """The id of the journal's row, should this command move anything."""


class Try(Command, frozen=True, omit_defaults=True, kw_only=True):
    """Hold a resource. `claim` is the resource's claim as JSON."""

    resource: str
    claim: msgspec.Raw
    ttl_seconds: float
    reference: str | None = None
    transaction_id: UUID | None = None


class Move(Command, frozen=True, omit_defaults=True, kw_only=True):
    """An event for a reservation that (perhaps) exists.

    A `cancel` of an id never tried leaves a tombstone. `transaction_id` must be the one of the reservation: nobody
    but its transaction moves a branch. `ttl_seconds` extends from now; `cap` is the latest moment to which the hold
    may ever last. `retry_seconds` says when to look at a resting state again; `attention` parks it for a person.
    """

    resource: str
    event: Event
    transaction_id: UUID | None = None
    reason: str | None = None
    ttl_seconds: float | None = None
    retry_seconds: float | None = None
    cap: datetime | None = None
    attention: str | None = None
    detail: Any = None
    exchanges: list[Exchange] | None = None


class BranchPlan(msgspec.Struct, frozen=True):
    """A branch as it was asked for: enough to try it, and to cancel it though it was never tried."""

    resource: str
    id: UUID
    claim: msgspec.Raw


class Begin(Command, frozen=True, omit_defaults=True, kw_only=True):
    """Record a transaction and what its branches will be, before any of them is tried."""

    branches: list[BranchPlan]
    confirm: str
    ttl_seconds: float
    retry_seconds: float
    reference: str | None = None


class MoveTransaction(Command, frozen=True, omit_defaults=True, kw_only=True):
    """An event for a transaction. `commit`, `cancel` and `expire` are its decision."""

    event: Event
    reason: str | None = None
    ttl_seconds: float | None = None
    retry_seconds: float | None = None
    cap: datetime | None = None
    attention: str | None = None
    detail: Any = None


class ReservationView(msgspec.Struct, frozen=True):
    """A reservation as clients see it."""

    resource: str
    id: UUID
    state: State
    reason: str | None
    reference: str | None
    transaction_id: UUID | None
    claim: Any
    detail: Any
    """What was refused and why, or what the resource has to tell."""
    attention: str | None
    attention_since: datetime | None
    attempts: int
    expires_at: datetime
    extendable_until: datetime | None
    """The latest moment to which it can be held, where there is one: a card authorisation lapses."""
    created_at: datetime
    updated_at: datetime


class TransactionView(msgspec.Struct, frozen=True):
    """A transaction's own row, without its branches' states."""

    id: UUID
    state: State
    reason: str | None
    reference: str | None
    confirm: str
    branches: msgspec.Raw
    """As JSON; see `plans`."""
    detail: Any
    attention: str | None
    attention_since: datetime | None
    attempts: int
    deadline: datetime
    created_at: datetime
    updated_at: datetime
    correlation_id: str

    def plans(self) -> list[BranchPlan]:
        """What the branches are to be."""
        return _decode_plans(self.branches)


_decode_plans = msgspec.json.Decoder(list[BranchPlan]).decode

DONE = "done"
REPEATED = "repeated"

View = TypeVar("View")


class Foreseen(NamedTuple):
    """What a command leaves behind if the row that it moves is as it was seen: `before`, by its `updated_at`.

    Where it is this batch itself that is to leave a row so, `MOMENT` stands for the time.
    """

    view: Any
    before: Any
    guard: Guard
    """What the clock must say."""


MOMENT: Final = datetime(1, 1, 1, tzinfo=UTC) + timedelta(microseconds=secrets.randbelow(10**16))
"""Stands for the time, in what is written before it is known: a moment that nobody would name."""


class Outcome(msgspec.Struct, Generic[View], frozen=True):
    """What became of a command: data, not an exception.

    `code` is `done` (it moved), `repeated` (it had moved before, so all is well), or the stable code of what stands
    against it. `view` is the row after the command, None where there is none.
    """

    code: str
    view: View | None
    now: datetime
    detail: Any = None
    """What a refusal found: JSON."""

    @property
    def ok(self) -> bool:
        return self.code in (DONE, REPEATED)
