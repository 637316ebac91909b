"""What goes over the wire, in and out."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated

import msgspec

Amount = Annotated[int, msgspec.Meta(gt=0, le=10**12)]
"""Integer minor units."""
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Currency = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]


class Operation(StrEnum):
    AUTHORISE = "authorise"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class State(StrEnum):
    AUTHORISED = "authorised"
    CAPTURED = "captured"
    VOIDED = "voided"
    DECLINED = "declined"
    REFUNDED = "refunded"
    """All that was captured was given back; less than all leaves it `captured`."""


class Result(StrEnum):
    """What became of a request, in the ledger's words."""

    SUCCEEDED = "succeeded"
    DECLINED = "declined"
    FAILED = "failed"
    """Answered 503 on purpose, without effect."""
    REPLAYED = "replayed"
    KEY_REUSED = "key_reused"
    IN_FLIGHT = "in_flight"


class AuthoriseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reference: Word
    amount: Amount
    currency: Currency
    payment_method: Word


class AmountBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: Amount


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A void says nothing more."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, decoded; what it has no need to say is empty. Requests are the same if their Calls are."""

    operation: Operation
    key: str
    authorisation_id: str
    reference: str = ""
    amount: int = 0
    currency: str = ""
    payment_method: str = ""


class Authorisation(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of an authorisation. Times are UTC."""

    id: str
    reference: str
    amount: int
    currency: str
    payment_method: str
    state: State
    code: str | None = None
    captured_amount: int = 0
    refunded_amount: int = 0
    capture_before: datetime
    created_at: datetime
    changed_at: datetime


class AnswerBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer to a POST. Errors carry `code`, and the authorisation if there is one."""

    authorisation: Authorisation | None = None
    code: str | None = None
    message: str | None = None
    permanent: bool = False


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    authorisations: list[Authorisation]
    in_flight: bool = False
    """Whether a request under the reference asked for is being worked on."""
    next: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the ledger: one request that was received, with or without effect."""

    seq: int
    at: datetime
    operation: Operation
    authorisation_id: str
    reference: str | None
    amount: int | None
    key: str
    result: Result
    had_effect: bool
    status: int
    code: str | None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An authorisation, how often each operation on it was asked for, and how often it had an effect."""

    authorisation: Authorisation
    effects: dict[Operation, int]
    requests: dict[Operation, int]


class LedgerPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of the ledger, and the present accounts of the authorisations they speak of."""

    operations: list[Entry]
    accounts: list[Account]
    next: int | None
    """To be given as `after`; None at the end."""


def authorisation_id(key: str) -> str:
    """Name the authorisation that an authorise with this key makes.

    A function of the key, so that the ledger can say what a request was about before, and even if, there
    is an authorisation.
    """
    return "auth_" + sha256(key.encode()).hexdigest()[:32]


encode = msgspec.json.Encoder().encode
