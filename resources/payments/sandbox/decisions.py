"""What the gateway does with a request, given the authorisation as it stands. Pure: no clock, no SQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from resources.payments.sandbox.behaviour import Behaviour
from resources.payments.sandbox.wire import Authorisation, Call, Operation, Result, State


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A decision, to be written down and answered."""

    status: int
    result: Result
    authorisation: Authorisation | None = None
    """As it is from now on."""
    had_effect: bool = False
    """Whether money was held, let go, taken or given back."""
    code: str | None = None
    message: str | None = None
    permanent: bool = False
    kept: bool = True
    """Whether a repeat with the same key is given this answer, or is decided anew."""


def authorise(call: Call, behaviour: Behaviour | None, now: datetime) -> Verdict:
    """Hold the amount, or record that it was declined."""
    code = "unknown_payment_method" if behaviour is None else behaviour.declined
    validity = timedelta(seconds=behaviour.validity_seconds if behaviour else 0)
    made = Authorisation(
        id=call.authorisation_id,
        reference=call.reference,
        amount=call.amount,
        currency=call.currency,
        payment_method=call.payment_method,
        state=State.DECLINED if code else State.AUTHORISED,
        code=code,
        capture_before=now + validity,
        created_at=now,
        changed_at=now,
    )
    if code is None:
        return Verdict(status=201, result=Result.SUCCEEDED, authorisation=made, had_effect=True)
    return Verdict(
        status=422 if behaviour is None else 402,
        result=Result.DECLINED,
        authorisation=made,
        code=code,
        message="there is no such payment method" if behaviour is None else "the card was declined",
        permanent=True,
    )


def follow_up(
    call: Call, current: Authorisation | None, behaviour: Behaviour, failed_captures: int, now: datetime
) -> Verdict:
    """Capture, void or refund. `failed_captures` is how many captures of it have failed so far."""
    if current is None:
        return Verdict(
            status=404,
            result=Result.DECLINED,
            code="authorisation_not_found",
            message="there is no such authorisation",
            permanent=True,
            kept=False,
        )
    match call.operation:
        case Operation.CAPTURE:
            return _capture(call, current, behaviour, failed_captures, now)
        case Operation.VOID:
            return _void(current, now)
        case Operation.REFUND:
            return _refund(call, current, now)
        case Operation.AUTHORISE:
            raise AssertionError("an authorise follows nothing")


def _capture(call: Call, current: Authorisation, behaviour: Behaviour, failed_captures: int, now: datetime) -> Verdict:
    if current.state is not State.AUTHORISED:
        return _conflict(current)
    if failed_captures < behaviour.captures_that_fail:
        return Verdict(
            status=503,
            result=Result.FAILED,
            authorisation=current,
            code="temporarily_unavailable",
            message="nothing was done; try again",
            kept=False,
        )
    if behaviour.capture_refused:
        return _refuse(current, 402, "capture_refused", "the issuer refuses the capture for good")
    if now >= current.capture_before:
        return _refuse(current, 402, "authorisation_expired", "the authorisation has lapsed")
    if call.amount > current.amount:
        return _refuse(current, 422, "amount_too_large", "more than was authorised")
    return _change(current, now, state=State.CAPTURED, captured_amount=call.amount)


def _void(current: Authorisation, now: datetime) -> Verdict:
    if current.state is not State.AUTHORISED:
        return _conflict(current)
    return _change(current, now, state=State.VOIDED)


def _refund(call: Call, current: Authorisation, now: datetime) -> Verdict:
    if current.state is not State.CAPTURED:
        return _conflict(current)
    refunded = current.refunded_amount + call.amount
    if refunded > current.captured_amount:
        return _refuse(current, 422, "amount_too_large", "more than is left of what was captured")
    state = State.REFUNDED if refunded == current.captured_amount else State.CAPTURED
    return _change(current, now, state=state, refunded_amount=refunded)


def _change(current: Authorisation, now: datetime, **changes: Any) -> Verdict:
    after = msgspec.structs.replace(current, changed_at=now, **changes)
    return Verdict(status=200, result=Result.SUCCEEDED, authorisation=after, had_effect=True)


def _conflict(current: Authorisation) -> Verdict:
    """Like the real ones: a void of what is voided is an error, which the client knows to be success."""
    return _refuse(current, 409, f"authorisation_{current.state.value}", f"the authorisation is {current.state.value}")


def _refuse(current: Authorisation, status: int, code: str, message: str) -> Verdict:
    return Verdict(
        status=status,
        result=Result.DECLINED,
        authorisation=current,
        code=code,
        message=message,
        permanent=True,
    )
