"""What a claim on stock looks like: lines, held all or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from tcc.errors import FieldError

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$(?!\n)"
"""`$` alone would let a line break pass at the end."""

Sku = Annotated[str, Meta(min_length=1, max_length=64, pattern=_NAME)]
Location = Annotated[str, Meta(min_length=1, max_length=64, pattern=_NAME)]
Quantity = Annotated[int, Meta(ge=1, le=1_000_000)]

DEFAULT_LOCATION = "default"


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many units of one stock-keeping unit, at one location."""

    sku: Sku
    quantity: Quantity
    location: Location = DEFAULT_LOCATION


class InventoryClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stock to hold: every line, or none."""

    lines: Annotated[list[Line], Meta(min_length=1, max_length=100)]


def check(claim: InventoryClaim) -> Sequence[FieldError]:
    """Two lines for the same SKU and location are one line, written wrongly."""
    seen: set[tuple[str, str]] = set()
    errors = []
    for index, line in enumerate(claim.lines):
        if (line.sku, line.location) in seen:
            errors.append(
                FieldError(f"lines[{index}]", "duplicate_line", "This SKU and location is already in another line.")
            )
        seen.add((line.sku, line.location))
    return errors
