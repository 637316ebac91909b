"""The sections about what piles up: backlogs, history, and where PostgreSQL's time goes."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

from bench import history as past
from bench.backlogs import LONGEST_SECONDS, abandoned, undriven, work_off
from bench.load import Load
from bench.openloop import OpenLoad, Phase, summary
from bench.results import Backlogs, History, Profile, Statement
from bench.section import Run
from bench.stage import Stage
from bench.throughput import race
from bench.workloads import HOT, SPREAD, hold, order
from resources.registry import RESOURCES
from tcc.dev.servers import PostgresServer
from tcc.service import open_service
from tcc.settings import Settings
from tcc.sweeps import Sweeper
from workers.run import PURGE_SIZE

SERVING_SHARE = 0.25
FULL, EMPTY = "full", "empty"
_SHOWN = 12


def backlogs(run: Run) -> Backlogs:
    """One worker, tries that were abandoned while the API serves others, and orders that a crash left in the middle."""
    sizes = run.sizes
    with run.stage() as stage:
        url = stage.database("backlog_tries")
        backlog = abandoned(stage, url, sizes.tries)
        api = stage.api(url)
        run.course().warm(hold(SPREAD), [api])
        closed = run.generator.closed(Load(hold(SPREAD), (api.port,), seconds=sizes.seconds))
        rate = closed.per_second * SERVING_SHARE
        run.tell("serving before the backlog")
        before, _ = run.generator.open(OpenLoad(hold(SPREAD), (api.port,), (Phase(rate, 2 * sizes.seconds),)))
        load = OpenLoad(hold(SPREAD), (api.port,), (Phase(rate, LONGEST_SECONDS),))
        tries_seconds = work_off(
            stage,
            url,
            backlog,
            "reservations",
            begin=lambda: run.generator.begin(load),
            tell=lambda left: run.tell(f"abandoned tries left: {left:,}"),
        )
        meanwhile, _ = run.generator.end()
    with run.stage() as stage:
        url = stage.database("backlog_transactions")
        backlog = undriven(stage, url, sizes.transactions)
        transactions_seconds = work_off(
            stage,
            url,
            backlog,
            "transactions",
            tell=lambda left: run.tell(f"undriven orders left: {left:,}"),
        )
    return Backlogs(
        stamp=run.stamp(),
        tries=sizes.tries,
        tries_seconds=tries_seconds,
        serving_rate=rate,
        serving_before=summary(before),
        serving_meanwhile=summary(meanwhile),
        transactions=sizes.transactions,
        transactions_seconds=transactions_seconds,
    )


def history(run: Run) -> History:
    """After so many past reservations, and on empty tables, in the same rounds."""
    with run.stage() as stage:
        urls = {name: stage.database(name) for name in (FULL, EMPTY)}
        servers = {name: [stage.api(url)] for name, url in urls.items()}
        made_of = past.live(servers[FULL][0])

        def told(done: int, of: int) -> None:
            run.tell(f"writing {run.sizes.history:,} past reservations: {done / of:.0%}")

        fill_seconds = past.fill(urls[FULL], made_of, run.sizes.history, told)
        course = run.course()
        contestants = []
        for name, one in servers.items():
            course.warm(order(SPREAD), one)
            contestants += [
                course.http(history_line(what, picks.name, name), workload(picks), one)
                for what, workload in (("Try", hold), ("order", order))
                for picks in (HOT, SPREAD)
            ]
        before = past.look(urls[FULL])
        lines = race(contestants, run.sizes.rounds, run.tell)
        stage.clear()
        after = past.look(urls[FULL])
        run.tell("forgetting old keys")
        purged, purge_seconds = asyncio.run(_purge(stage, urls[FULL]))
        stage.drop(FULL, EMPTY)
    return History(
        stamp=run.stamp(),
        reservations=run.sizes.history,
        fill_seconds=fill_seconds,
        lines=lines,
        tables=past.compared(before, after),
        purged_keys=purged,
        purge_seconds=purge_seconds,
    )


def history_line(what: str, picks: str, name: str) -> str:
    """The name of a contestant."""
    return f"{what}, {picks}, {name}"


async def _purge(stage: Stage, url: str) -> tuple[int, float]:
    """Forget all keys that are due, as a worker does; how many there were, and the seconds."""
    environment = stage.environment(url)
    settings = Settings.from_environment(environment)
    service = open_service(settings, RESOURCES, environment, application="tcc-bench")
    sweeper = Sweeper(service, "bench")
    started = time.perf_counter()
    total = 0
    while gone := await sweeper.purge(PURGE_SIZE):
        total += gone
    seconds = time.perf_counter() - started
    await service.close()
    return total, seconds


_STATEMENTS = f"""
SELECT query, calls, total_exec_time AS milliseconds, rows, wal_bytes::float8 AS wal_bytes FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND query NOT LIKE '%pg_stat_statements%'
ORDER BY total_exec_time DESC LIMIT {_SHOWN}"""
_WRITES = re.compile(r"(?<!FOR )(?<!KEY )(INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")
_WORDS = {"INSERT INTO": "insert", "UPDATE": "update", "DELETE FROM": "delete"}


def profile(run: Run) -> Profile:
    """What each order costs PostgreSQL, statement by statement (pg_stat_statements)."""
    given = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"}
    with (
        PostgresServer(Path(run.folder) / "profile", settings=given) as postgres,
        Stage(postgres, run.folder) as stage,
    ):
        api = stage.api(stage.database("profile"))
        stage.query("profile", "CREATE EXTENSION pg_stat_statements")
        run.course(postgres).warm(order(SPREAD), [api])
        run.tell("pg_stat_statements")
        stage.query("profile", "SELECT pg_stat_statements_reset()")
        orders = run.generator.closed(Load(order(SPREAD), (api.port,), seconds=2 * run.sizes.seconds)).completed
        rows = stage.query("profile", _STATEMENTS)
    return Profile(run.stamp(), orders, [_statement(row, max(1, orders)) for row in rows])


def _statement(row: Any, orders: int) -> Statement:
    return Statement(
        _title(row["query"]),
        row["calls"] / orders,
        row["milliseconds"] / orders,
        row["rows"] / orders,
        row["wal_bytes"] / orders,
    )


def _title(query: str) -> str:
    """What a statement writes; its first words where it writes nothing."""
    if "FROM tcc_apply_" in query:
        return "the call of a batch, with all that the function does"
    writes = [f"{_WORDS[how]} {table}" for how, table in _WRITES.findall(query)]
    return ", ".join(dict.fromkeys(writes)) or " ".join(query.split())[:60]
