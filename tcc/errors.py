"""What can go wrong, as stable codes. No HTTP in here: `tcc.http.problems` maps codes to statuses.

TccError
├── Rejected          the request was wrong, or contradicts what already happened; nothing was done
└── Unavailable       nothing is known to be wrong with the request; asking again is right
    ├── Overloaded        the queue is full, or doesn't move; nothing was done
    └── OutcomeUnknown    the database went away; what was asked may or may not have happened
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field or line: `field` as a path such as `lines[0].quantity`."""

    field: str
    code: str
    detail: str


class Blame(StrEnum):
    """What a refusal is due to."""

    REQUEST = "request"
    """What was asked for makes no sense, and never will."""
    STATE = "state"
    """What is there now doesn't allow it."""
    PAYER = "payer"
    """Whoever pays, or their bank, won't."""


class Kind(msgspec.Struct, frozen=True):
    """What a code means, whose doing it is, and whether sending the same request again can help."""

    title: str
    retryable: bool = False
    blame: Blame = Blame.STATE


CODES: Final[dict[str, Kind]] = {
    "malformed_json": Kind("The body is not valid JSON."),
    "invalid_request": Kind("A field is missing, unknown, or has a value that it can't have."),
    "body_too_large": Kind("The body is larger than the service accepts."),
    "card_number_refused": Kind("The request carries what looks like a card number; send a token instead."),
    "unknown_resource": Kind("There is no such resource."),
    "not_found": Kind("There is nothing under this id or path."),
    "method_not_allowed": Kind("This path doesn't answer this method."),
    "idempotency_key_missing": Kind("This operation needs an Idempotency-Key."),
    "idempotency_key_invalid": Kind("The Idempotency-Key is empty, too long, or not printable ASCII."),
    "idempotency_key_reused": Kind("The Idempotency-Key was used before with another request."),
    "request_in_flight": Kind("The first request with this Idempotency-Key is still running.", retryable=True),
    "id_reused": Kind("This id was tried before with another claim."),
    "already_confirmed": Kind("It was decided to confirm it, and that stays so."),
    "already_cancelled": Kind("It was decided to cancel it, and that stays so."),
    "already_refused": Kind("It was refused, so there is nothing to confirm or extend."),
    "expired": Kind("It expired before this request took effect."),
    "not_ready": Kind("It is still being tried; its outcome isn't known yet.", retryable=True),
    "part_of_transaction": Kind("This reservation belongs to a transaction, which alone decides for it."),
    "transaction_refused": Kind("A branch was refused, so the transaction is cancelled."),
    "amounts_differ": Kind("What is charged is not what is owed."),
    "overloaded": Kind("The service has more work than it can do now; nothing was done.", retryable=True),
    "outcome_unknown": Kind(
        "The database went away while this was being done; ask again with the same key or id.", retryable=True
    ),
    "database_unavailable": Kind("A database can't be reached now; nothing was done.", retryable=True),
    "internal_error": Kind("Something went wrong on our side; it has been logged."),
}
"""Every code of the protocol. Resources add the reasons for which they refuse a Try (`Resource.refusals`)."""


class TccError(Exception):
    """The root: a stable code, a sentence for people, and what is wrong with which field."""

    def __init__(self, code: str, detail: str | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail or code)
        self.code = code
        self.detail = detail
        self.errors = errors


class Rejected(TccError):
    """The request was wrong, or contradicts what already happened; nothing was done."""


class Unavailable(TccError):
    """Nothing is known to be wrong with the request; asking again is right."""

    retry_after_seconds: int = 1


class Overloaded(Unavailable):
    """The queue is full, or doesn't move; nothing was done."""

    def __init__(self) -> None:
        super().__init__("overloaded", "Too much work is waiting. Nothing was done; ask again shortly.")


class OutcomeUnknown(Unavailable):
    """The database went away; what was asked may or may not have happened."""

    retry_after_seconds = 2

    def __init__(self) -> None:
        super().__init__(
            "outcome_unknown",
            "The database went away; what you asked for may or may not have happened. "
            "Ask again with the same Idempotency-Key or id: it is never done twice.",
        )
