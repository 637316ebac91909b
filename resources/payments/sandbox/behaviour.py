"""How each payment method behaves: the one table to read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The durations that tests shorten, in seconds."""

    slow_seconds: float = 3.0
    """How long `tok_slow` takes to authorise."""
    short_validity_seconds: float = 4.0
    """How long a `tok_auth_expires` authorisation lasts."""
    validity_seconds: float = 7 * 24 * 3600.0
    """How long any other authorisation lasts."""
    held_reply_seconds: float = 10.0
    """How long a connection whose reply is lost stays open; longer than clients like to wait."""


class Delivery(StrEnum):
    """What becomes of the reply when the work has been done."""

    PROMPT = "prompt"
    LOST = "lost"
    """Never sent: the connection is held, then dropped."""
    BROKEN = "broken"
    """A 500 is sent in its place."""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What sets a payment method apart.

    `delivery` is the fate of the first reply to *every* operation on the authorisation that had an effect:
    authorise, capture, void and each refund. The effect and its true reply are committed, and a repeat
    with the same key is given that reply. No counter is needed: the stored key is the memory.
    """

    validity_seconds: float
    declined: str | None = None
    authorise_seconds: float = 0.0
    delivery: Delivery = Delivery.PROMPT
    captures_that_fail: int = 0
    """So many captures answer 503 and do nothing; counted in the ledger, so a restart forgets none."""
    capture_refused: bool = False


def payment_methods(timings: Timings) -> Mapping[str, Behaviour]:
    """Every payment method there is; any other is declined as `unknown_payment_method`."""
    usual = timings.validity_seconds
    return {
        "tok_ok": Behaviour(validity_seconds=usual),
        "tok_declined": Behaviour(validity_seconds=usual, declined="card_declined"),
        "tok_slow": Behaviour(validity_seconds=usual, authorise_seconds=timings.slow_seconds),
        "tok_lost_reply": Behaviour(validity_seconds=usual, delivery=Delivery.LOST),
        "tok_500_after_success": Behaviour(validity_seconds=usual, delivery=Delivery.BROKEN),
        "tok_capture_fails_twice": Behaviour(validity_seconds=usual, captures_that_fail=2),
        "tok_capture_refused": Behaviour(validity_seconds=usual, capture_refused=True),
        "tok_auth_expires": Behaviour(validity_seconds=timings.short_validity_seconds),
    }
