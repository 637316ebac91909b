"""What a claim on an order looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from tcc.errors import FieldError
from tcc.money import MAX_AMOUNT, Amount, Currency, check_currency
from tcc.resource import Money


class OrderLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many units at a price each, in minor units."""

    sku: Annotated[str, Meta(min_length=1, max_length=64)]
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    unit_amount: Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]


class OrderClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order to place. `total`, where given, must be what the lines add up to."""

    customer: Annotated[str, Meta(min_length=1, max_length=255)]
    currency: Currency
    lines: Annotated[list[OrderLine], Meta(min_length=1, max_length=100)]
    total: Amount | None = None


def total(claim: OrderClaim) -> Money:
    """What the customer owes, in minor units."""
    return Money(sum(line.quantity * line.unit_amount for line in claim.lines), claim.currency)


def check(claim: OrderClaim) -> Sequence[FieldError]:
    """The currency exists, no line is there twice, and the total is what the lines add up to and not absurd."""
    errors = check_currency(claim.currency)
    seen: set[tuple[str, int]] = set()
    for index, line in enumerate(claim.lines):
        if (line.sku, line.unit_amount) in seen:
            detail = "This SKU is already in another line at the same price."
            errors.append(FieldError(f"lines[{index}]", "duplicate_line", detail))
        seen.add((line.sku, line.unit_amount))
    amount = total(claim).amount
    if amount > MAX_AMOUNT:
        errors.append(FieldError("lines", "amount_too_large", f"The lines add up to more than {MAX_AMOUNT}."))
    elif claim.total is not None and claim.total != amount:
        errors.append(FieldError("total", "total_differs", f"The lines add up to {amount}."))
    return errors
