"""Contestants, one after the other in each round, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from bench.generator import Generator
from bench.load import Load, not_good
from bench.results import Line
from bench.stage import Server, cpu_seconds
from bench.workloads import Workload

WARM_SECONDS = 0.5


class Round(msgspec.Struct, frozen=True):
    """One contestant in one round, as in `Line`."""

    per_second: float
    p50_ms: float
    p99_ms: float = 0.0
    service_cpu_ms: float = 0.0
    postgres_cpu_ms: float = 0.0
    load_cpu_ms: float = 0.0
    not_good: int = 0


class Contestant(msgspec.Struct, frozen=True):
    """Something that can be run for a round."""

    name: str
    run: Callable[[], Round]


class Course(msgspec.Struct, frozen=True):
    """What contestants are run with."""

    generator: Generator
    postgres_pid: int
    seconds: float
    """Of one contestant's turn."""

    def http(self, name: str, workload: Workload, servers: Sequence[Server], clients: int = 64) -> Contestant:
        """Clients of some servers."""
        load = Load(workload, tuple(server.port for server in servers), clients, self.seconds)
        pids = [server.pid for server in servers]
        return Contestant(name, lambda: self._run(load, pids))

    def warm(self, workload: Workload, servers: Sequence[Server], clients: int = 64) -> None:
        """Run it for a moment, so that connections are made and statements prepared."""
        self.generator.closed(Load(workload, tuple(server.port for server in servers), clients, WARM_SECONDS))

    def _run(self, load: Load, pids: Sequence[int]) -> Round:
        service, postgres = cpu_seconds(pids), cpu_seconds([self.postgres_pid])
        measured = self.generator.closed(load)
        service, postgres = cpu_seconds(pids) - service, cpu_seconds([self.postgres_pid]) - postgres
        each = 1000 / max(1, measured.completed)
        return Round(
            measured.per_second,
            measured.p50_ms,
            measured.p99_ms,
            service * each,
            postgres * each,
            measured.cpu_seconds * each,
            not_good([measured.statuses]),
        )


def race(contestants: Sequence[Contestant], rounds: int, tell: Callable[[str], None]) -> dict[str, Line]:
    """Run all in every round, every other round backwards. `tell` is told of each before it runs."""
    lines = {contestant.name: Line([], [], [], [], [], []) for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            tell(f"{contestant.name}, round {number + 1} of {rounds}")
            lines[contestant.name] = _with(lines[contestant.name], contestant.run())
    return lines


def _with(line: Line, one: Round) -> Line:
    return Line(
        [*line.per_second, one.per_second],
        [*line.p50_ms, one.p50_ms],
        [*line.p99_ms, one.p99_ms],
        [*line.service_cpu_ms, one.service_cpu_ms],
        [*line.postgres_cpu_ms, one.postgres_cpu_ms],
        [*line.load_cpu_ms, one.load_cpu_ms],
        line.not_good + one.not_good,
    )
