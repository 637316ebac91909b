"""Valkey: gone, emptied, frozen. Nothing is lost with it, and nothing is late by more than a sweep."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

import redis.asyncio

from tests.faults.stage import Fault, Stage


async def killed(stage: Stage) -> None:
    stage.hit()
    await asyncio.to_thread(stage.fleet.valkey.kill)
    await stage.hold(2, 4)
    await asyncio.to_thread(stage.fleet.valkey.start)


async def flushed(stage: Stage) -> None:
    async with redis.asyncio.Redis.from_url(stage.fleet.valkey.url) as client:
        for _ in range(5):
            stage.hit()
            await client.flushall()
            await stage.hold(0.2, 0.5)


async def restarted_empty(stage: Stage) -> None:
    stage.hit()
    await asyncio.to_thread(stage.fleet.valkey.restart)
    await stage.hold(1, 2)


async def frozen(stage: Stage) -> None:
    stage.hit()
    os.kill(stage.fleet.valkey.pid, signal.SIGSTOP)
    try:
        await stage.hold(3, 6)
    finally:
        os.kill(stage.fleet.valkey.pid, signal.SIGCONT)


FAULTS: Final = (
    Fault("Valkey: killed", killed),
    Fault("Valkey: flushed", flushed),
    Fault("Valkey: restarted empty", restarted_empty),
    Fault("Valkey: frozen", frozen),
)
