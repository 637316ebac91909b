"""The closed loop counts every request once, and sends what it says."""

from __future__ import annotations

import json
from collections import Counter
from uuid import uuid4

import pytest

from bench import load
from bench.load import Load, drive
from bench.wire import Requests, percentile
from bench.workloads import HOT, SPREAD, ZIPF, Step, Workload, hold, hold_and_confirm, order, read
from tests.bench.answering import Asked, answering

SECONDS = 0.05


@pytest.fixture(autouse=True)
def _no_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count from the start."""
    monkeypatch.setattr(load, "RAMP_SECONDS", 0.0)


def _held(_: Asked) -> tuple[int, dict[str, str], bytes]:
    return 201, {}, json.dumps({"resource": "inventory", "id": str(uuid4())}, separators=(",", ":")).encode()


async def test_every_request_is_counted_once_and_has_a_key_of_its_own() -> None:
    async with answering(_held) as server:
        measured = await drive(Load(hold(SPREAD), (server.port,), clients=4, seconds=SECONDS))
    assert measured.statuses == {201: len(server.asked)}
    assert measured.completed == len(server.asked)
    assert 0 < measured.per_second * SECONDS <= measured.completed
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == len(server.asked)
    assert server.connections == 4


async def test_clients_are_split_evenly_over_the_ports() -> None:
    async with answering(_held) as one, answering(_held) as other:
        measured = await drive(Load(hold(HOT), (one.port, other.port), clients=6, seconds=SECONDS))
    assert (one.connections, other.connections) == (3, 3)
    assert measured.statuses == {201: len(one.asked) + len(other.asked)}


async def test_a_confirm_follows_its_try_and_the_two_are_one_cycle() -> None:
    held: list[str] = []

    def answer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.path.endswith("/confirm"):
            assert asked.path.split("/")[-2] in held
            return 200, {}, b"{}"
        status, headers, body = _held(asked)
        held.append(json.loads(body)["id"])
        return status, headers, body

    async with answering(answer) as server:
        measured = await drive(Load(hold_and_confirm(HOT), (server.port,), clients=2, seconds=SECONDS))
    assert measured.statuses == {201: len(held), 200: len(held)}
    assert measured.completed == len(held)


async def test_what_is_refused_is_counted_ends_its_cycle_and_is_no_throughput() -> None:
    async with answering(lambda _: (503, {"retry-after": "1"}, b"{}")) as server:
        measured = await drive(Load(hold_and_confirm(HOT), (server.port,), clients=2, seconds=SECONDS))
    assert measured.statuses == {503: len(server.asked)}
    assert not any(asked.path.endswith("/confirm") for asked in server.asked)
    assert (measured.completed, measured.per_second, measured.p99_ms) == (0, 0, 0)
    assert load.not_good([measured.statuses]) == len(server.asked)


async def test_a_connection_that_is_lost_is_counted_as_such_and_ends_its_client() -> None:
    async with answering(lambda _: None) as server:
        measured = await drive(Load(hold(HOT), (server.port,), clients=3, seconds=SECONDS))
    assert measured.statuses == {0: 3}
    assert load.not_good([measured.statuses]) == 3


@pytest.mark.parametrize("workload", [hold(HOT), order(SPREAD), read("/v1/x/{pick}", ("a%41", "b"))])
async def test_a_request_is_as_long_as_it_says(workload: Workload) -> None:
    async with answering(_held) as server:
        await drive(Load(workload, (server.port,), clients=1, seconds=SECONDS))
    for asked in server.asked:
        assert asked.method == workload.steps[0].method
        if asked.method == "POST":
            assert "{" not in asked.path
            assert json.loads(asked.body)
        else:
            assert asked.path in ("/v1/x/a%41", "/v1/x/b")


def test_picks_are_drawn_as_their_names_say() -> None:
    def drawn(workload: Workload) -> Counter[bytes]:
        requests = Requests(workload, "host", run="run")
        return Counter(requests.of(requests.next_cycle(), 0).split(b"\r\n\r\n")[1] for _ in range(10_000))

    assert len(drawn(hold(HOT))) == 1
    even, unequal = drawn(hold(SPREAD)), drawn(hold(ZIPF))
    assert len(even) > 990
    assert even.most_common(1)[0][1] < 40
    ((most, times),) = unequal.most_common(1)
    assert json.loads(most)["lines"][0]["sku"] == "SKU-0"
    assert times == pytest.approx(1900, rel=0.3)


def test_a_body_without_a_key_is_sent_as_it_is() -> None:
    requests = Requests(
        Workload((Step("PUT", "/items/{pick}", "{}"), Step("POST", "/x/{id}", "100%")), HOT), "host", run="run"
    )
    first, second = requests.of(1, 0), requests.of(1, 1, b"some-id")
    assert first.startswith(b"PUT /items/SKU-0 HTTP/1.1\r\n")
    assert b"idempotency-key" not in first
    assert second.startswith(b"POST /x/some-id HTTP/1.1\r\n")
    assert second.endswith(b"content-length: 4\r\n\r\n100%")


def test_percentiles_are_of_what_there_is() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([1, 2, 3, 4], 0.5) == 3
    assert percentile(list(range(1000)), 0.99) == 990
