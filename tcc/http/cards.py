"""Card numbers have no business here: found, and refused before anything is logged or stored."""

from __future__ import annotations

import re
from typing import Final

from stdnum import luhn

_CANDIDATE: Final = re.compile(rb"(?<![0-9A-Za-z.-])\d(?:[ -]?\d){12,18}(?![0-9A-Za-z-])")
"""13 to 19 digits, in groups or not, that aren't part of something longer such as a UUID."""


def has_card_number(data: bytes) -> bool:
    """Whether some run of 13 to 19 digits passes the Luhn check (ISO/IEC 7812-1)."""
    return any(
        luhn.is_valid(re.sub(rb"[ -]", b"", match.group()).decode()) for match in _CANDIDATE.finditer(data)
    )
