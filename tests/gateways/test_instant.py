"""What only the gateway in this process has to prove: that it may forget, and be one of many."""

from __future__ import annotations

from datetime import UTC, datetime

from resources.payments.gateways.contract import Outcome, Reply
from resources.payments.gateways.instant import InstantGateway


async def authorise(gateway: InstantGateway, number: int) -> Reply:
    return await gateway.authorise(
        reference=f"r{number}", amount=100, currency="EUR", payment_method="tok_ok", key=f"k{number}"
    )


async def test_it_remembers_no_more_than_it_was_told_to() -> None:
    gateway = InstantGateway(remembered=10)
    for number in range(100):
        await authorise(gateway, number)

    page = await gateway.list_changed(since=datetime(2000, 1, 1, tzinfo=UTC), limit=1000)
    assert len(page.authorisations) == 10


async def test_what_it_forgot_has_the_same_id_and_can_be_captured() -> None:
    gateway = InstantGateway(remembered=1)
    first = await authorise(gateway, 1)
    await authorise(gateway, 2)
    again = await authorise(gateway, 1)
    await authorise(gateway, 2)

    assert again.authorisation_id == first.authorisation_id
    assert first.authorisation_id is not None
    taken = await gateway.capture(authorisation_id=first.authorisation_id, amount=100, key="capture")
    assert taken.outcome is Outcome.SUCCEEDED


async def test_what_one_process_authorised_another_can_capture_but_not_beyond_its_amount() -> None:
    held = await authorise(InstantGateway(), 1)
    assert held.authorisation_id is not None
    other = InstantGateway()

    more = await other.capture(authorisation_id=held.authorisation_id, amount=101, key="more")
    taken = await other.capture(authorisation_id=held.authorisation_id, amount=100, key="capture")
    assert more.outcome is Outcome.DECLINED
    assert taken.outcome is Outcome.SUCCEEDED
