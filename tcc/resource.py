"""The contract that a resource implements. A resource is a value of `Resource` in a folder of its own.

A resource says what a claim looks like, and what Try, Confirm and Cancel do to its own tables, as fragments of SQL.
The protocol wraps them: guards, expiry, tombstones, the journal and the reply are the same for all resources. What
happens at somebody else's (a payment gateway) is asked by an `External`, outside of any database transaction.

The fragments are common table expressions. Those of all resources may stand in one statement, so their names begin with
the resource's, as those of the relations do in which they meet the protocol:

`seats_fresh(ord, tenant_id, id, transaction_id, claim)`
    Tries of ids not seen before. Read by `Effects.decide`, which must end in
    `seats_refused(ord, code, kept, detail)`: a row for each that can't be held, where `code` is `again` (it would fit,
    but not behind those before it in this batch: decide again) or the code of a refusal; `kept` is false where the
    claim makes no sense at all, so that nothing is left behind; `detail` is jsonb or null.
`seats_accepted(ord, tenant_id, id, transaction_id, claim, now)`
    The others, which are recorded; none, where the statement finds that nothing is to be done. Read by
    `Effects.on_try`, which must not write but for these.
`seats_moved(ord, tenant_id, id, transaction_id, claim, event, source, target, detail, now)`
    Reservations that an event has moved; where several have, in one commit, from the first one's source to the last
    one's target. Read by `Effects.on_move`.

Rows that several claims share must be locked in sorted order: by a materialised `SELECT … ORDER BY … FOR NO KEY UPDATE`
to which the UPDATE is joined, since only rows that are pulled from such an expression are locked; or, where nothing is
judged by them, by an UPDATE that is itself joined to a materialised expression in that order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from tcc.commands import Exchange, ReservationView
from tcc.errors import FieldError, Kind
from tcc.machine import Event, State


class Effects(msgspec.Struct, frozen=True):
    """What a resource does to its own tables: three lists of SQL common table expressions (see the module).

    Without `decide` it never refuses.
    """

    decide: str = ""
    on_try: str = ""
    on_move: str = ""


class Money(msgspec.Struct, frozen=True):
    """An amount in minor units (cents), and its ISO 4217 currency."""

    amount: int
    currency: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the outside said to what a resting reservation asks of it.

    `event` is what follows for the reservation, or None while the outcome is unknown or pending: then it is asked
    again, after `retry_seconds` if that was said. `attention` means that asking again won't help: a person must look.
    `refusal` is the code of a Try that was refused. `cap` is the latest moment to which the hold can last (an
    authorisation's expiry).
    """

    event: Event | None
    exchanges: list[Exchange]
    detail: Any = None
    refusal: str | None = None
    cap: datetime | None = None
    attention: str | None = None
    retry_seconds: float | None = None


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it must be, found by an invariant or a reconciliation."""

    invariant: str
    subject: str
    detail: str


class External(Protocol):
    """A resource's other side. It must honour idempotency keys derived from the reservation's id."""

    async def ask(self, reservation: ReservationView, *, tenant_id: str, attempt: int) -> Answer:
        """Ask for what the reservation's resting state needs: hold it, make it final, or give it back.

        Never raises for what the other side does: a timeout or a garbled reply is an `Answer` without an event.
        """
        ...

    def claims_of_theirs(self, since: datetime) -> AsyncIterator[tuple[str, str]]:
        """What the other side holds: (our reservation's id, its state there), changed since a moment."""
        ...

    async def aclose(self) -> None: ...


class Invariant(msgspec.Struct, frozen=True):
    """A query that returns a row (subject, detail) for each thing that is not as it must be."""

    name: str
    promise: str
    sql: str


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of thing that can be reserved."""

    name: str
    claim: type[msgspec.Struct]
    effects: Effects
    check: Callable[[Any], Sequence[FieldError]] = lambda claim: ()
    """What a claim's type can't say, such as lines that repeat each other."""
    refusals: Mapping[str, Kind] = {}
    """The codes for which a Try is refused or a claim makes no sense."""
    owes: Callable[[Any], Money | None] = lambda claim: None
    """What the claim says is to be paid, for the comparison with what is charged."""
    charges: Callable[[Any], Money | None] = lambda claim: None
    """What the claim will charge."""
    connect: Callable[[Mapping[str, str]], External] | None = None
    """Opens the other side, from environment variables. None where all effects are local."""
    handlers: Callable[[Any], Sequence[Any]] = lambda service: ()
    """The resource's management routes."""
    invariants: Sequence[Invariant] = ()
    migrations: str = ""
    """The folder of the resource's own Alembic versions."""

    @property
    def external(self) -> bool:
        return self.connect is not None

    @property
    def held(self) -> State:
        """In which state a Try that nothing stands against leaves a reservation."""
        return State.TRYING if self.external else State.TRIED
