"""Sections that run contestants side by side: the ceiling, numbers of clients, what others would build, and more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import pgbench
from bench.peers.prepare import prepare
from bench.results import Throughput
from bench.section import Run
from bench.stage import Server, Stage, asyncpg_url, get, memory_megabytes
from bench.throughput import Contestant, Course, race
from bench.workloads import (
    HOT,
    SKUS,
    SPREAD,
    ZIPF,
    Picks,
    hold,
    hold_and_confirm,
    noop,
    order,
    order_and_confirm,
    read,
)

NOOP = "no-op"
CLIENTS = (1, 16, 64, 256)
USUAL_CLIENTS = 64
PROCESSES = (1, 2)
PEERS = {
    "ORM, 3 commits": ("orm", "--commits", "3"),
    "ORM, 9 commits": ("orm", "--commits", "9"),
    "asyncpg, 3 commits": ("bare", "--commits", "3"),
    "asyncpg, 9 commits": ("bare", "--commits", "9"),
    "DBOS": ("durable",),
}
CURVES = ("ORM, 3 commits", "asyncpg, 3 commits", "DBOS")
"""The peers that are run with every number of clients."""
PEER_PATH = "/orders"
OURS = "ours"
ALONE = "asyncpg, 3 commits"
"""The peer that one client alone is compared with."""


def line(what: str, picks: Picks, clients: int = USUAL_CLIENTS, processes: int = 1) -> str:
    """The name of a contestant."""
    return f"{what}, {picks.name}, {_many(clients, 'client')}, {_many(processes, 'process')}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"


def _ours(stage: Stage, database: str, processes: int = 1) -> list[Server]:
    """API processes on a new database."""
    url = stage.database(database)
    return [stage.api(url) for _ in range(processes)]


def ceiling(run: Run) -> Throughput:
    """Against an endpoint that does nothing: how near to what the framework can do at all."""
    with run.stage() as stage:
        nothing, ours = [stage.noop()], _ours(stage, "ceiling")
        idle = memory_megabytes(ours[0])
        course = run.course()
        course.warm(order(SPREAD), ours)
        contestants = [course.http(NOOP, noop(), nothing)]
        for what, workload in (("Try", hold), ("Try + Confirm", hold_and_confirm), ("order", order)):
            contestants += [course.http(line(what, picks), workload(picks), ours) for picks in (HOT, ZIPF, SPREAD)]
        lines = race(contestants, run.sizes.rounds, run.tell)
        figures = {"idle_megabytes": idle, "loaded_megabytes": memory_megabytes(ours[0])}
    return Throughput(run.stamp(), lines, figures)


def clients(run: Run) -> Throughput:
    """Few and many clients, one and two API processes. Whether anything has deadlocked is asked once all are gone:
    a backend tells what it has counted when it ends at the latest."""
    database = "clients"
    with run.stage() as stage:
        ours = _ours(stage, database, max(PROCESSES))
        course = run.course()
        contestants = []
        for processes in PROCESSES:
            course.warm(order(SPREAD), ours[:processes])
            for number in CLIENTS:
                for what, workload in ((line("order", HOT, number, processes), order(HOT)),
                                       (line("order", SPREAD, number, processes), order(SPREAD)),
                                       (line("Try", SPREAD, number, processes), hold(SPREAD))):  # fmt: skip
                    contestants.append(course.http(what, workload, ours[:processes], number))
        lines = race(contestants, run.sizes.rounds, run.tell)
        stage.clear()
        asked = "SELECT deadlocks FROM pg_stat_database WHERE datname = $1"
        deadlocks = stage.query("postgres", asked, database)[0]["deadlocks"]
    return Throughput(run.stamp(), lines, {"deadlocks": deadlocks})


def peers(run: Run) -> Throughput:
    """The same order as others would make it: services in Python, and PostgreSQL with nobody before it but pgbench."""
    figures: dict[str, float] = {}
    with run.stage() as stage:
        course = run.course()
        ours = _ours(stage, "peers_ours")
        course.warm(order(SPREAD), ours)
        contestants = [course.http(line(OURS, picks), order(picks), ours) for picks in (HOT, SPREAD)]
        for name, (module, *options) in PEERS.items():
            server = [stage.peer(module, stage.empty_database(f"peers_{len(contestants)}"), *options)]
            course.warm(order(SPREAD, PEER_PATH), server)
            contestants += _peer(course, name, server)
        contestants += [course.http(line("our Try", picks), hold(picks), ours) for picks in (HOT, SPREAD)]
        database = "peers_pgbench"
        asyncio.run(prepare(asyncpg_url(stage.empty_database(database)), SKUS))
        for what in ("order", "try"):
            for picks in (HOT, SPREAD):
                chosen, number = _at_its_best(run, database, what, picks)
                figures[f"{chosen.name} clients"] = number
                contestants.append(chosen)
        lines = race(contestants, run.sizes.rounds, run.tell)
    return Throughput(run.stamp(), lines, figures)


def _peer(course: Course, name: str, server: Sequence[Server]) -> list[Contestant]:
    """A peer with the usual number of clients, hot and spread; and with every other number, if it is one of those."""
    turns = [(picks, USUAL_CLIENTS) for picks in (HOT, SPREAD)]
    if name in CURVES:
        turns += [(SPREAD, number) for number in CLIENTS if number != USUAL_CLIENTS]
    return [course.http(line(name, picks, number), order(picks, PEER_PATH), server, number) for picks, number in turns]


def _at_its_best(run: Run, database: str, what: str, picks: Picks) -> tuple[Contestant, int]:
    """pgbench with the number of clients that it is best at, and that number."""
    tried = {}
    for number in pgbench.CONCURRENCIES:
        name = pgbench_line(what, picks)
        run.tell(f"{name}, looking for its best: {number} clients")
        contestant = pgbench.contestant(name, run.postgres, database, f"{what}.sql", picks, number, run.sizes.seconds)
        tried[number] = (contestant.run().per_second, contestant)
    best = max(tried, key=lambda number: tried[number][0])
    return tried[best][1], best


def pgbench_line(what: str, picks: Picks) -> str:
    """The name of a script of pgbench."""
    return f"pgbench {what}, {picks.name}"


def alone(run: Run) -> Throughput:
    """One client with nobody beside it: batching helps nobody here, and must not cost."""
    with run.stage() as stage:
        ours = _ours(stage, "alone_ours")
        module, *options = PEERS[ALONE]
        theirs = [stage.peer(module, stage.empty_database("alone_peer"), *options)]
        course = run.course()
        course.warm(order(SPREAD), ours)
        course.warm(order(SPREAD, PEER_PATH), theirs)
        contestants = [
            course.http(OURS, order(SPREAD), ours, 1),
            course.http(ALONE, order(SPREAD, PEER_PATH), theirs, 1),
        ]
        lines = race(contestants, run.sizes.rounds, run.tell)
    return Throughput(run.stamp(), lines)


def sandbox(run: Run) -> Throughput:
    """With the card's gateway in a process of its own, which writes its ledger to disk; and orders confirmed apart."""
    with run.stage() as stage:
        instant = _ours(stage, "sandbox_instant")
        url = stage.database("sandbox")
        served = [stage.api(url, stage.sandbox().url)]
        course = run.course()
        for servers in (instant, served):
            course.warm(order(SPREAD), servers)
        contestants = [
            course.http("order, gateway in the process", order(SPREAD), instant),
            course.http("order, sandbox gateway", order(SPREAD), served),
            course.http("order held, then confirmed, gateway in the process", order_and_confirm(SPREAD), instant),
            course.http("order held, then confirmed, sandbox gateway", order_and_confirm(SPREAD), served),
        ]
        lines = race(contestants, run.sizes.rounds, run.tell)
    return Throughput(run.stamp(), lines)


def reads(run: Run) -> Throughput:
    """Reading what is there."""
    with run.stage() as stage:
        ours = _ours(stage, "reads")
        course = run.course()
        course.warm(order(SPREAD), ours)
        page = get(f"{ours[0].url}/v1/transactions?limit=200")["items"]
        transactions = tuple(item["id"] for item in page)
        stock = tuple(item["branches"][0]["id"] for item in page)
        contestants = [
            course.http("a transaction", read("/v1/transactions/{pick}", transactions), ours),
            course.http("a reservation", read("/v1/inventory/reservations/{pick}", stock), ours),
            course.http("an item of stock", read("/v1/inventory/items/{pick}", SPREAD.values), ours),
            course.http("a list of 20 transactions", read("/v1/transactions?limit=20", ("",)), ours),
        ]
        lines = race(contestants, run.sizes.rounds, run.tell)
    return Throughput(run.stamp(), lines)
