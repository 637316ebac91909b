"""The machine, the versions and the settings that figures belong to."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from bench.results import Machine, Stamp
from bench.stage import ROOT, Stage

PACKAGES = ("litestar", "uvicorn", "uvloop", "httptools", "msgspec", "asyncpg", "sqlalchemy", "dbos")
SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
)
_SYNCS = 50
_PAGE_BYTES = 8192


def describe(stage: Stage) -> Machine:
    """This machine, and the server on the stage; its settings as it says them itself."""
    settings = {name: str(stage.query("postgres", f"SHOW {name}")[0][0]) for name in SETTINGS}
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gigabytes=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        sync_milliseconds=_sync_milliseconds(),
        python=platform.python_version(),
        postgresql=str(stage.query("postgres", "SHOW server_version")[0][0]),
        settings=settings,
        packages={name: _version(name) for name in PACKAGES},
    )


def stamp(rounds: int, seconds: float) -> Stamp:
    """Now, and the code as it is."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--abbrev=9", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Stamp(asked.stdout.strip() or "unknown", f"{datetime.now(UTC):%Y-%m-%d}", rounds, seconds)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _sync_milliseconds() -> float:
    """How long it takes to make a page durable where PostgreSQL keeps its data here."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            started = time.perf_counter()
            os.pwrite(file.fileno(), bytes(_PAGE_BYTES), 0)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
