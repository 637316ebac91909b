"""The open loop sends when something is due, not when something is answered, and charges waiting from then."""

from __future__ import annotations

import asyncio

import pytest

from bench.openloop import (
    OpenLoad,
    Phase,
    Sample,
    arrivals,
    drive,
    recovered_after,
    summary,
    timeline,
)
from bench.workloads import HOT, hold
from tests.bench.answering import Asked, answering


def _ok(_: Asked) -> tuple[int, dict[str, str], bytes]:
    return 201, {}, b"{}"


def _load(port: int, *phases: Phase, connections: int = 100, patience_seconds: float = 10) -> OpenLoad:
    return OpenLoad(
        hold(HOT),
        (port,),
        phases,
        poisson=False,
        connections=connections,
        patience_seconds=patience_seconds,
    )


async def test_what_is_due_is_sent_though_nothing_has_been_answered() -> None:
    async with answering(_ok) as server:
        server.gate.clear()
        server.gate_opens_at = 20
        samples, _ = await drive(_load(server.port, Phase(1000, 0.02)))
    assert server.connections == 20
    assert [sample.status for sample in samples] == [201] * 20
    assert sorted(sample.due for sample in samples) == pytest.approx([n / 1000 for n in range(20)])
    last = max(sample.due for sample in samples)
    assert all(sample.due + sample.seconds >= last for sample in samples)


async def test_beyond_the_most_connections_requests_wait_their_turn() -> None:
    async with answering(_ok) as server:
        server.gate.clear()
        server.gate_opens_at = 2
        samples, _ = await drive(_load(server.port, Phase(1000, 0.02), connections=2))
    assert server.connections == 2
    assert [sample.status for sample in samples] == [201] * 20


async def test_refusals_are_told_from_those_that_say_when_to_come_again() -> None:
    def answer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        number = int(asked.headers["idempotency-key"].rsplit("-", 1)[1])
        return (503, {"Retry-After": "1"} if number % 4 else {}, b"{}") if number % 2 else (201, {}, b"{}")

    async with answering(answer) as server:
        samples, _ = await drive(_load(server.port, Phase(1000, 0.02)))
    assert len(samples) == 20
    came = summary(samples)
    assert (came.offered, came.good, came.refused, came.other) == (20, 10, 10, 0)
    assert came.refused_with_retry_after == 10


async def test_a_connection_that_is_lost_is_a_request_without_a_reply() -> None:
    async with answering(lambda _: None) as server:
        samples, _ = await drive(_load(server.port, Phase(1000, 0.01)))
    assert [sample.status for sample in samples] == [0] * 10
    assert summary(samples).other == 10


async def test_what_nobody_answers_in_time_is_counted_too() -> None:
    async with answering(_ok) as server:
        server.gate.clear()
        load = _load(server.port, Phase(1000, 0.01), connections=3, patience_seconds=0.05)
        samples, _ = await drive(load)
    assert [sample.status for sample in samples] == [0] * 10


async def test_it_stops_when_it_is_told_to() -> None:
    stop = asyncio.Event()

    def answer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        stop.set()
        return _ok(asked)

    async with answering(answer) as server:
        samples, _ = await drive(_load(server.port, Phase(100, 1000)), stop)
    assert 1 <= len(samples) == len(server.asked)


def test_arrivals_are_as_many_as_the_phases_say() -> None:
    phases = (Phase(100, 10), Phase(1000, 1))
    even = arrivals(phases, poisson=False)
    assert len(even) == 2000
    assert even[1] - even[0] == pytest.approx(0.01)
    assert even[1000] == 10.0
    strangers = arrivals(phases, poisson=True)
    assert strangers == sorted(strangers)
    assert len([due for due in strangers if due < 10]) == pytest.approx(1000, rel=0.1)
    assert len([due for due in strangers if due >= 10]) == pytest.approx(1000, rel=0.1)


def _served(begins: float, ends: float, seconds: float, status: int = 201) -> list[Sample]:
    """Ten a second."""
    return [Sample(n / 10, seconds, status, status == 503) for n in range(round(begins * 10), round(ends * 10))]


def test_a_summary_is_of_what_was_due_in_its_time() -> None:
    samples = [*_served(0, 10, 0.01), *_served(10, 20, 0.5), *_served(20, 30, 0.002, 503)]
    assert summary(samples, 0, 10).p99_ms == pytest.approx(10)
    middle = summary(samples, 5, 15)
    assert (middle.offered, middle.good) == (100, 100)
    assert middle.p50_ms == middle.p99_ms == pytest.approx(500)
    last = summary(samples, 20)
    assert (last.refused, last.refused_with_retry_after, last.p99_ms) == (100, 100, 0)
    assert last.refused_p99_ms == pytest.approx(2)


def test_a_timeline_tells_what_was_due_from_what_came() -> None:
    first, second, third = timeline(_served(0, 1, 1.0), 3)
    assert (first.offered, first.good, first.completed) == (10, 10, 0)
    assert (second.offered, second.completed) == (0, 10)
    assert (third.offered, third.completed) == (0, 0)


@pytest.mark.parametrize(
    ("samples", "after"),
    [
        (_served(10, 15, 0.01), 0.0),
        ([*_served(10, 12, 3.0), *_served(12, 15, 0.01)], 2.0),
        ([*_served(10, 11, 0.01), *_served(11, 12, 0.01, 503), *_served(12, 15, 0.01)], 2.0),
        (_served(10, 15, 3.0), None),
    ],
)
def test_it_has_recovered_once_everything_is_usual_for_good(samples: list[Sample], after: float | None) -> None:
    assert recovered_after(samples, 10, 15, 100, stretch=0.5) == after
