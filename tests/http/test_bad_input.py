"""Bad input: each is a 4xx problem that names its code and its field, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from tcc.service import Service
from tests.client import Api, whole_order
from tests.http.records import footprint
from tests.http.refusals import Bad, check_problem, refuse_all
from tests.http.samples import SKU, some_id
from tests.http.wire import send_at_length

INVALID = (422, "invalid_request")
MALFORMED = (400, "malformed_json", "body")
HUGE = 10**30
DEEP = b"[" * 5000 + b"]" * 5000


@pytest.fixture(autouse=True)
async def _shelf(api: Api) -> None:
    await api.stock(SKU, 10)


def line(**changed: Any) -> dict[str, Any]:
    return {"sku": SKU, "quantity": 1, **changed}


def stock(field: str, *lines: Any, **more: Any) -> Bad:
    return Bad((*INVALID, field), "POST", "/v1/inventory/reservations", {"lines": list(lines), **more})


def payment(field: str, **changed: Any) -> Bad:
    claim = {"amount": 100, "currency": "EUR", "payment_method": "tok_ok", **changed}
    return Bad((*INVALID, field), "POST", "/v1/payments/reservations", claim)


def order(field: str, lines: list[Any] | None = None, **changed: Any) -> Bad:
    usual = [{"sku": SKU, "quantity": 2, "unit_amount": 1250}]
    claim = {"customer": "ada", "currency": "EUR", "lines": usual if lines is None else lines, **changed}
    return Bad((*INVALID, field), "POST", "/v1/orders/reservations", claim)


def sold(**changed: Any) -> dict[str, Any]:
    return {"sku": SKU, "quantity": 2, "unit_amount": 1250, **changed}


def begin(field: str, code: tuple[int, str] = INVALID, **changed: Any) -> Bad:
    return Bad((*code, field), "POST", "/v1/transactions", {"branches": whole_order(SKU), "confirm": "auto", **changed})


def raw(body: bytes, expected: tuple[int, str, str], path: str = "/v1/transactions") -> Bad:
    return Bad(expected, "POST", path, body)


def text(value: bytes, expected: tuple[int, str, str]) -> Bad:
    body = b'{"lines":[{"sku":"MUG","quantity":1}],"reference":"' + value + b'"}'
    return raw(body, expected, "/v1/inventory/reservations")


def number(value: bytes, field: str = "lines[0].quantity", expected: tuple[int, str] = INVALID) -> Bad:
    body = b'{"lines":[{"sku":"MUG","quantity":' + value + b"}]}"
    return raw(body, (*expected, field), "/v1/inventory/reservations")


STOCK = {
    "no lines": stock("lines"),
    "101 lines": stock("lines", *(line(sku=f"S{n}") for n in range(101))),
    "a line that is not an object": stock("lines[0]", 5),
    "unknown SKU": Bad(
        (422, "unknown_sku", "lines[1]"), "POST", "/v1/inventory/reservations", {"lines": [line(), line(sku="NONE")]}
    ),
    "unknown location": Bad(
        (422, "unknown_sku", "lines[0]"), "POST", "/v1/inventory/reservations", {"lines": [line(location="moon")]}
    ),
    "unknown field": stock("colour", line(), colour="red"),
    "unknown field of a line": stock("lines[0].colour", line(colour="red")),
    "missing field of a line": stock("lines[0].quantity", {"sku": SKU}),
    "duplicate lines": stock("lines[1]", line(), line(quantity=2)),
    "duplicate lines by the default location": stock("lines[1]", line(), line(location="default")),
    "empty SKU": stock("lines[0].sku", line(sku="")),
    "SKU of spaces": stock("lines[0].sku", line(sku="  ")),
    "SKU of 65 characters": stock("lines[0].sku", line(sku="s" * 65)),
    "SKU with a NUL": stock("lines[0].sku", line(sku="MUG\0")),
    "SKU with a line break": stock("lines[0].sku", line(sku="MUG\n")),
    "SKU that is a number": stock("lines[0].sku", line(sku=5)),
    "zero": stock("lines[0].quantity", line(quantity=0)),
    "negative": stock("lines[0].quantity", line(quantity=-1)),
    "a million and one": stock("lines[0].quantity", line(quantity=1_000_001)),
    "beyond 64 bits": stock("lines[0].quantity", line(quantity=2**63)),
    "null": stock("lines[0].quantity", line(quantity=None)),
    "a string": stock("lines[0].quantity", line(quantity="1")),
    "true": stock("lines[0].quantity", line(quantity=True)),
    "a list": stock("lines[0].quantity", line(quantity=[1])),
    "fractional": number(b"1.5"),
    "a fraction of nothing": number(b"1.0"),
    "an exponent": number(b"1e2"),
    "infinite": number(b"1e400"),
    "huge": number(str(HUGE).encode()),
    "5,000 digits": number(b"9" * 5000),
    "not a number": number(b"NaN", "body", (400, "malformed_json")),
    "infinity by name": number(b"Infinity", "body", (400, "malformed_json")),
    "a leading zero": number(b"01", "body", (400, "malformed_json")),
    "an id that is none": stock("id", line(), id="not-a-uuid"),
    "an id in braces": stock("id", line(), id="{019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b}"),
    "an id that is a number": stock("id", line(), id=7),
    "time to live of zero": stock("ttl_seconds", line(), ttl_seconds=0),
    "negative time to live": stock("ttl_seconds", line(), ttl_seconds=-1),
    "time to live under a second": stock("ttl_seconds", line(), ttl_seconds=0.5),
    "time to live beyond the longest": stock("ttl_seconds", line(), ttl_seconds=7 * 86400 + 1),
    "time to live without end": stock("ttl_seconds", line(), ttl_seconds=1e308),
    "time to live that is a string": stock("ttl_seconds", line(), ttl_seconds="60"),
    "time to live that is true": stock("ttl_seconds", line(), ttl_seconds=True),
    "empty reference": stock("reference", line(), reference=""),
    "reference of 256 characters": stock("reference", line(), reference="r" * 256),
}
PAYMENTS = {
    "zero": payment("amount", amount=0),
    "negative": payment("amount", amount=-100),
    "fractional": payment("amount", amount=9.99),
    "huge": payment("amount", amount=HUGE),
    "one more than the largest": payment("amount", amount=10**12),
    "a string": payment("amount", amount="100"),
    "true": payment("amount", amount=True),
    "missing": Bad(
        (*INVALID, "amount"), "POST", "/v1/payments/reservations", {"currency": "EUR", "payment_method": "t"}
    ),
    "unknown currency": payment("currency", currency="XQQ"),
    "currency in small letters": payment("currency", currency="eur"),
    "currency of four letters": payment("currency", currency="EURO"),
    "currency with a line break": payment("currency", currency="EUR\n"),
    "empty payment method": payment("payment_method", payment_method=""),
    "payment method of 129 characters": payment("payment_method", payment_method="t" * 129),
    "payment method with a space": payment("payment_method", payment_method="tok ok"),
    "payment method with a line break": payment("payment_method", payment_method="tok_ok\n"),
    "payment method with a NUL": payment("payment_method", payment_method="tok\0ok"),
    "unknown field": payment("card", card="x"),
}
ORDERS = {
    "no lines": order("lines", []),
    "zero": order("lines[0].quantity", [sold(quantity=0)]),
    "negative": order("lines[0].unit_amount", [sold(unit_amount=-1)]),
    "fractional": order("lines[0].unit_amount", [sold(unit_amount=12.5)]),
    "huge": order("lines[0].unit_amount", [sold(unit_amount=HUGE)]),
    "lines that add up to too much": order("lines", [sold(quantity=1_000_000, unit_amount=999_999_999_999)]),
    "duplicate lines": order("lines[1]", [sold(), sold(quantity=1)]),
    "a total that differs": order("total", total=2501),
    "a total of zero": order("total", total=0),
    "unknown currency": order("currency", currency="XQQ"),
    "empty customer": order("customer", customer=""),
    "customer of 256 characters": order("customer", customer="c" * 256),
    "customer with a NUL": order("customer", customer="a\0da"),
    "SKU with a NUL": order("lines[0].sku", [sold(sku="MUG\0")]),
    "a customer that is an object": order("customer", customer={"name": "ada"}),
    "unknown field": order("discount", discount=5),
}
ELSEWHERE = [{"resource": "seats", "claim": {}}]
DUPLICATE = {"resource": "inventory", "claim": {"lines": [line(), line()]}}
DEARER = [*whole_order(SKU)[:1], *whole_order(SKU, quantity=2)[1:2], *whole_order(SKU)[2:]]
DOLLARS = {"amount": 1250, "currency": "USD", "payment_method": "tok_ok"}
TRANSACTIONS = {
    "no branches": begin("branches", branches=[]),
    "21 branches": begin("branches", branches=whole_order(SKU) * 7),
    "branches that are an object": begin("branches", branches={}),
    "unknown resource": begin("branches[0].resource", (404, "unknown_resource"), branches=ELSEWHERE),
    "a resource that is a number": begin("branches[0].resource", branches=[{"resource": 5, "claim": {}}]),
    "no resource": begin("branches[0].resource", branches=[{"claim": {}}]),
    "no claim": begin("branches[0].claim", branches=[{"resource": "inventory"}]),
    "a claim that is a list": begin("branches[0].claim", branches=[{"resource": "inventory", "claim": []}]),
    "an unknown field of a branch": begin("branches[0].id", branches=[{**whole_order(SKU)[0], "id": some_id()}]),
    "a bad line": begin("branches[1].claim.lines[0].sku", branches=[whole_order(SKU)[1], *whole_order("")[:1]]),
    "duplicate lines": begin("branches[0].claim.lines[1]", branches=[DUPLICATE]),
    "another amount than is owed": begin("branches", (422, "amounts_differ"), branches=DEARER),
    "another currency than is owed": begin(
        "branches",
        (422, "amounts_differ"),
        branches=[{"resource": "payments", "claim": DOLLARS}, whole_order(SKU)[2]],
    ),
    "unknown way to confirm": begin("confirm", confirm="perhaps"),
    "unknown field": begin("priority", priority=1),
    "time to live of zero": begin("ttl_seconds", ttl_seconds=0),
    "time to live beyond the longest": begin("ttl_seconds", ttl_seconds=10**9),
    "empty reference": begin("reference", reference=""),
    "reference with a NUL": begin("reference", reference="a\0b"),
}
BODIES = {
    "nothing": raw(b"", MALFORMED),
    "a list": raw(b"[]", (*INVALID, "body")),
    "a string": raw(b'"x"', (*INVALID, "body")),
    "a number": raw(b"1", (*INVALID, "body")),
    "null": raw(b"null", (*INVALID, "body")),
    "cut short": raw(b'{"branches":[', MALFORMED),
    "two values": raw(
        b'{"branches":[{"resource":"inventory","claim":{"lines":[{"sku":"MUG","quantity":1}]}}]} {}', MALFORMED
    ),
    "single quotes": raw(b"{'branches':[]}", MALFORMED),
    "form": raw(b"branches=1", MALFORMED),
    "a byte order mark": raw(b"\xef\xbb\xbf{}", MALFORMED),
    "5,000 deep": raw(DEEP, (*INVALID, "body")),
    "5,000 deep in an unknown field": raw(b'{"x":' + DEEP + b"}", (*INVALID, "x")),
    "5,000 deep in a claim": raw(b'{"branches":[{"claim":' + DEEP + b',"resource":"inventory"}]}', MALFORMED),
    "5,000 deep and open": raw(
        b'{"branches":[{"resource":"inventory","claim":{"lines":' + b"[" * 5000,
        (*INVALID, "branches[0].claim.lines[0]"),
    ),
    "invalid UTF-8": text(b"\xff\xfe", MALFORMED),
    "UTF-8 of a surrogate": text(b"\xed\xa0\x80", MALFORMED),
    "invalid UTF-8 in an unknown field's name": raw(b'{"\xff":1}', MALFORMED),
    "a lone high surrogate": text(rb"\ud800", MALFORMED),
    "a lone low surrogate": text(rb"\udc00", MALFORMED),
    "surrogates the wrong way round": text(rb"\udc00\ud800", MALFORMED),
    "a raw NUL": text(b"a\0b", MALFORMED),
    "an escaped NUL": text(rb"a\u0000b", (*INVALID, "reference")),
    "an escaped NUL after a backslash": text(rb"a\\\u0000b", (*INVALID, "reference")),
    "a raw line break": text(b"a\nb", MALFORMED),
}
ONE = f"/v1/inventory/reservations/{some_id()}"
ADDRESSES = {
    "unknown path": Bad((404, "not_found", "path"), "GET", "/v1/nothing"),
    "no path": Bad((404, "not_found", "path"), "GET", "/"),
    "unknown version": Bad((404, "not_found", "path"), "POST", "/v2/transactions", {}),
    "unknown resource": Bad((404, "unknown_resource", "path"), "POST", "/v1/seats/reservations", {}),
    "unknown resource's reservation": Bad(
        (404, "unknown_resource", "path"), "GET", f"/v1/seats/reservations/{some_id()}"
    ),
    "unknown action": Bad((404, "not_found", "path"), "POST", f"{ONE}/explode"),
    "PATCH": Bad((405, "method_not_allowed", "path"), "PATCH", "/v1/transactions", {}),
    "DELETE of a transaction": Bad((405, "method_not_allowed", "path"), "DELETE", f"/v1/transactions/{some_id()}"),
    "GET of confirm": Bad((405, "method_not_allowed", "path"), "GET", f"{ONE}/confirm"),
    "POST of an item": Bad((405, "method_not_allowed", "path"), "POST", "/v1/inventory/items/MUG", {}),
    **{
        f"{method} {path}": Bad((*INVALID, "id"), method, path, body)
        for method, path, body in [
            ("GET", "/v1/inventory/reservations/7", None),
            ("GET", "/v1/inventory/reservations/%00", None),
            ("GET", "/v1/inventory/reservations/%ff", None),
            ("PUT", "/v1/payments/reservations/x", None),
            ("DELETE", "/v1/orders/reservations/x", None),
            ("POST", "/v1/orders/reservations/x/confirm", None),
            ("POST", "/v1/orders/reservations/x/cancel", None),
            ("POST", "/v1/orders/reservations/x/extend", {"ttl_seconds": 60}),
            ("GET", "/v1/orders/x", None),
            ("GET", "/v1/payments/x", None),
            ("GET", "/v1/transactions/x", None),
            ("GET", "/v1/transactions/x/log", None),
            ("GET", "/v1/transactions/+19ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b", None),
            ("GET", "/v1/transactions/" + "0" * 5000, None),
            ("POST", "/v1/transactions/x/confirm", None),
            ("POST", "/v1/transactions/x/cancel", None),
            ("POST", "/v1/transactions/x/extend", {"ttl_seconds": 60}),
        ]
    },
    "confirm with something to say": Bad((*INVALID, "amount"), "POST", f"{ONE}/confirm", {"amount": 5}),
    "cancel with something to say": Bad((*INVALID, "why"), "POST", f"/v1/transactions/{some_id()}/cancel", {"why": 1}),
    "extend without a body": Bad(MALFORMED, "POST", f"{ONE}/extend"),
    "extend without saying how long": Bad((*INVALID, "ttl_seconds"), "POST", f"{ONE}/extend", {}),
    "extend for ever": Bad((*INVALID, "ttl_seconds"), "POST", f"{ONE}/extend", {"ttl_seconds": 1e12}),
    "extend backwards": Bad((*INVALID, "ttl_seconds"), "POST", f"{ONE}/extend", {"ttl_seconds": -60}),
    "stock of less than nothing": Bad((*INVALID, "on_hand"), "PUT", "/v1/inventory/items/MUG", {"on_hand": -1}),
    "stock of more than a lot": Bad((*INVALID, "on_hand"), "PUT", "/v1/inventory/items/MUG", {"on_hand": 10**13}),
    "stock of half a unit": Bad((*INVALID, "on_hand"), "PUT", "/v1/inventory/items/MUG", {"on_hand": 0.5}),
    "stock at no place": Bad((*INVALID, "location"), "PUT", "/v1/inventory/items/MUG", {"on_hand": 1, "location": ""}),
    "stock of a SKU with a space": Bad((*INVALID, "sku"), "PUT", "/v1/inventory/items/A%20B", {"on_hand": 1}),
    "stock of a SKU with a NUL": Bad((*INVALID, "sku"), "PUT", "/v1/inventory/items/A%00", {"on_hand": 1}),
    "stock of a SKU with a line break": Bad((*INVALID, "sku"), "GET", "/v1/inventory/items/MUG%0A"),
    "stock of a SKU that is too long": Bad((*INVALID, "sku"), "PUT", f"/v1/inventory/items/{'s' * 65}", {"on_hand": 1}),
}
QUERIES = {
    f"GET /v1/transactions?{query}": Bad((*INVALID, query.partition("=")[0]), "GET", f"/v1/transactions?{query}")
    for query in [
        *("limit=0", "limit=-1", "limit=201", "limit=x", "limit=1.5", "limit=", "limit=1e2", "limit=" + "9" * 5000),
        *("state=refused", "state=unknown", "state=", "state=TRIED", "state=tried%00"),
        *("attention=yes", "attention=", "attention=1"),
        *("cursor=", "cursor=x", "cursor=%00", "cursor=%ff", "cursor=" + "A" * 5000, "cursor=!!!!", "cursor=é"),
    ]
} | {
    f"GET a transaction?wait={wait}": Bad((*INVALID, "wait"), "GET", f"/v1/transactions/{some_id()}?wait={wait}")
    for wait in ("-1", "31", "nan", "inf", "x", "", "1e400")
}
KEYS = {
    name: Bad(
        (400, "idempotency_key_invalid", "Idempotency-Key"),
        "POST",
        "/v1/transactions",
        {"branches": whole_order(SKU)},
        key,
    )
    for name, key in {
        "empty": "",
        "empty in quotes": '""',
        "spaces in quotes": '"  "',
        "256 characters": "k" * 256,
        "not ASCII": "clé",
        "a tab": '"a\tb"',
    }.items()
}


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(table, id=name)
        for name, table in {
            "stock": STOCK,
            "payments": PAYMENTS,
            "orders": ORDERS,
            "transactions": TRANSACTIONS,
            "bodies": BODIES,
            "addresses": ADDRESSES,
            "queries": QUERIES,
            "keys": KEYS,
        }.items()
    ],
)
async def test_bad_input_is_refused_by_its_field_and_leaves_nothing_behind(
    api: Api, service: Service, table: dict[str, Bad]
) -> None:
    await refuse_all(api, service, table)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/transactions"),
        ("POST", "/v1/inventory/reservations"),
        ("PUT", "/v1/inventory/items/MUG"),
        ("POST", f"{ONE}/extend"),
    ],
)
async def test_ten_megabytes_are_too_many(api: Api, service: Service, method: str, path: str, chunked: bool) -> None:
    before = await footprint(service)
    answer = await send_at_length(api, method, path, 10_000_000, chunked=chunked)
    assert (answer.status, check_problem(answer)["code"]) == (413, "body_too_large")
    assert await footprint(service) == before


async def test_what_looks_odd_but_is_right_is_accepted(api: Api) -> None:
    base = "/v1/inventory/reservations"
    good: list[tuple[bytes, dict[str, str]]] = [
        (rb'{"lines":[{"sku":"M\u0055G","quantity":1}]}', {}),
        (rb'{"lines":[{"sku":"MUG","quantity":1}],"reference":"\ud83d\ude00 \\u0000 \\ 0"}', {}),
        ('{"lines":[{"sku":"MUG","quantity":1}],"reference":"café ☕"}'.encode(), {}),
        (b' \n\t{"lines":[{"sku":"MUG","quantity":1}],"ttl_seconds":1e1}\n', {}),
        (b'{"lines":[{"sku":"MUG","quantity":1}]}', {"Content-Type": "Application/JSON; charset=utf-8"}),
        (b'{"lines":[{"sku":"MUG","quantity":1}]}', {"Content-Type": "application/x-www-form-urlencoded"}),
    ]
    answers = [await api.post(base, body, key=f"key {n}", headers=headers) for n, (body, headers) in enumerate(good)]
    assert [answer.status for answer in answers] == [201] * len(good)
    assert (await api.get(f"{base}/{answers[1].json['id']}")).json["reference"] == "😀 \\u0000 \\ 0"
    assert (await api.post(f"{base}/{answers[0].json['id']}/confirm", {})).status == 200


async def test_less_stock_than_is_held_is_refused(api: Api, service: Service) -> None:
    await api.hold(SKU, 4)
    before = await footprint(service)
    answer = await api.stock(SKU, 3)
    assert (answer.status, check_problem(answer)["code"]) == (409, "less_than_held")
    assert answer.json["errors"][0]["field"] == "on_hand"
    assert await footprint(service) == before
