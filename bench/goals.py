"""What was aimed at, and how far it was reached. Where a goal is for several cases, the worst of them counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from bench.compare import ALONE, NOOP, OURS, PEERS, line, pgbench_line
from bench.lasting import EMPTY, FULL, history_line
from bench.latency import HALF
from bench.results import Line, Results, Spread, Throughput, ratio, spread
from bench.workloads import HOT, SPREAD, Picks

BOTH = (HOT, SPREAD)


class Goal(msgspec.Struct, frozen=True):
    """One row: what, how it is written, and how good is good enough; without `least` it is only to be reported.
    `measured` are the cases, by name."""

    what: str
    least: float | None
    aim: float | None
    measured: dict[str, Spread]
    form: str = "{:.2f}"
    more_is_better: bool = True
    never: float | None = None
    """Something counted that must be 0."""

    @property
    def worst(self) -> float | None:
        """The case that counts; None where nothing was measured."""
        medians = [case.median for case in self.measured.values()]
        if not medians:
            return None
        return min(medians) if self.more_is_better else max(medians)

    @property
    def met(self) -> str:
        """`aim`, `least`, `no`, or `reported`; nothing where nothing was measured."""
        if self.worst is None:
            return ""
        if self.never:
            return "no"
        if self._reaches(self.aim):
            return "aim"
        if self.least is None:
            return "reported"
        return "least" if self._reaches(self.least) else "no"

    def _reaches(self, bound: float | None) -> bool:
        if bound is None or self.worst is None:
            return False
        return self.worst >= bound if self.more_is_better else self.worst <= bound


Cases = dict[str, Spread]


def goals(results: Results) -> list[Goal]:
    """Every goal, with what has been measured of it."""
    return [*_throughput(results), *_latency(results), *_lasting(results)]


def _throughput(found: Results) -> Iterator[Goal]:
    for what, least, aim in (("Try", 0.55, 0.8), ("order", 0.22, 0.4)):
        cases = _cases(found.ceiling, BOTH, partial(_of_ceiling, what))
        yield Goal(f"{what} over HTTP, 64 clients, against the no-op", least, aim, cases)
    for kind, commits, least, aim in (("ORM", (3, 9), 8, 15), ("asyncpg", (3, 9), 2, 4), ("DBOS", (), 20, 50)):
        names = [f"{kind}, {number} commits" for number in commits] or [kind]
        assert set(names) <= PEERS.keys()
        cases = {
            ", ".join([picks.name, *name.split(", ")[1:]]): case
            for name in names
            for picks, case in _against(found.peers, name)
        }
        yield Goal(f"order against {kind}", least, aim, cases, "{:.1f} x")
    for picks, least, aim in ((SPREAD, 0.45, 1), (HOT, 1.2, 3)):
        cases = _cases(
            found.peers,
            (picks,),
            lambda lines, one: ratio(lines[line(OURS, one)], lines[pgbench_line("order", one)]),
        )
        yield Goal(f"order against pgbench, {picks.name}", least, aim, cases, "{:.2f} x")
    hot = (
        {
            what: ratio(found.ceiling.lines[line(what, HOT)], found.ceiling.lines[line(what, SPREAD)])
            for what in ("Try", "order")
        }
        if found.ceiling
        else {}
    )
    yield Goal("hot against spread", 0.9, 1, hot)


def _of_ceiling(what: str, lines: dict[str, Line], picks: Picks) -> Spread:
    return ratio(lines[line(what, picks)], lines[NOOP])


def _against(section: Throughput | None, peer: str) -> Sequence[tuple[Picks, Spread]]:
    if section is None:
        return []
    return [(picks, ratio(section.lines[line(OURS, picks)], section.lines[line(peer, picks)])) for picks in BOTH]


def _cases(
    section: Throughput | None, picks: Sequence[Picks], case: Callable[[dict[str, Line], Picks], Spread]
) -> Cases:
    return {one.name: case(section.lines, one) for one in picks} if section else {}


def _latency(found: Results) -> Iterator[Goal]:
    alone: Cases = {}
    if found.alone:
        ours, theirs = found.alone.lines[OURS].p50_ms, found.alone.lines[ALONE].p50_ms
        alone = {"p50": spread([a / b for a, b in zip(ours, theirs, strict=True)])}
    yield Goal("one client alone: latency of an order against asyncpg with 3 commits", 1.5, 1, alone, "{:.2f} x", False)
    half: Cases = {}
    if found.openloop:
        half = {"": _one(next(point.came.p99_ms for point in found.openloop.points if point.share == HALF))}
    yield Goal("p99 of an order at half the sustainable rate, open-loop", None, 40, half, "{:.0f} ms", False)
    cases = _cases(
        found.clients,
        BOTH,
        lambda lines, picks: ratio(lines[line("order", picks, 256, 2)], lines[line("order", picks, 256, 1)]),
    )
    deadlocks = found.clients.figures["deadlocks"] if found.clients else None
    what = "two API processes, 256 clients, against one; zero deadlocks"
    yield Goal(what, 1.25, 1.5, cases, "{:.2f} x", True, deadlocks)


def _lasting(found: Results) -> Iterator[Goal]:
    tries: Cases = {}
    many = 100_000
    if found.backlogs:
        many = found.backlogs.tries
        tries = {"": _one(found.backlogs.tries_seconds)}
    yield Goal(f"{many:,} abandoned tries given back, while serving", 20, 10, tries, "{:.1f} s", False)
    cpu = _cases(found.ceiling, BOTH, lambda lines, picks: cpu_ms(lines[line("order", picks)]))
    yield Goal("CPU per order, API and PostgreSQL together", 1.2, 0.6, cpu, "{:.2f} ms", False)
    past: Cases = {}
    many = 5_000_000
    if found.history:
        many = found.history.reservations
        lines = found.history.lines
        past = {
            f"{what}, {picks.name}": ratio(
                lines[history_line(what, picks.name, FULL)], lines[history_line(what, picks.name, EMPTY)]
            )
            for what in ("Try", "order")
            for picks in BOTH
        }
    yield Goal(f"after {many:,} past reservations, against the empty table", 0.9, 1, past)


def _one(value: float) -> Spread:
    return Spread(value, value, value)


def cpu_ms(found: Line) -> Spread:
    """CPU of the service and of PostgreSQL together, per cycle."""
    pairs = zip(found.service_cpu_ms, found.postgres_cpu_ms, strict=True)
    return spread([service + postgres for service, postgres in pairs])
