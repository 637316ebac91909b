"""The battery that every gateway passes, whatever is behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from resources.payments.gateways import open_gateway
from resources.payments.gateways.contract import Gateway, Outcome, Reply, Standing

AMOUNT = 4_200


async def authorise(
    gateway: Gateway, reference: str, method: str = "tok_ok", amount: int = AMOUNT, key: str | None = None
) -> Reply:
    return await gateway.authorise(
        reference=reference,
        amount=amount,
        currency="EUR",
        payment_method=method,
        key=key or f"{reference}/authorise",
    )


async def authorised(gateway: Gateway, reference: str, method: str = "tok_ok") -> str:
    reply = await authorise(gateway, reference, method)
    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.authorisation_id is not None
    return reply.authorisation_id


async def captured(gateway: Gateway, reference: str) -> str:
    id_ = await authorised(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture")
    assert reply.outcome is Outcome.SUCCEEDED
    return id_


async def test_an_authorisation_is_held_until_it_lapses(gateway: Gateway, reference: str) -> None:
    reply = await authorise(gateway, reference)

    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.code is None
    assert reply.capture_before is not None
    assert reply.capture_before - datetime.now(UTC) > timedelta(days=6)
    found = await gateway.find(reference=reference)
    assert found.standing is Standing.AUTHORISED
    assert found.authorisation is not None
    assert found.authorisation.id == reply.authorisation_id
    assert (found.authorisation.amount, found.authorisation.currency) == (AMOUNT, "EUR")


async def test_the_audit_log_is_told_what_was_asked_and_answered(gateway: Gateway, reference: str) -> None:
    reply = await authorise(gateway, reference)

    assert reply.request == {
        "operation": "authorise",
        "key": f"{reference}/authorise",
        "reference": reference,
        "amount": AMOUNT,
        "currency": "EUR",
        "payment_method": "tok_ok",
    }
    assert reply.response


@pytest.mark.parametrize(
    ("method", "code"), [("tok_declined", "card_declined"), ("tok_nonsense", "unknown_payment_method")]
)
async def test_a_decline_is_final_and_can_be_found(gateway: Gateway, reference: str, method: str, code: str) -> None:
    reply = await authorise(gateway, reference, method)

    assert (reply.outcome, reply.code, reply.permanent) == (Outcome.DECLINED, code, True)
    found = await gateway.find(reference=reference)
    assert found.standing is Standing.DECLINED
    assert found.authorisation is not None
    assert found.authorisation.code == code


async def test_an_amount_that_is_none_is_declined(gateway: Gateway, reference: str) -> None:
    reply = await authorise(gateway, reference, amount=0)

    assert (reply.outcome, reply.code, reply.permanent) == (Outcome.DECLINED, "invalid_request", True)


async def test_a_repeated_authorise_is_the_same_authorisation(gateway: Gateway, reference: str) -> None:
    first = await authorise(gateway, reference)
    again = await authorise(gateway, reference)

    assert again.outcome is Outcome.SUCCEEDED
    assert again.authorisation_id == first.authorisation_id
    assert again.capture_before == first.capture_before
    assert len((await gateway.find(reference=reference)).authorisations) == 1


async def test_a_key_used_for_another_request_leaves_it_unknown_for_a_person_to_settle(
    gateway: Gateway, reference: str
) -> None:
    await authorise(gateway, reference)
    reply = await authorise(gateway, reference, amount=AMOUNT + 1)

    assert reply.outcome is Outcome.UNKNOWN
    assert reply.code == "idempotency_key_reused"
    assert reply.permanent
    assert len((await gateway.find(reference=reference)).authorisations) == 1


async def test_a_key_of_an_authorise_does_not_do_for_a_capture(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/authorise")

    assert (reply.outcome, reply.code) == (Outcome.UNKNOWN, "idempotency_key_reused")
    assert (await gateway.find(reference=reference)).standing is Standing.AUTHORISED


async def test_two_keys_under_one_reference_are_two_authorisations_and_both_are_found(
    gateway: Gateway, reference: str
) -> None:
    first = await authorise(gateway, reference, key=f"{reference}/one")
    second = await authorise(gateway, reference, key=f"{reference}/two")
    assert second.authorisation_id is not None
    await gateway.capture(authorisation_id=second.authorisation_id, amount=AMOUNT, key=f"{reference}/capture")

    found = await gateway.find(reference=reference)
    assert found.standing is Standing.CAPTURED
    assert [one.id for one in found.authorisations] == [second.authorisation_id, first.authorisation_id]


async def test_a_capture_takes_the_money_once(gateway: Gateway, reference: str) -> None:
    id_ = await captured(gateway, reference)
    again = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture")

    assert again.outcome is Outcome.SUCCEEDED
    found = await gateway.find(reference=reference)
    assert found.standing is Standing.CAPTURED
    assert found.authorisation is not None
    assert found.authorisation.captured_amount == AMOUNT


async def test_less_than_was_held_can_be_captured(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT - 1, key=f"{reference}/capture")

    assert reply.outcome is Outcome.SUCCEEDED
    found = (await gateway.find(reference=reference)).authorisation
    assert found is not None
    assert found.captured_amount == AMOUNT - 1


async def test_more_than_was_held_cannot_be_captured(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT + 1, key=f"{reference}/capture")

    assert (reply.outcome, reply.code, reply.permanent) == (Outcome.DECLINED, "amount_too_large", True)
    assert (await gateway.find(reference=reference)).standing is Standing.AUTHORISED


async def test_a_capture_whose_key_was_forgotten_still_succeeds(gateway: Gateway, reference: str) -> None:
    id_ = await captured(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture-later")

    assert reply.outcome is Outcome.SUCCEEDED
    found = (await gateway.find(reference=reference)).authorisation
    assert found is not None
    assert found.captured_amount == AMOUNT


async def test_a_second_capture_of_another_amount_is_refused(gateway: Gateway, reference: str) -> None:
    id_ = await captured(gateway, reference)
    reply = await gateway.capture(authorisation_id=id_, amount=1, key=f"{reference}/capture-more")

    assert (reply.outcome, reply.code) == (Outcome.DECLINED, "authorisation_captured")
    assert reply.permanent


async def test_a_capture_can_be_refused_for_good(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference, "tok_capture_refused")
    for _ in range(2):
        reply = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture")
        assert (reply.outcome, reply.code, reply.permanent) == (Outcome.DECLINED, "capture_refused", True)
    voided = await gateway.void(authorisation_id=id_, key=f"{reference}/void")
    assert voided.outcome is Outcome.SUCCEEDED


async def test_a_void_lets_go_and_a_later_capture_is_refused(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference)
    voided = await gateway.void(authorisation_id=id_, key=f"{reference}/void")
    capture = await gateway.capture(authorisation_id=id_, amount=AMOUNT, key=f"{reference}/capture")

    assert voided.outcome is Outcome.SUCCEEDED
    assert (capture.outcome, capture.code) == (Outcome.DECLINED, "authorisation_voided")
    assert capture.permanent
    assert (await gateway.find(reference=reference)).standing is Standing.VOIDED


@pytest.mark.parametrize("key", ["void", "void-later"])
async def test_a_void_of_what_is_voided_succeeds(gateway: Gateway, reference: str, key: str) -> None:
    id_ = await authorised(gateway, reference)
    await gateway.void(authorisation_id=id_, key=f"{reference}/void")
    again = await gateway.void(authorisation_id=id_, key=f"{reference}/{key}")

    assert again.outcome is Outcome.SUCCEEDED


async def test_what_is_captured_cannot_be_voided(gateway: Gateway, reference: str) -> None:
    id_ = await captured(gateway, reference)
    reply = await gateway.void(authorisation_id=id_, key=f"{reference}/void")

    assert (reply.outcome, reply.code) == (Outcome.DECLINED, "authorisation_captured")
    assert reply.permanent


async def test_refunds_in_parts_end_at_what_was_captured(gateway: Gateway, reference: str) -> None:
    id_ = await captured(gateway, reference)
    part = await gateway.refund(authorisation_id=id_, amount=1_200, key=f"{reference}/refund-1")
    again = await gateway.refund(authorisation_id=id_, amount=1_200, key=f"{reference}/refund-1")
    assert (part.outcome, again.outcome) == (Outcome.SUCCEEDED, Outcome.SUCCEEDED)
    found = (await gateway.find(reference=reference)).authorisation
    assert found is not None
    assert (found.standing, found.refunded_amount) == (Standing.CAPTURED, 1_200)

    too_much = await gateway.refund(authorisation_id=id_, amount=3_001, key=f"{reference}/refund-2")
    assert (too_much.outcome, too_much.code) == (Outcome.DECLINED, "amount_too_large")
    rest = await gateway.refund(authorisation_id=id_, amount=3_000, key=f"{reference}/refund-3")
    assert rest.outcome is Outcome.SUCCEEDED
    assert (await gateway.find(reference=reference)).standing is Standing.REFUNDED


async def test_what_is_not_captured_cannot_be_refunded(gateway: Gateway, reference: str) -> None:
    id_ = await authorised(gateway, reference)
    reply = await gateway.refund(authorisation_id=id_, amount=1, key=f"{reference}/refund")

    assert (reply.outcome, reply.code) == (Outcome.DECLINED, "authorisation_authorised")


@pytest.mark.parametrize("operation", ["capture", "void", "refund"])
async def test_nothing_can_be_done_to_what_is_not_there(gateway: Gateway, reference: str, operation: str) -> None:
    calls: dict[str, Callable[[], Awaitable[Reply]]] = {
        "capture": lambda: gateway.capture(authorisation_id="no such one?", amount=1, key=reference),
        "void": lambda: gateway.void(authorisation_id="no such one?", key=reference),
        "refund": lambda: gateway.refund(authorisation_id="no such one?", amount=1, key=reference),
    }
    reply = await calls[operation]()

    assert (reply.outcome, reply.code) == (Outcome.DECLINED, "authorisation_not_found")
    assert reply.permanent


async def test_a_reference_never_used_is_not_found(gateway: Gateway, reference: str) -> None:
    found = await gateway.find(reference=reference)

    assert found.standing is Standing.NOT_FOUND
    assert found.authorisation is None


async def test_all_that_changed_is_listed_page_by_page_in_order_of_change(gateway: Gateway, reference: str) -> None:
    await authorised(gateway, f"{reference}-before")
    since = datetime.now(UTC)
    ids = [await authorised(gateway, f"{reference}-{number}") for number in range(5)]
    await gateway.void(authorisation_id=ids[0], key=f"{reference}/void")

    listed: list[str] = []
    sizes: list[int] = []
    cursor: str | None = None
    while True:
        page = await gateway.list_changed(since=since, cursor=cursor, limit=2)
        listed += [one.id for one in page.authorisations]
        sizes.append(len(page.authorisations))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert listed == [*ids[1:], ids[0]]
    assert sizes == [2, 2, 1]
    last = (await gateway.list_changed(since=since)).authorisations[-1]
    assert last.standing is Standing.VOIDED


@pytest.mark.parametrize("url", ["", "ftp://gateway", "http://", "instant:now", "http:gateway"])
def test_a_url_of_no_gateway_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match="the payment gateway's URL must be"):
        open_gateway(url)
