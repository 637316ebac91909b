"""APIs and workers: killed, at random and where it hurts most, stopped, restarted, and told the wrong time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from tcc.failpoints import FAILPOINTS
from tests.faults.fleet import APIS, LEASE_SECONDS, SPARE_API, SPARE_WORKER, WORKERS
from tests.faults.stage import Fault, Stage

DIES_WITHIN_SECONDS: Final = 25.0
LATE_SECONDS: Final = 6.0
"""A hold that was abandoned is given back within this time, sweeps and a lease included."""
FAKETIME: Final = tuple(Path("/usr").glob("lib/*/faketime/libfaketime.so.1"))


def killed(names: tuple[str, ...]) -> Callable[[Stage], Awaitable[None]]:
    """SIGKILL, whatever it is doing."""

    async def play(stage: Stage) -> None:
        name = stage.choose(*names)
        stage.hit()
        await stage.fleet.kill(name)
        await stage.hold(0.3, 2)
        await stage.fleet.start_process(name)

    return play


def dies_at(failpoint: str, spare: str) -> Callable[[Stage], Awaitable[None]]:
    """One more process takes its part of the work, and kills itself at a failpoint."""

    async def play(stage: Stage) -> None:
        # A worker has less to do, and does seldom what takes it from one database to another.
        times = stage.random.randint(1, 12) if spare is SPARE_API else 1
        child = await stage.fleet.start_process(spare, TCC_TEST_MODE="1", TCC_FAILPOINTS=f"{failpoint}@{times}")
        await asyncio.to_thread(child.wait, DIES_WITHIN_SECONDS)
        stage.hit()
        if child.exit_code != -signal.SIGKILL:
            stage.diary.violate("harness", f"{spare} never came by {failpoint} {times} times")
            await stage.fleet.kill(spare)

    return play


def stopped(names: tuple[str, ...], seconds: float) -> Callable[[Stage], Awaitable[None]]:
    """SIGSTOP, and later SIGCONT: it wakes up in the middle of what others have finished since."""

    async def play(stage: Stage) -> None:
        name = stage.choose(*names)
        stage.hit()
        stage.fleet.send(name, signal.SIGSTOP)
        try:
            await stage.hold(seconds, seconds + 2)
        finally:
            stage.fleet.send(name, signal.SIGCONT)

    return play


async def rolling_restart(stage: Stage) -> None:
    """Each API in turn, as a deployment does it: no request may fail but by a 503 that says when to come again."""
    stage.shoppers.clean = True
    try:
        for name in APIS:
            stage.hit()
            await stage.fleet.end(name)
            await stage.fleet.start_process(name)
            await stage.hold(0.5, 1)
    finally:
        stage.shoppers.clean = False
    for name in WORKERS:
        await stage.fleet.end(name)
        await stage.fleet.start_process(name)


def wrong_clock(shift: str) -> Callable[[Stage], Awaitable[None]]:
    """Every API and worker believes that it is another time; nothing may expire early or late."""

    async def play(stage: Stage) -> None:
        stage.hit()
        await _restart_all(stage, LD_PRELOAD=str(FAKETIME[0]), FAKETIME=shift, FAKETIME_DONT_FAKE_MONOTONIC="1")
        try:
            stage.hit()
            if late := await stage.shoppers.abandon(10, ttl_seconds=1.5, within=1.5 + LATE_SECONDS):
                stage.diary.violate("I4", f"with clocks off by {shift}, {late} of 10 holds were not given back in time")
        finally:
            await _restart_all(stage)

    return play


async def _restart_all(stage: Stage, **environment: str) -> None:
    for pair in zip(APIS, WORKERS, strict=True):
        await asyncio.gather(*(stage.fleet.end(name) for name in pair))
        await asyncio.gather(*(stage.fleet.start_process(name, **environment) for name in pair))


def _no_faketime() -> str | None:
    return None if FAKETIME else "libfaketime isn't installed (Debian: apt-get install faketime)"


FAULTS: Final = (
    Fault("API killed", killed(APIS)),
    Fault("worker killed", killed(WORKERS)),
    *(Fault(f"API dies {name.replace('_', ' ')}", dies_at(name, SPARE_API)) for name in FAILPOINTS),
    *(Fault(f"worker dies {name.replace('_', ' ')}", dies_at(name, SPARE_WORKER)) for name in FAILPOINTS),
    Fault("worker stopped past its lease", stopped(WORKERS, LEASE_SECONDS + 1)),
    Fault("API frozen", stopped(APIS, 2)),
    Fault("rolling restart", rolling_restart),
    Fault("clocks two hours ahead", wrong_clock("+2h"), _no_faketime),
    Fault("clocks two hours behind", wrong_clock("-2h"), _no_faketime),
)
