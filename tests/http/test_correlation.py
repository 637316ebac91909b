"""Correlation ids and trace contexts: in and out of every reply, errors too, and on every log line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from tcc.service import Service
from tests.client import Api
from tests.http.samples import SKU, some_id
from tests.http.wire import send_at_length

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
WELL_FORMED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01")

ANSWERS: list[tuple[int, str, str, Any]] = [
    (200, "GET", "/healthz", None),
    (200, "GET", "/v1/transactions", None),
    (200, "PUT", f"/v1/inventory/items/{SKU}", {"on_hand": 5}),
    (404, "GET", "/nothing", None),
    (404, "GET", f"/v1/transactions/{some_id()}", None),
    (405, "PATCH", "/v1/transactions", {}),
    (422, "POST", "/v1/transactions", {"branches": []}),
    (400, "POST", "/v1/transactions", b"{"),
    (422, "GET", "/v1/inventory/items/4242424242424242", None),
    (413, "POST", "/v1/transactions", b" " * 300_000),
]


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged from here on."""
    with capture_logs() as lines:
        yield lines


@pytest.mark.parametrize(("status", "method", "path", "body"), ANSWERS)
async def test_every_answer_carries_the_ids_it_was_asked_with(
    api: Api, logged: list[Any], status: int, method: str, path: str, body: Any
) -> None:
    headers = {"X-Correlation-ID": "shop:42/a=b+c", "traceparent": TRACEPARENT}
    answer = await api.ask(method, path, body, key="a key", headers=headers)
    assert answer.status == status
    assert answer.headers["x-correlation-id"] == "shop:42/a=b+c"
    assert WELL_FORMED.fullmatch(answer.headers["traceparent"])
    assert answer.headers["traceparent"][3:35] == TRACE
    assert answer.headers["traceparent"] != TRACEPARENT, "a span of our own"
    if status >= 400:
        assert answer.json["correlation_id"] == "shop:42/a=b+c"
    if path != "/healthz":
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["correlation_id"], line["status"], line["method"]) == ("shop:42/a=b+c", status, method)


async def test_a_body_in_chunks_that_is_too_long_is_answered_with_ids_too(api: Api) -> None:
    answer = await send_at_length(api, "POST", "/v1/transactions", 1_000_000, chunked=True)
    assert answer.status == 413
    assert answer.json["correlation_id"] == answer.headers["x-correlation-id"]


async def test_the_trace_is_the_correlation_where_none_is_given(api: Api) -> None:
    answer = await api.get("/v1/transactions", headers={"traceparent": TRACEPARENT})
    assert answer.headers["x-correlation-id"] == TRACE


@pytest.mark.parametrize(
    "given", ["", "spaces in it", "c" * 129, "é", "a,b", "<script>", "line\tbreak", '"quoted"', "a;b"]
)
async def test_what_cannot_be_a_correlation_id_is_replaced(api: Api, given: str) -> None:
    answer = await api.get("/v1/transactions", headers={"X-Correlation-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-correlation-id"])


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7",
    ],
)
async def test_what_cannot_be_a_trace_is_replaced(api: Api, given: str) -> None:
    answer = await api.get("/v1/transactions", headers={"traceparent": given})
    assert WELL_FORMED.fullmatch(answer.headers["traceparent"])
    assert TRACE not in answer.headers["traceparent"]


async def test_bodies_and_keys_are_not_logged(api: Api, logged: list[Any]) -> None:
    await api.stock(SKU, 5)
    placed = await api.order(SKU, key="a-key-of-mine", reference="a-reference-of-mine")
    assert placed.status == 201
    assert not [line for line in logged if re.search("of-mine|ada|tok_ok", str(line))]


async def test_a_failure_of_ours_is_logged_and_its_cause_is_not_said(
    api: Api, service: Service, logged: list[Any]
) -> None:
    async with service.stores.home.database.reads.begin() as connection:
        await connection.execute(text("DROP TABLE payments"))
    answer = await api.get(f"/v1/payments/{some_id()}", headers={"X-Correlation-ID": "unlucky"})
    assert (answer.status, answer.code, answer.json["correlation_id"]) == (500, "internal_error", "unlucky")
    assert b"payments" not in answer.body
    (failure,) = [line for line in logged if line["log_level"] == "error"]
    assert (failure["event"], failure["correlation_id"]) == ("request_failed", "unlucky")
