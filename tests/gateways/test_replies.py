"""Declined or unknown: every kind of answer, as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from resources.payments.gateways.contract import Outcome, Standing
from resources.payments.gateways.sandbox_replies import read_lookup, read_reply, seconds_of

HELD = {
    "id": "auth_1",
    "reference": "r1",
    "amount": 100,
    "currency": "EUR",
    "state": "authorised",
    "changed_at": "2026-01-01T00:00:00Z",
}
CAPTURED = {**HELD, "state": "captured", "captured_amount": 100}

ANSWERS: list[tuple[int, Any, Outcome, str | None, bool]] = [
    (201, {"authorisation": HELD}, Outcome.SUCCEEDED, None, False),
    (200, {"authorisation": CAPTURED}, Outcome.SUCCEEDED, None, False),
    (202, {"authorisation": HELD}, Outcome.PENDING, None, False),
    (202, {}, Outcome.PENDING, None, False),
    (200, {}, Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, [], Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, {"authorisation": {**HELD, "state": "strange"}}, Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, b"<html>welcome</html>", Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, b'{"authorisation":', Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, b"\xff\xfe", Outcome.UNKNOWN, "gateway_unreadable", False),
    (200, b"", Outcome.UNKNOWN, "gateway_unreadable", False),
    (302, b"", Outcome.UNKNOWN, "gateway_status_302", False),
    (401, {"code": "bad_credentials"}, Outcome.UNKNOWN, "bad_credentials", False),
    (403, b"forbidden", Outcome.UNKNOWN, "gateway_status_403", False),
    (408, b"", Outcome.UNKNOWN, "gateway_status_408", False),
    (429, {"code": "too_many_requests"}, Outcome.UNKNOWN, "too_many_requests", False),
    (409, {"code": "request_in_flight"}, Outcome.UNKNOWN, "request_in_flight", False),
    (409, {"code": "idempotency_key_reused"}, Outcome.UNKNOWN, "idempotency_key_reused", True),
    (400, {"code": "idempotency_key_reused"}, Outcome.UNKNOWN, "idempotency_key_reused", True),
    (500, {"code": "internal_error"}, Outcome.UNKNOWN, "internal_error", False),
    (502, b"<html>bad gateway</html>", Outcome.UNKNOWN, "gateway_status_502", False),
    (503, {"code": "card_declined", "permanent": True}, Outcome.UNKNOWN, "card_declined", False),
    (404, b"not found", Outcome.UNKNOWN, "gateway_status_404", False),
    (404, {"message": "no route"}, Outcome.UNKNOWN, "gateway_status_404", False),
    (402, {"code": "card_declined", "permanent": True}, Outcome.DECLINED, "card_declined", True),
    (402, {"code": "try_again_later"}, Outcome.DECLINED, "try_again_later", False),
    (
        422,
        {"code": "unknown_payment_method", "permanent": True},
        Outcome.DECLINED,
        "unknown_payment_method",
        True,
    ),
]


@pytest.mark.parametrize(("status", "body", "outcome", "code", "permanent"), ANSWERS)
def test_only_what_the_gateway_clearly_said_is_taken_for_an_answer(
    status: int, body: Any, outcome: Outcome, code: str | None, permanent: bool
) -> None:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    reply = read_reply(
        status=status, body=raw, retry_after=None, request={"operation": "authorise"}, duration_seconds=0.1
    )

    assert (reply.outcome, reply.code, reply.permanent) == (outcome, code, permanent)
    assert reply.status == status


@pytest.mark.parametrize(
    ("request_", "code", "authorisation", "outcome"),
    [
        ({"operation": "void"}, "authorisation_voided", HELD, Outcome.SUCCEEDED),
        ({"operation": "void"}, "authorisation_captured", CAPTURED, Outcome.DECLINED),
        ({"operation": "capture", "amount": 100}, "authorisation_captured", CAPTURED, Outcome.SUCCEEDED),
        ({"operation": "capture", "amount": 99}, "authorisation_captured", CAPTURED, Outcome.DECLINED),
        ({"operation": "capture", "amount": 100}, "authorisation_captured", None, Outcome.DECLINED),
        ({"operation": "capture", "amount": 100}, "authorisation_voided", HELD, Outcome.DECLINED),
        ({"operation": "refund", "amount": 100}, "authorisation_refunded", HELD, Outcome.DECLINED),
    ],
)
def test_a_conflict_with_what_we_wanted_anyway_is_success(
    request_: dict[str, Any], code: str, authorisation: dict[str, Any] | None, outcome: Outcome
) -> None:
    body = msgspec.json.encode({"code": code, "authorisation": authorisation, "permanent": True})
    reply = read_reply(status=409, body=body, retry_after=None, request=request_, duration_seconds=0.1)

    assert reply.outcome is outcome


def test_an_answer_with_a_nul_can_be_kept_by_the_database() -> None:
    body = msgspec.json.encode({"code": "card_declined", "message": "no\0pe", "authorisation": {**HELD, "code": "\0"}})
    reply = read_reply(
        status=402, body=body, retry_after=None, request={"operation": "capture", "amount": 1}, duration_seconds=0.1
    )

    assert (reply.outcome, reply.message) == (Outcome.DECLINED, "no\ufffdpe")
    assert b"\\u0000" not in msgspec.json.encode(reply.response)


@pytest.mark.parametrize("status", [429, 409, 503])
def test_an_unknown_outcome_says_when_to_ask_again(status: int) -> None:
    body = b'{"code":"request_in_flight"}'
    reply = read_reply(status=status, body=body, retry_after="7", request={"operation": "void"}, duration_seconds=0.1)

    assert reply.outcome is Outcome.UNKNOWN
    assert reply.retry_after_seconds == 7.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_or_ignored(header: str | None, seconds: float | None) -> None:
    assert seconds_of(header, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(("status", "body"), [(500, b""), (404, b"{}"), (200, b"{}"), (200, b"<html>")])
def test_a_lookup_that_was_not_answered_is_unknown_and_never_not_found(status: int, body: bytes) -> None:
    found = read_lookup(status=status, body=body, retry_after=None, request={}, duration_seconds=0.1)

    assert found.standing is Standing.UNKNOWN
    assert found.code is not None
