"""Card numbers have no business here: found, and refused before anything is logged or stored.

Any 13 to 19 digits that stand alone and pass the Luhn check are taken for one (ISO/IEC 7812-1). So are those that a
card network issues (they begin with 22 to 69), wherever they are: `tok_4242…`, `card 4242 4242 4242 4242 12/27`.
Ids are not looked at: a UUID, or a hash, has runs of digits too.
"""

from __future__ import annotations

import re
from typing import Final

from stdnum import luhn

_AS_ZERO: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG_ENOUGH: Final = b"0" * 13
"""What nearly all requests lack, so that nothing else need be looked at: so many digits, whatever they are."""

_IDS: Final = re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{20,}")
_ALONE: Final = re.compile(rb"(?<![0-9A-Za-z.-])(\d(?:[ -]?\d){12,18})(?![0-9A-Za-z-])")
_NETWORK: Final = rb"(?<!\d)(?<!\d\.)(?=((?:2[2-7]|[3-6]\d)\d\d"
"""The first four digits. Not the fraction of a number; and looked at from every digit on, whatever matched before."""

_SHAPES: Final = (
    _ALONE,
    *(
        re.compile(_NETWORK + rest + rb")(?!\d))")
        for rest in (
            rb"\d{9,15}",
            rb"[ -]\d{4}[ -]\d{4}[ -]\d{1,4}",
            rb"[ -]\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{1,3}",
            rb"[ -]\d{6}[ -]\d{4,5}",
        )
    ),
)


def has_card_number(data: bytes) -> bool:
    """Whether what looks like a card number is anywhere in there."""
    if _LONG_ENOUGH not in data.translate(_AS_ZERO, b" -"):
        return False
    rest = _IDS.sub(b"id", data)
    return any(_is_one(match.group(1)) for shape in _SHAPES for match in shape.finditer(rest))


def _is_one(written: bytes) -> bool:
    digits = written.replace(b" ", b"").replace(b"-", b"")
    return 13 <= len(digits) <= 19 and bool(luhn.is_valid(digits.decode()))
