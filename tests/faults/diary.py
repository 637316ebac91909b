"""What clients meant to do, and what they were told: the first of the two witnesses. It knows nothing of the inside."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

NEEDS_A_PERSON = frozenset({"tok_capture_refused", "tok_auth_expires"})
"""Payment methods whose capture may be refused for good, after the decision."""


@dataclass(eq=False)
class Intent:
    """One thing that a client wants, under a reference of its own, and what it was told of it."""

    reference: str
    kind: str
    """`order`, or the resource of a single reservation."""
    lines: tuple[tuple[str, int], ...] = ()
    amount: int = 0
    method: str | None = None
    contested: bool = False
    """Its client doesn't know what it wants: Confirm and Cancel are sent at once."""
    extends: bool = False
    """It is held for a short time, then extended, and confirmed when the short time would have been over."""
    id: str | None = None
    """Of the transaction or reservation: chosen by the client, or told by the service."""
    promised: bool = False
    """It was answered 201 or 202: it exists, and will come to an end."""
    told: set[str] = field(default_factory=set)
    """The ends it was told: confirmed, cancelled (refused, too). More than one is a contradiction."""
    attention: bool = False
    ended: float | None = None


@dataclass(frozen=True)
class Violation:
    """A promise that was broken."""

    at_seconds: float
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"[{self.at_seconds:6.1f} s] {self.invariant}: {self.what}"


class Diary:
    """Every intent, those that are under way, and what was found to be broken."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.intents: list[Intent] = []
        self.under_way: set[Intent] = set()
        self.acknowledged = 0
        self.unknown: set[Intent] = set()
        self.requests = 0
        self.violations: list[Violation] = []
        self._seen: set[tuple[str, str]] = set()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    def begin(self, intent: Intent) -> Intent:
        self.intents.append(intent)
        self.under_way.add(intent)
        return intent

    def end(self, intent: Intent, *, known: bool) -> None:
        """A client goes on to something else: it was told, or gave up not knowing."""
        intent.ended = time.monotonic()
        self.under_way.discard(intent)
        if known:
            self.acknowledged += 1
        else:
            self.unknown.add(intent)

    def told(self, intent: Intent, end: str) -> None:
        """Somebody was told how it ended."""
        intent.told.add(end)
        if len(intent.told) > 1:
            self.violate("I3", f"{intent.kind} {intent.reference} was told {' and '.join(sorted(intent.told))}")

    def violate(self, invariant: str, what: str) -> None:
        """Note a broken promise, once."""
        if (invariant, what) not in self._seen:
            self._seen.add((invariant, what))
            self.violations.append(Violation(round(self.seconds, 1), invariant, what))
