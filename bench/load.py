"""Closed-loop load: so many clients, each with one request under way, for so many seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from bench.wire import LOST, Connection, Requests, id_in, percentile
from bench.workloads import Workload
from tcc.dev.programs import LOOPBACK

RAMP_SECONDS = 0.25
"""What comes before isn't counted: every client is to have had its first reply."""


class Load(msgspec.Struct, frozen=True):
    """What to send. Clients are split evenly over `ports`."""

    workload: Workload
    ports: tuple[int, ...]
    clients: int = 64
    seconds: float = 1.5


class Measured(msgspec.Struct, frozen=True):
    """What came of it. `per_second` and the latencies, in milliseconds, are of whole cycles that ended well in the
    `seconds`; `statuses` and `completed` are of everything, ramp and end included, as is the load's own CPU time."""

    statuses: dict[int, int]
    completed: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_seconds: float


class _Tally:
    """What all clients count together."""

    def __init__(self, clients: int, seconds: float) -> None:
        self.begins = time.perf_counter() + RAMP_SECONDS
        self.ends = self.begins + seconds
        self.statuses: dict[int, int] = {}
        self.latencies: list[float] = []
        self.completed = 0
        self.finished = asyncio.Event()
        self._left = clients

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def completes(self, started: float, now: float) -> None:
        self.completed += 1
        if self.begins <= now < self.ends:
            self.latencies.append(now - started)

    def leaves(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.finished.set()


class _Client(Connection):
    """Sends the next request as soon as the last is answered."""

    def __init__(self, requests: Requests, steps: int, tally: _Tally) -> None:
        super().__init__()
        self._requests = requests
        self._steps = steps
        self._tally = tally
        self._cycle = self._step = 0
        self._started = 0.0
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin(time.perf_counter())

    def _begin(self, now: float) -> None:
        self._cycle = self._requests.next_cycle()
        self._step = 0
        self._started = now
        self._waits = True
        self.transport.write(self._requests.of(self._cycle, 0))

    def replied(self, status: int, reply: bytes) -> None:
        now = time.perf_counter()
        self._tally.count(status)
        self._step += 1
        if status < 300:
            if self._step < self._steps:
                self.transport.write(self._requests.of(self._cycle, self._step, id_in(reply)))
                return
            self._tally.completes(self._started, now)
        if now < self._tally.ends:
            self._begin(now)
        else:
            self._waits = False
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waits:
            self._tally.count(LOST)
        self._tally.leaves()


async def drive(load: Load) -> Measured:
    """Put the load on, and say what came of it once the last request is answered."""
    requests = Requests(load.workload, LOOPBACK, run=f"{time.time_ns():x}", seed=load.clients)
    cpu = time.process_time()
    tally = _Tally(load.clients, load.seconds)
    loop = asyncio.get_running_loop()
    for number in range(load.clients):
        port = load.ports[number % len(load.ports)]
        await loop.create_connection(lambda: _Client(requests, len(load.workload.steps), tally), LOOPBACK, port)
    await tally.finished.wait()
    latencies = sorted(tally.latencies)
    return Measured(
        tally.statuses,
        tally.completed,
        len(latencies) / load.seconds,
        percentile(latencies, 0.5) * 1000,
        percentile(latencies, 0.99) * 1000,
        time.process_time() - cpu,
    )


def not_good(statuses: Sequence[dict[int, int]]) -> int:
    """How many replies were no success, over several rounds."""
    return sum(count for one in statuses for status, count in one.items() if not 200 <= status < 300)
