"""Errors as HTTP says them: RFC 9457 problem details. The only map from codes to statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from tcc.errors import CODES, Blame, Kind
from tcc.resource import Resource

MEDIA_TYPE: Final = "application/problem+json"

STATUSES: Final[Mapping[str, int]] = {
    "malformed_json": 400,
    "invalid_request": 422,
    "body_too_large": 413,
    "card_number_refused": 422,
    "unknown_resource": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "idempotency_key_missing": 400,
    "idempotency_key_invalid": 400,
    "idempotency_key_reused": 409,
    "request_in_flight": 409,
    "id_reused": 409,
    "already_confirmed": 409,
    "already_cancelled": 409,
    "already_refused": 409,
    "expired": 409,
    "not_ready": 409,
    "part_of_transaction": 409,
    "transaction_refused": 409,
    "amounts_differ": 422,
    "overloaded": 503,
    "outcome_unknown": 503,
    "database_unavailable": 503,
    "internal_error": 500,
}
_REFUSALS: Final = {Blame.REQUEST: 422, Blame.STATE: 409, Blame.PAYER: 402}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error reply."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    correlation_id: str
    errors: Any
    """`FieldError`s, one per line or field; a resource may add what it found, such as what is available."""
    transaction_id: UUID | msgspec.UnsetType = msgspec.UNSET


class Problems:
    """Makes problem bodies, for the protocol's codes and those of the resources."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        refusals = {code: kind for resource in resources for code, kind in resource.refusals.items()}
        self.kinds: Mapping[str, Kind] = {**CODES, **refusals}
        self.statuses: Mapping[str, int] = {
            **STATUSES,
            **{code: _REFUSALS[kind.blame] for code, kind in refusals.items()},
        }

    def of(
        self,
        code: str,
        correlation_id: str,
        *,
        detail: str | None = None,
        errors: Any = (),
        transaction_id: UUID | msgspec.UnsetType = msgspec.UNSET,
    ) -> Problem:
        """The problem for a code; its detail is the code's title where nothing better is known."""
        kind = self.kinds[code]
        return Problem(
            type=f"urn:tcc:problem:{code}",
            title=kind.title,
            status=self.statuses[code],
            detail=detail or kind.title,
            code=code,
            retryable=kind.retryable,
            correlation_id=correlation_id,
            errors=errors,
            transaction_id=transaction_id,
        )
