"""Card numbers are refused wherever they are sent, and never logged, stored or said back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import cycle
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stdnum import luhn
from structlog.testing import capture_logs

from tcc.http.cards import has_card_number
from tcc.service import Service
from tests.client import Answer, Api
from tests.http.records import footprint
from tests.http.refusals import check_problem
from tests.http.samples import SKU, some_id

VISA = "4242424242424242"
CARDS = ("4222222222222", "371449635398431", VISA, "5555555555554444", "6200000000000000000", "9000000000000000001")
WRITINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "in groups": lambda card: " ".join(card[n : n + 4] for n in range(0, len(card), 4)),
    "with dashes": lambda card: "-".join(card[n : n + 4] for n in range(0, len(card), 4)),
    "escaped": lambda card: "".join(f"\\u003{digit}" for digit in card),
    "escaped in part": lambda card: f"\\u003{card[0]}{card[1:]}",
    "with escaped spaces": lambda card: "\\u0020".join(card[n : n + 4] for n in range(0, len(card), 4)),
}
# Where a text may stand in a body: the path of what asks for it, the body, and the field that is at fault.
PLACES: dict[str, tuple[str, str, str]] = {
    "reference": (
        "/v1/inventory/reservations",
        '{"lines":[{"sku":"MUG","quantity":1}],"reference":"%s"}',
        "reference",
    ),
    "customer": (
        "/v1/orders/reservations",
        '{"customer":"%s","currency":"EUR","lines":[{"sku":"MUG","quantity":1,"unit_amount":1}]}',
        "customer",
    ),
    "payment method": (
        "/v1/payments/reservations",
        '{"amount":100,"currency":"EUR","payment_method":"%s"}',
        "payment_method",
    ),
    "payment method of a branch": (
        "/v1/transactions",
        '{"branches":[{"resource":"payments","claim":{"amount":1,"currency":"EUR","payment_method":"%s"}}]}',
        "branches[0].claim.payment_method",
    ),
    "SKU": ("/v1/inventory/reservations", '{"lines":[{"sku":"%s","quantity":1}]}', "lines[0].sku"),
    "location": (
        "/v1/inventory/reservations",
        '{"lines":[{"sku":"MUG","quantity":1,"location":"%s"}]}',
        "lines[0].location",
    ),
    "unknown field": (
        "/v1/inventory/reservations",
        '{"lines":[{"sku":"MUG","quantity":1}],"card":{"number":"%s"}}',
        "card.number",
    ),
    "an unknown field's name": ("/v1/inventory/reservations", '{"lines":[{"sku":"MUG","%s":1}]}', "lines[0]"),
    "resource": ("/v1/transactions", '{"branches":[{"resource":"%s","claim":{}}]}', "branches[0].resource"),
    "way to confirm": ("/v1/transactions", '{"branches":[],"confirm":"%s"}', "confirm"),
    "id": ("/v1/inventory/reservations", '{"lines":[{"sku":"MUG","quantity":1}],"id":"%s"}', "id"),
    "time to live": (f"/v1/inventory/reservations/{some_id()}/extend", '{"ttl_seconds":"%s"}', "ttl_seconds"),
    "a body that nobody reads": (f"/v1/inventory/reservations/{some_id()}/confirm", '{"note":"%s"}', "note"),
    "beside other text": (
        "/v1/inventory/reservations",
        '{"lines":[{"sku":"MUG","quantity":1}],"reference":"my card is %s, valid to 12/27"}',
        "reference",
    ),
    "broken JSON": ("/v1/inventory/reservations", '{"lines":[{"sku":"%s', "body"),
}
NUMBERS = {
    "an amount": ("/v1/payments/reservations", '{"amount":%s,"currency":"EUR","payment_method":"tok_ok"}', "amount"),
    "a negative amount": ("/v1/payments/reservations", '{"amount":-%s,"currency":"EUR"}', "amount"),
    "a quantity": ("/v1/inventory/reservations", '{"lines":[{"sku":"MUG","quantity":%s}]}', "lines[0].quantity"),
    "an unknown field": ("/v1/transactions", '{"branches":[],"card":[%s]}', "card[0]"),
    "a whole body": ("/v1/transactions", "%s", "body"),
}


class Watch:
    """Sees to it that nothing of a card is said, logged, or left behind."""

    def __init__(self, service: Service, before: dict[str, Any], logged: list[Any], others: pytest.LogCaptureFixture):
        self._service = service
        self._before = before
        self._logged = logged
        self._others = others

    def check(self, answer: Answer, *said: str) -> None:
        everything = f"{answer.headers} {answer.body.decode()} {self._logged} {self._others.text}"
        for card in said:
            assert card not in everything

    async def ends(self) -> None:
        assert await footprint(self._service) == self._before


@pytest.fixture
async def watch(api: Api, service: Service, caplog: pytest.LogCaptureFixture) -> Any:
    """A watch over everything that is logged from here on."""
    await api.stock(SKU, 10)
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logged:
        watch = Watch(service, await footprint(service), logged, caplog)
        yield watch
        await watch.ends()


@pytest.mark.parametrize("writing", WRITINGS)
async def test_a_card_number_is_refused_in_any_field(api: Api, watch: Watch, writing: str) -> None:
    for (place, (path, body, field)), card in zip(PLACES.items(), cycle(CARDS)):
        written = WRITINGS[writing](card)
        answer = await api.post(path, (body % written).encode(), key="a key")
        assert (answer.status, check_problem(answer)["code"]) == (422, "card_number_refused"), (place, written)
        assert answer.json["errors"][0]["field"] == field, (place, written)
        watch.check(answer, written, card)


@pytest.mark.parametrize("place", NUMBERS)
async def test_a_card_number_is_refused_as_a_number(api: Api, watch: Watch, place: str) -> None:
    path, body, field = NUMBERS[place]
    for card in CARDS[:-1]:
        answer = await api.post(path, (body % card).encode(), key="a key")
        assert (answer.status, answer.code, answer.json["errors"][0]["field"]) == (422, "card_number_refused", field)
        watch.check(answer, card)


@pytest.mark.parametrize(
    "address",
    [
        f"/v1/inventory/items/{VISA}",
        "/v1/inventory/items/4242-4242-4242-4242",
        "/v1/inventory/items/4242%204242%204242%204242",
        "/v1/inventory/items/" + "".join(f"%3{digit}" for digit in VISA),
        f"/v1/{VISA}/reservations",
        f"/v1/transactions/{VISA}/confirm",
        f"/v1/transactions?cursor={VISA}",
        "/v1/transactions?state=4242+4242+4242+4242",
        f"/v1/transactions?{VISA}=1",
        f"/v1/transactions?limit=1&card={VISA}",
        f"/nothing/{VISA}",
        f"/healthz?card={VISA}",
        f"/schema/openapi.json?card={VISA}",
    ],
)
async def test_a_card_number_is_refused_in_an_address(api: Api, watch: Watch, address: str) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = await api.ask(method, address, {"on_hand": 5} if method != "GET" else None)
        assert (answer.status, check_problem(answer)["code"]) == (422, "card_number_refused")
        watch.check(answer, VISA, "4242-4242", "4242 4242")


@pytest.mark.parametrize("key", [VISA, f'"{VISA}"', "4242 4242 4242 4242", f"order {VISA}", f"order-{VISA}"])
async def test_a_card_number_is_refused_as_a_key(api: Api, watch: Watch, key: str) -> None:
    answer = await api.hold(SKU, key=key)
    assert (answer.status, answer.code) == (422, "card_number_refused")
    assert answer.json["errors"][0]["field"] == "Idempotency-Key"
    watch.check(answer, VISA, "4242 4242")


@pytest.mark.parametrize("id", [VISA, "4242-4242-4242-4242", f"card:{VISA}", f"r{VISA}"])
async def test_a_card_number_is_replaced_as_a_correlation_id(api: Api, watch: Watch, id: str) -> None:
    answer = await api.get(f"/v1/inventory/items/{SKU}", headers={"X-Correlation-ID": id})
    assert answer.status == 200
    UUID(answer.headers["x-correlation-id"])
    watch.check(answer, VISA, "4242-4242")


def _as_card(digits: str) -> str:
    return f"{digits}{luhn.calc_check_digit(digits)}"


ISSUED = st.from_regex(r"(2[2-7]|[3-6][0-9])[0-9]{10,16}", fullmatch=True).map(_as_card)
ANY = st.from_regex(r"[0-9]{12,18}", fullmatch=True).map(_as_card)


@given(ANY, st.sampled_from(["", " ", "-"]), st.integers(3, 6))
def test_every_number_that_passes_the_luhn_check_is_found(digits: str, between: str, size: int) -> None:
    written = between.join(digits[n : n + size] for n in range(0, len(digits), size))
    assert has_card_number(f'{{"reference":"{written}"}}'.encode())


@given(ISSUED, st.sampled_from(["tok_%s", "x%s", "%sx", "order-%s", "%s-1", "a.%s", "%s 12/27", "7 %s", "%s.", "-%s"]))
def test_numbers_that_networks_issue_are_found_beside_other_text(digits: str, text: str) -> None:
    assert has_card_number((text % digits).encode())


@pytest.mark.parametrize("written", ["4242 4242 4242 4242", "3714-496353-98431", "6200 0000 0000 0000 000"])
@pytest.mark.parametrize("text", ["tok_%s", "%s 12/27", "7 %s 123", "2000 4242 %s", "x%s-1"])
def test_numbers_in_groups_are_found_beside_other_text(written: str, text: str) -> None:
    assert has_card_number((text % written).encode())


@given(st.uuids(), st.sampled_from(["%s", '"%s"', "/v1/transactions/%s/log", "key %s", "7 %s 8"]))
@example(UUID("42424242-4242-4242-8242-424242424242"), "%s")
@example(UUID("00000000-0000-7000-8000-000000000018"), "%s")
def test_uuids_are_never_taken_for_cards(id: UUID, text: str) -> None:
    assert not has_card_number((text % id).encode())
    assert not has_card_number((text % id.hex).encode())


@given(st.text("0123456789", min_size=32, max_size=32).map(lambda digits: UUID(hex=digits)))
def test_uuids_of_digits_alone_are_never_taken_for_cards(id: UUID) -> None:
    assert not has_card_number(f'"{id}"'.encode())


@given(st.lists(st.integers(-(10**12) + 1, 10**12 - 1)), st.lists(st.floats(-1e12, 1e12)))
def test_ordinary_numbers_are_never_taken_for_cards(whole: list[int], broken: list[float]) -> None:
    assert not has_card_number(f"{whole} {broken}".encode())


@settings(max_examples=50)
@given(st.from_regex(r"[0-9]{20,60}", fullmatch=True))
def test_longer_runs_of_digits_are_no_cards(digits: str) -> None:
    assert not has_card_number(digits.encode())


@given(st.datetimes(), st.text("0123456789abcdef", min_size=40, max_size=64))
def test_times_and_hashes_are_never_taken_for_cards(moment: Any, digest: str) -> None:
    assert not has_card_number(f'{{"at":"{moment.isoformat()}Z","digest":"{digest}"}}'.encode())


@pytest.mark.parametrize("text", ["+49 30 901820 +49 30 901821", "2026-01-15 10:30:00", "978-3-16-148410-0 x", ""])
def test_what_has_as_many_digits_need_not_be_a_card(text: str) -> None:
    assert not has_card_number(text.encode())
