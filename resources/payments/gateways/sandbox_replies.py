"""What an answer of the sandbox gateway means. Pure: a status and a body in, a Reply out.

The one place that decides between declined and unknown over HTTP, so it can be read, and tested, as a
table.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec

from resources.payments.gateways.contract import (
    Authorisation,
    Lookup,
    Outcome,
    Page,
    Reply,
    Standing,
    most_consequential_first,
)

UNREADABLE = "gateway_unreadable"


class _Authorisation(msgspec.Struct):
    """The sandbox's JSON. A state it does not list here makes the answer unreadable, hence unknown."""

    id: str
    reference: str
    amount: int
    currency: str
    state: Literal["authorised", "captured", "voided", "declined", "refunded"]
    changed_at: datetime
    captured_amount: int = 0
    refunded_amount: int = 0
    capture_before: datetime | None = None
    code: str | None = None


class _Answer(msgspec.Struct):
    authorisation: _Authorisation | None = None
    code: str | None = None
    message: str | None = None
    permanent: bool = False


class _Listing(msgspec.Struct):
    authorisations: list[_Authorisation]
    in_flight: bool = False
    next: str | None = None


_answer = msgspec.json.Decoder(_Answer)
_listing = msgspec.json.Decoder(_Listing)
_anything = msgspec.json.Decoder(dict[str, Any])

SAYS_NOTHING = frozenset({401, 403, 408, 425, 429})
"""4xx statuses that are about us or the moment, not about the card: our credentials, our haste."""


def read_reply(
    *,
    status: int,
    body: bytes,
    retry_after: str | None,
    request: dict[str, Any],
    duration_seconds: float,
    now: datetime | None = None,
) -> Reply:
    """Tell what the answer to an authorise, capture, void or refund means."""
    response, answer = _read(body)
    authorisation = answer.authorisation if answer else None
    outcome, code, permanent = _meaning(status, answer, request)
    return Reply(
        outcome=outcome,
        authorisation_id=authorisation.id if authorisation else None,
        code=code,
        message=answer.message if answer else None,
        permanent=permanent,
        retry_after_seconds=seconds_of(retry_after, now) if outcome is Outcome.UNKNOWN else None,
        capture_before=authorisation.capture_before if authorisation else None,
        request=request,
        response=response,
        duration_seconds=duration_seconds,
        status=status,
    )


def read_lookup(
    *,
    status: int,
    body: bytes,
    retry_after: str | None,
    request: dict[str, Any],
    duration_seconds: float,
    now: datetime | None = None,
) -> Lookup:
    """Tell what the answer to a lookup by reference means."""
    listing = _read_listing(status, body)
    if listing is None:
        return Lookup(
            standing=Standing.UNKNOWN,
            code=_wordless(status),
            retry_after_seconds=seconds_of(retry_after, now),
            request=request,
            duration_seconds=duration_seconds,
            status=status,
        )
    found = most_consequential_first(_authorisation(one) for one in listing.authorisations)
    standing = found[0].standing if found else Standing.NOT_FOUND
    if listing.in_flight and standing is not Standing.CAPTURED:
        standing = Standing.PENDING
    return Lookup(
        standing=standing,
        authorisations=found,
        request=request,
        response=_anything.decode(body),
        duration_seconds=duration_seconds,
        status=status,
    )


def read_page(status: int, body: bytes) -> Page | None:
    """Read a page of changes; None when it is not one."""
    listing = _read_listing(status, body)
    if listing is None:
        return None
    return Page(authorisations=tuple(_authorisation(one) for one in listing.authorisations), next_cursor=listing.next)


def seconds_of(retry_after: str | None, now: datetime | None = None) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date; None if there is none or it is nonsense."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            moment = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        if moment.tzinfo is None:  # "-0000" is UTC too
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None


def _meaning(status: int, answer: _Answer | None, request: dict[str, Any]) -> tuple[Outcome, str | None, bool]:
    if answer is None:
        return Outcome.UNKNOWN, _wordless(status), False
    code = answer.code
    if status == 202:
        return Outcome.PENDING, code, False
    if 200 <= status < 300:
        if answer.authorisation is None:
            return Outcome.UNKNOWN, UNREADABLE, False
        return Outcome.SUCCEEDED, None, False
    if code == "idempotency_key_reused":
        return Outcome.UNKNOWN, code, True
    if status < 400 or status >= 500 or status in SAYS_NOTHING or code is None or code == "request_in_flight":
        return Outcome.UNKNOWN, code or _wordless(status), False
    if _done_before(code, answer.authorisation, request):
        return Outcome.SUCCEEDED, code, False
    return Outcome.DECLINED, code, answer.permanent


def _done_before(code: str, authorisation: _Authorisation | None, request: dict[str, Any]) -> bool:
    """Gateways forget keys after a day, and refuse the repeat of what was done: that is success."""
    match request["operation"]:
        case "void":
            return code == "authorisation_voided"
        case "capture":
            return (
                code == "authorisation_captured"
                and authorisation is not None
                and authorisation.captured_amount == request["amount"]
            )
        case _:
            return False


def _read(body: bytes) -> tuple[dict[str, Any] | None, _Answer | None]:
    body = _recordable(body)
    try:
        return _anything.decode(body), _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, None


def _read_listing(status: int, body: bytes) -> _Listing | None:
    if status != 200:
        return None
    try:
        return _listing.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _recordable(body: bytes) -> bytes:
    """A body that the database can keep: PostgreSQL has no NUL in a text, and an answer that can't be recorded would be
    asked for again for ever."""
    return body.replace(b"\\u0000", b"\\ufffd")


def _authorisation(wire: _Authorisation) -> Authorisation:
    return Authorisation(
        id=wire.id,
        reference=wire.reference,
        amount=wire.amount,
        currency=wire.currency,
        standing=Standing(wire.state),
        captured_amount=wire.captured_amount,
        refunded_amount=wire.refunded_amount,
        capture_before=wire.capture_before,
        code=wire.code,
        changed_at=wire.changed_at,
    )


def _wordless(status: int) -> str:
    return UNREADABLE if status < 300 else f"gateway_status_{status}"
