"""What a run might have found out: everything at round numbers."""

from __future__ import annotations

from bench.compare import ALONE, CLIENTS, CURVES, NOOP, OURS, PEERS, PROCESSES, line, pgbench_line
from bench.lasting import EMPTY, FULL, history_line
from bench.latency import SHARES
from bench.openloop import Moment, Summary
from bench.results import (
    Backlogs,
    History,
    Line,
    Machine,
    Offered,
    OpenLoop,
    Overload,
    Profile,
    Results,
    Stamp,
    Statement,
    Table,
    Throughput,
)
from bench.workloads import HOT, SPREAD, ZIPF

STAMP = Stamp("abc", "2026-01-02", 2, 1.5)
BOTH = (HOT, SPREAD)
CAME = Summary(1000, 900, 90, 90, 10, 5.0, 10.0, 20.0, 40.0, 3.0)


def rounds(per_second: float, p50_ms: float = 10.0) -> Line:
    """Two rounds, the second one tenth faster."""
    return Line(
        per_second=[per_second, per_second * 1.1],
        p50_ms=[p50_ms, p50_ms],
        p99_ms=[20.0, 20.0],
        service_cpu_ms=[0.5, 0.5],
        postgres_cpu_ms=[0.25, 0.25],
        load_cpu_ms=[0.05, 0.05],
    )


def sample() -> Results:
    """All sections."""
    ceiling = {NOOP: rounds(5000)}
    for what, rate in (("Try", 4000), ("Try + Confirm", 2000), ("order", 1000)):
        ceiling |= {line(what, picks): rounds(rate) for picks in (HOT, ZIPF, SPREAD)}
    clients = {
        line(what, picks, number, processes): rounds(900 * processes)
        for what, picks in (("order", HOT), ("order", SPREAD), ("Try", SPREAD))
        for number in CLIENTS
        for processes in PROCESSES
    }
    peers = {line(OURS, picks): rounds(1000) for picks in BOTH} | {
        line("our Try", picks): rounds(4000) for picks in BOTH
    }
    peers |= {line(peer, picks): rounds(100) for peer in PEERS for picks in BOTH}
    peers |= {line(peer, SPREAD, number): rounds(100) for peer in CURVES for number in CLIENTS}
    peers |= {pgbench_line(what, picks): rounds(2000) for what in ("order", "try") for picks in BOTH}
    past = {
        history_line(what, picks.name, name): rounds(1000 if name == EMPTY else 950)
        for what in ("Try", "order")
        for picks in BOTH
        for name in (FULL, EMPTY)
    }
    moments = [Moment(second, 2000, 900, 1000, 25.0, 900) for second in range(3)]
    some = {"something": rounds(10)}
    return Results(
        machine=Machine("a CPU", 2, 4.0, "Linux 6", 0.5, "3.11", "18.0", {"fsync": "on"}, {"litestar": "2"}),
        ceiling=Throughput(STAMP, ceiling, {"idle_megabytes": 100.0, "loaded_megabytes": 120.0}),
        clients=Throughput(STAMP, clients, {"deadlocks": 0}),
        peers=Throughput(
            STAMP, peers, {f"{pgbench_line(what, picks)} clients": 16 for what in ("order", "try") for picks in BOTH}
        ),
        alone=Throughput(STAMP, {OURS: rounds(100, 6.0), ALONE: rounds(100, 5.0)}),
        sandbox=Throughput(STAMP, some),
        reads=Throughput(STAMP, some),
        openloop=OpenLoop(
            STAMP,
            rounds(1000),
            1000,
            [Offered(share, 1000 * share, 1.0, CAME) for share in SHARES],
            Overload(2000, 2, 20.0, 950.0, CAME, CAME, 0.5, moments),
        ),
        backlogs=Backlogs(STAMP, 100_000, 12.5, 500, CAME, CAME, 10_000, 20.0),
        history=History(STAMP, 5_000_000, 100.0, past, [Table("journal", 10, 1.0, 2.0, 3, 4, 100, 90, 1)], 80_000, 2.0),
        profile=Profile(STAMP, 100, [Statement("insert journal", 1.0, 0.2, 3.0, 500.0)]),
    )
