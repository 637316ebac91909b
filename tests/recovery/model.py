"""What must come of orders of Try, Confirm, Cancel, Expire and Extend: a few plain rules.

Written from docs/architecture.md and docs/errors.md, and on purpose without `tcc.machine` and the planner, so that a
mistake in either shows as a difference. The service is asked in its smallest steps, and so is the `Book`. A book reads
no clock: whoever asks tells it the moment at which the database acted, and time is up when `time_is_up` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import permutations
from typing import Final
from uuid import UUID

import msgspec

Key = tuple[str, UUID]
"""A resource, and a reservation's id there."""
Answer = tuple[str, str | None, str | None]
"""The code of what became of a command, and the reservation's state and reason after it; None where there is none."""

CONFIRMS: Final = ("confirming", "confirmed")
CANCELS: Final = ("cancelling", "cancelled")
DECLINES: Final = {"tok_declined": "card_declined", "tok_nobody": "unknown_payment_method"}
NOTHING: Final = ("refused", "cancelled", "cancelling")
"""The states of a branch whose transaction can't come to anything any more."""


class Claim(msgspec.Struct, frozen=True):
    """What is asked of a resource: units of stock, an order of them, or money by a payment method."""

    resource: str
    lines: tuple[tuple[str, int], ...] = ()
    method: str = ""


class Ask(msgspec.Struct, frozen=True):
    """A command for one reservation, and the idempotency key that it comes with."""

    verb: str
    resource: str
    id: UUID
    claim: Claim | None = None
    ttl_seconds: float = 0
    key: str | None = None


class Shelf(msgspec.Struct):
    """Units of one SKU."""

    available: int
    held: int = 0
    sold: int = 0


class Fate(msgspec.Struct, kw_only=True):
    """Where a reservation or a transaction stands. `expires_at` counts while it is undecided."""

    state: str
    reason: str | None = None
    expires_at: datetime
    cap: datetime | None = None
    past: bool = False
    due: bool = False
    attention: bool = False

    def answer(self, event: str) -> str:
        """What an event is told, whether or not it moves anything."""
        undecided = self.state in ("trying", "tried")
        if event == "cancel" and (undecided or self.state not in CONFIRMS):
            return "done" if undecided else "repeated"
        if event == "expire" and (undecided or self.state in CANCELS):
            return "repeated" if not undecided else "done" if self.past else "not_expired"
        if self.state in CANCELS:
            return "expired" if self.reason == "expired" else "already_cancelled"
        if self.state in CONFIRMS:
            return "repeated" if event == "confirm" else "already_confirmed"
        if self.state == "tried":
            return "expired" if self.past else "done"
        return {"trying": "not_ready", "refused": "already_refused"}[self.state]

    def become(self, state: str, reason: str | None = None) -> None:
        """Move on. What rests afterwards is not due to anybody before its lease is over."""
        self.state, self.reason = state, reason or self.reason
        self.due = state == "tried" and self.past

    def extend(self, ttl_seconds: float, now: datetime) -> None:
        """Hold it for so long from now, never less than before, and never past the cap."""
        self.expires_at = max(self.expires_at, now + timedelta(seconds=ttl_seconds))
        self.limit(self.cap)

    def limit(self, cap: datetime | None) -> None:
        """It can't last longer than that: a card authorisation lapses."""
        self.cap = cap
        if cap and self.state in ("trying", "tried"):
            self.expires_at = min(self.expires_at, cap)


class Reservation(Fate, kw_only=True):
    resource: str
    claim: Claim | None
    owner: UUID | None = None

    @property
    def outside(self) -> bool:
        """Whether somebody else must be asked, so that it rests meanwhile."""
        return self.resource == "payments"


class Whole(Fate, kw_only=True):
    """A transaction, and the branches it was begun with."""

    auto: bool
    branches: Sequence[tuple[Key, Claim]]
    reply: str | None = None
    """What the request that began it was answered."""


