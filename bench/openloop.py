"""Open-loop load: requests come when they come, whether or not the ones before have been answered.

Clients in the world don't wait for one another. A latency counts from the moment at which its request was due, so that
a service which stalls is charged for everybody who would have come meanwhile (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from bench.wire import LOST, Connection, Requests, percentile
from bench.workloads import Workload
from tcc.dev.programs import LOOPBACK

GOOD = (200, 201)
REFUSED = 503


class Phase(msgspec.Struct, frozen=True):
    """So many requests per second for so many seconds."""

    rate: float
    seconds: float


class OpenLoad(msgspec.Struct, frozen=True):
    """What to send, one phase after the other: at random moments, as strangers do (`poisson`), or evenly.

    A free connection is taken, or a new one opened, up to `connections`; beyond that requests wait their turn here.
    """

    workload: Workload
    ports: tuple[int, ...]
    phases: tuple[Phase, ...]
    poisson: bool = True
    connections: int = 4096
    patience_seconds: float = 15.0
    """How long to wait for replies once everything is sent."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request: when it was due, in seconds from the start; how long it took from then; the reply's status."""

    due: float
    seconds: float
    status: int
    retry_after: bool = False


class Summary(msgspec.Struct, frozen=True):
    """What came of the requests that were due in a span of time. Latencies are of good replies unless said."""

    offered: int
    good: int
    refused: int
    refused_with_retry_after: int
    other: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    refused_p99_ms: float


class Moment(msgspec.Struct, frozen=True):
    """A stretch of the timeline: requests due in it, and what came of them; good replies that came in it."""

    at_seconds: float
    offered: int
    good: int
    refused: int
    p99_ms: float
    completed: int


def arrivals(phases: Sequence[Phase], *, poisson: bool, seed: int = 0) -> list[float]:
    """When each request is due, in seconds from the start."""
    chance = random.Random(seed)
    due: list[float] = []
    begins = 0.0
    for phase in phases:
        ends = begins + phase.seconds
        if poisson:
            at = begins + chance.expovariate(phase.rate)
            while at < ends:
                due.append(at)
                at += chance.expovariate(phase.rate)
        else:
            due += [begins + number / phase.rate for number in range(round(phase.seconds * phase.rate))]
        begins = ends
    return due


class _Line(Connection):
    """A connection that serves whoever is next."""

    def __init__(self, load: _OpenLoop) -> None:
        super().__init__()
        self._load = load
        self.due: float | None = None
        """When the request that is under way was due."""

    def send(self, due: float) -> None:
        self.due = due
        self.transport.write(self._load.request())

    def replied(self, status: int, reply: bytes) -> None:
        due, self.due = self.due, None
        if due is not None:
            self._load.answered(due, status, status == REFUSED and b"\r\nretry-after:" in reply.lower())
        self._load.give_back(self)

    def connection_lost(self, exc: Exception | None) -> None:
        due, self.due = self.due, None
        self._load.lose(self, due)


