"""Amounts in minor units and ISO 4217 currencies, as claims write them."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Final

import pycountry
from msgspec import Meta

from tcc.errors import FieldError

MAX_AMOUNT: Final = 999_999_999_999
"""The largest amount, in minor units."""

Amount = Annotated[int, Meta(ge=1, le=MAX_AMOUNT, description="In minor units (cents).")]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}$(?!\n)", description="ISO 4217, in capitals.")]


@cache
def _known(currency: str) -> bool:
    return pycountry.currencies.get(alpha_3=currency) is not None


def check_currency(currency: str) -> list[FieldError]:
    """An error where there is no such currency."""
    if _known(currency):
        return []
    return [FieldError("currency", "unknown_currency", "There is no such currency in ISO 4217.")]
