"""What a claim on a card looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from tcc.errors import FieldError
from tcc.money import Amount, Currency, check_currency
from tcc.resource import Money


class PaymentClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An amount to authorise now, and to capture when confirmed. `payment_method` is the gateway's token."""

    amount: Amount
    currency: Currency
    payment_method: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:-]+$(?!\n)")]


def charge(claim: PaymentClaim) -> Money:
    """What the payer is charged on Confirm."""
    return Money(claim.amount, claim.currency)


def check(claim: PaymentClaim) -> Sequence[FieldError]:
    """The currency exists."""
    return check_currency(claim.currency)