class Book:
    """Shelves, reservations and transactions, as they must be."""

    def __init__(self) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.reservations: dict[Key, Reservation] = {}
        self.wholes: dict[UUID, Whole] = {}
        self.replies: dict[tuple[str, str, str], tuple[Ask, str]] = {}

    def copy(self) -> Book:
        other = Book()
        other.shelves = {sku: msgspec.structs.replace(shelf) for sku, shelf in self.shelves.items()}
        other.reservations = {key: msgspec.structs.replace(one) for key, one in self.reservations.items()}
        other.wholes = {id: msgspec.structs.replace(whole) for id, whole in self.wholes.items()}
        other.replies = dict(self.replies)
        return other

    def ask(self, ask: Ask, now: datetime) -> Answer:
        """One command; a repeat under its key does nothing, and is given the reply of the first."""
        ref = (ask.resource, ask.verb, ask.key or "")
        if ask.key and ref in self.replies:
            first, code = self.replies[ref]
            return ("idempotency_key_reused" if first != ask else f"replayed {code}", None, None)
        code = self.hold(ask, now) if ask.verb == "try" else self.move(ask, now)
        if ask.key and code != "unknown_sku":
            self.replies[ref] = (ask, code)
        one = self.reservations.get((ask.resource, ask.id))
        return code, one.state if one else None, one.reason if one else None

    def hold(self, ask: Ask, now: datetime, owner: UUID | None = None) -> str:
        assert ask.claim is not None
        known = self.reservations.get((ask.resource, ask.id))
        if known:
            if known.state in CANCELS:
                return "expired" if known.reason == "expired" else "already_cancelled"
            if (known.claim, known.owner) != (ask.claim, owner):
                return "id_reused"
            return known.reason or "refused" if known.state == "refused" else "repeated"
        refusal = self._take(ask.claim) if ask.resource == "inventory" else None
        if refusal == "unknown_sku":
            return refusal
        one = Reservation(
            state="tried",
            expires_at=now + timedelta(seconds=ask.ttl_seconds),
            resource=ask.resource,
            claim=ask.claim,
            owner=owner,
        )
        one.become("refused" if refusal else "trying" if one.outside else "tried", refusal)
        self.reservations[ask.resource, ask.id] = one
        return refusal or "done"

    def _take(self, claim: Claim) -> str | None:
        """Hold every line, or none and say why."""
        if any(sku not in self.shelves for sku, _ in claim.lines):
            return "unknown_sku"
        if any(self.shelves[sku].available < quantity for sku, quantity in claim.lines):
            return "insufficient_stock"
        for sku, quantity in claim.lines:
            self.shelves[sku].available -= quantity
            self.shelves[sku].held += quantity
        return None

    def move(self, ask: Ask, now: datetime, owner: UUID | None = None) -> str:
        one = self.reservations.get((ask.resource, ask.id))
        if one is None:
            if ask.verb != "cancel":
                return "not_found"
            self.reservations[ask.resource, ask.id] = Reservation(
                state="cancelled", reason="never_tried", expires_at=now, resource=ask.resource, claim=None, owner=owner
            )
            return "done"
        if one.owner != owner:
            return "part_of_transaction"
        code = one.answer(ask.verb)
        if code == "done":
            if ask.verb == "extend":
                one.extend(ask.ttl_seconds, now)
            else:
                self._decide(one, ask.verb, {"expire": "expired", "cancel": "requested"}.get(ask.verb))
        return code

    def _decide(self, one: Reservation, event: str, reason: str | None) -> None:
        """Confirm it, or else give it back."""
        confirm = event == "confirm"
        if one.outside:
            one.become("confirming" if confirm else "cancelling", reason)
            return
        if one.resource == "inventory" and one.claim:
            for sku, quantity in one.claim.lines:
                shelf = self.shelves[sku]
                shelf.held -= quantity
                if confirm:
                    shelf.sold += quantity
                else:
                    shelf.available += quantity
        one.become("confirmed" if confirm else "cancelled", reason)

    def settle(self, key: Key) -> None:
        """The outside is asked for what a reservation that rests needs, and answers."""
        one = self.reservations.get(key)
        if one is None or one.claim is None or not one.outside or one.attention:
            return
        if one.state == "trying":
            refusal = DECLINES.get(one.claim.method)
            one.become("refused" if refusal else "tried", refusal)
        elif one.state == "cancelling":
            one.become("cancelled")
        elif one.state == "confirming" and one.claim.method == "tok_capture_refused":
            one.attention, one.due = True, False
        elif one.state == "confirming":
            one.become("confirmed")

    def sweep_reservations(self) -> None:
        """A worker takes up what is due. Branches are their transaction's alone."""
        for key, one in self.reservations.items():
            if one.due and one.owner is None:
                one.due = False
                if one.past and one.state in ("trying", "tried"):
                    self._decide(one, "expire", "expired")
                self.settle(key)

    def at_once(self, asks: Sequence[Ask], answers: Sequence[Answer], moments: Sequence[datetime]) -> Book | None:
        """The book after commands that were asked at once, if they were answered as in some order one by one."""
        for order in permutations(range(len(asks))):
            book = self.copy()
            if all(book.ask(asks[n], moments[n]) == answers[n] for n in order):
                return book
        return None

    def begin(
        self,
        id: UUID,
        branches: Sequence[tuple[Key, Claim]],
        now: datetime,
        *,
        auto: bool,
        ttl_seconds: float,
        driven: bool,
    ) -> None:
        """A transaction's first commit; `driven`: and all that follows."""
        deadline = now + timedelta(seconds=ttl_seconds)
        whole = self.wholes[id] = Whole(state="trying", expires_at=deadline, auto=auto, branches=branches)
        refused: set[Key] = set()
        if self._try(id, refused, outside=False):
            self._follow(id, refused)
        whole.reply = self._final(whole)
        if driven and whole.reply is None:
            self.drive(id, refused)
            whole.reply = self._final(whole)

    @staticmethod
    def _final(whole: Whole) -> str | None:
        waits = whole.state == "tried" and not whole.auto
        return whole.state if waits or whole.state in ("confirmed", "cancelled") else None

    def decide(self, id: UUID, event: str, now: datetime, ttl_seconds: float = 0) -> Answer:
        """The decision alone: branches follow when it is driven. An extension holds its branches longer at once."""
        whole = self.wholes.get(id)
        if whole is None:
            return "not_found", None, None
        code = whole.answer(event)
        if code == "done" and event == "extend":
            whole.extend(ttl_seconds, now)
        elif code == "done":
            reason = {"expire": "expired", "cancel": "requested"}.get(event)
            whole.become("confirming" if event == "confirm" else "cancelling", reason)
        return code, whole.state, whole.reason

    def decide_at_once(
        self,
        id: UUID,
        events: Sequence[str],
        answers: Sequence[Answer],
        moments: Sequence[datetime],
        ttl_seconds: float,
    ) -> Book | None:
        """The book after decisions that were asked for at once, if somebody came first, and the others were told so."""
        for order in permutations(range(len(events))):
            book = self.copy()
            if all(book.decide(id, events[n], moments[n], ttl_seconds) == answers[n] for n in order):
                return book
        return None

    def drive(self, id: UUID, refused: Iterable[Key] = ()) -> None:
        """Take a transaction as far as it goes. `refused`: branches whose refusal the driver knows, with no row."""
        whole = self.wholes[id]
        memory = set(refused)
        if whole.state == "trying":
            if memory or any(one.state in NOTHING for one in self._recorded(whole)):
                whole.become("cancelling", "refused")
            elif whole.past:
                whole.become("cancelling", "expired")
            elif not self._try(id, memory, outside=True):
                whole.become("cancelling", "refused")
        elif whole.state == "tried" and whole.past:
            whole.become("cancelling", "expired")
        self._follow(id, memory)

    def _recorded(self, whole: Whole) -> list[Reservation]:
        return [self.reservations[key] for key, _ in whole.branches if key in self.reservations]

    def _try(self, id: UUID, memory: set[Key], *, outside: bool) -> bool:
        """Hold everything, stock before orders before cards. False if anything was refused, or is still to be asked."""
        whole = self.wholes[id]
        for resource in ("inventory", "orders", "payments"):
            well = True
            for key, claim in whole.branches:
                if key[0] == resource and key not in self.reservations:
                    ask = Ask("try", resource, key[1], claim)
                    if self.hold(ask, whole.expires_at, id) != "done":
                        memory.add(key)
                        well = False
            if not well:
                return False
        cards = [key for key, _ in whole.branches if key[0] == "payments"]
        if cards and not outside:
            return False
        for key in cards:
            self.settle(key)
        if any(one.state == "refused" for one in self._recorded(whole)):
            return False
        whole.become("confirming" if whole.auto else "tried")
        return True

    def _follow(self, id: UUID, memory: set[Key]) -> None:
        """Branches follow the decision, if there is one."""
        whole = self.wholes[id]
        if whole.state not in ("confirming", "cancelling"):
            return
        event, end = ("confirm", "confirmed") if whole.state == "confirming" else ("cancel", "cancelled")
        for key, _ in whole.branches:
            one = self.reservations.get(key)
            if one is None and event == "cancel" and key not in memory:
                self.move(Ask("cancel", *key), whole.expires_at, id)
            elif one and one.state in ("trying", "tried"):
                self._decide(one, event, None if event == "confirm" else "transaction")
            self.settle(key)
        if any(one.attention for one in self._recorded(whole)):
            whole.attention, whole.due = True, False
        else:
            whole.become(end)

    def sweep_transactions(self) -> None:
        """A worker takes up the transactions that are due."""
        for id, whole in self.wholes.items():
            if whole.due:
                whole.due = False
                self.drive(id)

    def time_is_up(self, fate: Fate) -> None:
        """Its time is over; whoever looks after it is told so, unless it waits for a person or has come to its end."""
        fate.past = True
        self.lease_is_over(fate)

    def lease_is_over(self, fate: Fate) -> None:
        """Nobody has come back to it: it is due to whoever sweeps."""
        branch = isinstance(fate, Reservation) and fate.owner is not None
        ended = fate.state in ("confirmed", "cancelled", "refused")
        fate.due = not (branch or ended or fate.attention)
