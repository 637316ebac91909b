"""pgbench: the SQL of the same work, prepared and sent by a client written in C, one reservation or order at a time."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

from bench.stage import cpu_seconds
from bench.throughput import Contestant, Round
from bench.workloads import SKUS, Picks
from tcc.dev.programs import LOOPBACK, postgres_environment, postgres_programs
from tcc.dev.servers import SUPERUSER, PostgresServer

SCRIPTS = Path(__file__).parent / "peers"
CONCURRENCIES = (4, 16, 64)
THREADS = 2

_RATE = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_LATENCY = re.compile(r"^latency average = ([\d.]+) ms", re.MULTILINE)
_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


def contestant(
    name: str, postgres: PostgresServer, database: str, script: str, picks: Picks, clients: int, seconds: float
) -> Contestant:
    """A script of `bench/peers` on units chosen as by `picks`, which is hot or spread."""
    skus = 1 if len(picks.values) == 1 else SKUS
    command: list[str | Path] = [
        postgres_programs() / "pgbench",
        *("--no-vacuum", "--protocol", "prepared", "--file", SCRIPTS / script, "--define", f"skus={skus}"),
        *("--client", str(clients), "--jobs", str(THREADS), "--time", str(math.ceil(seconds))),
        *("--host", LOOPBACK, "--port", str(postgres.port), "--username", SUPERUSER, database),
    ]

    def run() -> Round:
        before = cpu_seconds([postgres.pid])
        done = subprocess.run(
            command,
            env=postgres_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"pgbench {script} failed: {done.stderr.strip()[-2000:]}")
        spent = cpu_seconds([postgres.pid]) - before
        return _round(done.stdout, spent)

    return Contestant(name, run)


def _round(said: str, postgres_seconds: float) -> Round:
    """What pgbench printed. Its latency is an average: it tells no percentiles."""

    def number(pattern: re.Pattern[str]) -> float:
        found = pattern.search(said)
        return float(found.group(1)) if found else 0.0

    return Round(
        per_second=number(_RATE),
        p50_ms=number(_LATENCY),
        postgres_cpu_ms=postgres_seconds * 1000 / max(1.0, number(_DONE)),
        not_good=int(number(_FAILED)),
    )
