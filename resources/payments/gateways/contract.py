"""What payments needs from a card gateway, whichever it is.

The terms are those of the trade: an *authorisation* holds an amount on a card, a *capture* takes it, a
*void* gives it back untaken, a *refund* gives it back taken. Amounts are integer minor units of the
authorisation's currency.

The rule everything here serves: **what we did not hear is unknown, never declined.** A timeout, a lost
connection, a 5xx, an unreadable body, a 429 and a key still in flight all say nothing about what the
gateway did, so the caller repeats the call with the same key until it hears an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

import msgspec


class Outcome(StrEnum):
    """What is known after a call."""

    SUCCEEDED = "succeeded"
    DECLINED = "declined"
    """The gateway answered, and did not do it."""
    PENDING = "pending"
    """The gateway accepted it and has yet to finish: look it up later."""
    UNKNOWN = "unknown"
    """Done or not done: repeat with the same key."""


class Standing(StrEnum):
    """Where an authorisation, or a reference, stands at the gateway."""

    NOT_FOUND = "not_found"
    AUTHORISED = "authorised"
    CAPTURED = "captured"
    VOIDED = "voided"
    DECLINED = "declined"
    REFUNDED = "refunded"
    PENDING = "pending"
    """A request for it is being worked on right now."""
    UNKNOWN = "unknown"
    """The gateway could not be asked."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one call, and what the audit log keeps of it."""

    outcome: Outcome
    authorisation_id: str | None = None
    """The gateway's own id, whenever it named one, even of a declined authorisation."""
    code: str | None = None
    """Stable and machine-readable: why it was declined, or why it is unknown."""
    message: str | None = None
    permanent: bool = False
    """Repeating the call can never bring another answer. Of `declined`: refused for good. Of `unknown`:
    only a person can settle it (our key was used before for another request)."""
    retry_after_seconds: float | None = None
    capture_before: datetime | None = None
    """When the authorisation lapses (aware, UTC)."""
    request: dict[str, Any]
    """What was asked, free of secrets."""
    response: dict[str, Any] | None = None
    """What was answered; None when nothing readable was."""
    duration_seconds: float = 0.0
    status: int | None = None
    """The HTTP status, where there was one."""


class Authorisation(msgspec.Struct, frozen=True, kw_only=True):
    """An authorisation as the gateway describes it now."""

    id: str
    reference: str
    amount: int
    currency: str
    standing: Standing
    captured_amount: int = 0
    refunded_amount: int = 0
    capture_before: datetime | None = None
    code: str | None = None
    changed_at: datetime


class Lookup(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway holds under one reference.

    `not_found` is no promise that a call still on its way will not arrive. To be rid of a hold whose
    authorise went unanswered, repeat the authorise with its key until it answers, then void.
    """

    standing: Standing
    """Of the most consequential authorisation: money taken, then money held, then the rest."""
    authorisations: tuple[Authorisation, ...] = ()
    """The most consequential first; more than one means that two keys were used for one reference."""
    code: str | None = None
    retry_after_seconds: float | None = None
    request: dict[str, Any]
    response: dict[str, Any] | None = None
    duration_seconds: float = 0.0
    status: int | None = None

    @property
    def authorisation(self) -> Authorisation | None:
        """The one that `standing` speaks of, if any."""
        return self.authorisations[0] if self.authorisations else None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the authorisations that changed, in order of change."""

    authorisations: tuple[Authorisation, ...]
    next_cursor: str | None
    """Where to go on; None at the end."""


class GatewayUnreachableError(Exception):
    """A page could not be read. Go on from the same cursor later."""

    def __init__(self, code: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class Gateway(Protocol):
    """A card gateway. No method but `list_changed` raises for what the gateway or the network does.

    `key` is the idempotency key, which the caller derives from the reservation and the intent: the same
    intent always carries the same key, across retries, restarts and workers. `reference` is our
    reservation's id.
    """

    @property
    def name(self) -> str:
        """A word for logs and metrics."""
        ...

    async def authorise(self, *, reference: str, amount: int, currency: str, payment_method: str, key: str) -> Reply:
        """Hold `amount` on the card."""
        ...

    async def capture(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        """Take `amount` and let go of the rest. Succeeds too if exactly that was captured before."""
        ...

    async def void(self, *, authorisation_id: str, key: str) -> Reply:
        """Let go of the hold. Succeeds too if it was voided before."""
        ...

    async def refund(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        """Give back `amount` of what was captured; may be done in parts, each with its own key."""
        ...

    async def find(self, *, reference: str) -> Lookup:
        """Ask what became of a reference."""
        ...

    async def list_changed(self, *, since: datetime, cursor: str | None = None, limit: int = 100) -> Page:
        """Read what changed at or after `since` (aware), at most `limit` at once, for reconciliation.

        An authorisation that changes while the pages are being read comes again later; none is skipped.
        Raises GatewayUnreachableError, because a short page would pass for the end.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Calls in flight end as `unknown`."""
        ...


CONSEQUENCE = (
    Standing.CAPTURED,
    Standing.AUTHORISED,
    Standing.REFUNDED,
    Standing.VOIDED,
    Standing.DECLINED,
)


def most_consequential_first(authorisations: Iterable[Authorisation]) -> tuple[Authorisation, ...]:
    """Order what was found under one reference by how much depends on it."""
    return tuple(sorted(authorisations, key=lambda one: CONSEQUENCE.index(one.standing)))