class _OpenLoop:
    """The schedule, the pool of connections, and what has been answered."""

    def __init__(self, load: OpenLoad, stop: asyncio.Event) -> None:
        self._load = load
        self._stop = stop
        self._requests = Requests(load.workload, LOOPBACK, run=f"{time.time_ns():x}")
        self._due = arrivals(load.phases, poisson=load.poisson)
        self._next = 0
        self._lines: set[_Line] = set()
        self._free: list[_Line] = []
        self._opened = 0
        self._waiting: deque[float] = deque()
        self._openings: dict[asyncio.Task[None], float] = {}
        self._started = 0.0
        self._unanswered = 0
        self._sent = asyncio.Event()
        self._finished = asyncio.Event()
        self.samples: list[Sample] = []
        self.lags: list[float] = []

    async def run(self) -> None:
        self._started = time.perf_counter()
        stopping = asyncio.create_task(self._stop.wait())
        sent = asyncio.create_task(self._sent.wait())
        self._tick()
        await asyncio.wait({stopping, sent}, return_when=asyncio.FIRST_COMPLETED)
        self._stop_sending()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._finished.wait(), self._load.patience_seconds)
        for task in (stopping, sent, *self._openings):
            task.cancel()
        self._lines, left = set(), self._lines
        asked = (line.due for line in left if line.due is not None)
        unanswered = [*self._waiting, *self._openings.values(), *asked]
        self.samples += [self._sample(due, LOST) for due in unanswered]
        for line in left:
            line.transport.abort()

    def _tick(self) -> None:
        """Send what is due, and come again when the next is. The loop's timers are good to a millisecond."""
        now = time.perf_counter() - self._started
        while self._next < len(self._due) and self._due[self._next] <= now:
            due = self._due[self._next]
            self._next += 1
            self.lags.append(now - due)
            self._unanswered += 1
            self._send(due)
        if self._next == len(self._due):
            self._stop_sending()
        else:
            pause = self._due[self._next] - now
            asyncio.get_running_loop().call_later(math.ceil(pause * 1000) / 1000, self._tick)

    def _stop_sending(self) -> None:
        self._sent.set()
        self._next = len(self._due)
        if self._unanswered == 0:
            self._finished.set()

    def _send(self, due: float) -> None:
        if self._free:
            self._free.pop().send(due)
        elif self._opened < self._load.connections:
            self._opened += 1
            opening = asyncio.create_task(self._open(due))
            self._openings[opening] = due
            opening.add_done_callback(self._openings.pop)
        else:
            self._waiting.append(due)

    async def _open(self, due: float) -> None:
        port = self._load.ports[self._opened % len(self._load.ports)]
        try:
            _, line = await asyncio.get_running_loop().create_connection(lambda: _Line(self), LOOPBACK, port)
        except OSError:
            self._opened -= 1
            self.answered(due, LOST, False)
            return
        self._lines.add(line)
        line.send(due)

    def request(self) -> bytes:
        return self._requests.of(self._requests.next_cycle(), 0)

    def _sample(self, due: float, status: int, retry_after: bool = False) -> Sample:
        return Sample(due, time.perf_counter() - self._started - due, status, retry_after)

    def answered(self, due: float, status: int, retry_after: bool) -> None:
        self.samples.append(self._sample(due, status, retry_after))
        self._unanswered -= 1
        if self._sent.is_set() and self._unanswered == 0:
            self._finished.set()

    def give_back(self, line: _Line) -> None:
        if self._waiting:
            line.send(self._waiting.popleft())
        else:
            self._free.append(line)

    def lose(self, line: _Line, due: float | None) -> None:
        if line not in self._lines:
            return  # it is over
        self._lines.remove(line)
        self._opened -= 1
        if line in self._free:
            self._free.remove(line)
        if due is not None:
            self.answered(due, LOST, False)
        if self._waiting and not self._finished.is_set():
            self._send(self._waiting.popleft())


async def drive(load: OpenLoad, stop: asyncio.Event | None = None) -> tuple[list[Sample], float]:
    """Put the load on, to its end or until told to stop; a sample for each request, and the 99th percentile of how late
    this process itself was in sending, in milliseconds."""
    running = _OpenLoop(load, stop or asyncio.Event())
    await running.run()
    return running.samples, percentile(sorted(running.lags), 0.99) * 1000


def summary(samples: Sequence[Sample], begins: float = 0.0, ends: float = math.inf) -> Summary:
    """What came of those due from `begins` to before `ends`."""
    there = [sample for sample in samples if begins <= sample.due < ends]
    good = sorted(sample.seconds * 1000 for sample in there if sample.status in GOOD)
    refused = [sample for sample in there if sample.status == REFUSED]
    return Summary(
        offered=len(there),
        good=len(good),
        refused=len(refused),
        refused_with_retry_after=sum(sample.retry_after for sample in refused),
        other=len(there) - len(good) - len(refused),
        p50_ms=percentile(good, 0.5),
        p90_ms=percentile(good, 0.9),
        p99_ms=percentile(good, 0.99),
        p999_ms=percentile(good, 0.999),
        refused_p99_ms=percentile(sorted(sample.seconds * 1000 for sample in refused), 0.99),
    )


def timeline(samples: Sequence[Sample], seconds: float, stretch: float = 1.0) -> list[Moment]:
    """What came of it, stretch by stretch, for so many seconds."""
    moments = []
    for number in range(math.ceil(seconds / stretch)):
        begins, ends = number * stretch, (number + 1) * stretch
        one = summary(samples, begins, ends)
        completed = sum(s.status in GOOD and begins <= s.due + s.seconds < ends for s in samples)
        moments.append(Moment(begins, one.offered, one.good, one.refused, one.p99_ms, completed))
    return moments


def recovered_after(
    samples: Sequence[Sample], since: float, until: float, limit_ms: float, stretch: float = 0.25
) -> float | None:
    """Seconds from `since` until every stretch has all its replies good and its p99 within the limit; None if that
    isn't so by `until`."""
    recovered: float | None = None
    for number in range(round((until - since) / stretch)):
        begins = since + number * stretch
        one = summary(samples, begins, begins + stretch)
        if one.good < one.offered or one.p99_ms > limit_ms:
            recovered = None
        elif recovered is None:
            recovered = begins - since
    return recovered
