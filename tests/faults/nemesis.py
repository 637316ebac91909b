"""Breaks one thing after another, in an order that the seed decides, and waits each time until all is well again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.breakages.network import heal
from tests.faults.diary import Diary
from tests.faults.fleet import Fleet
from tests.faults.shoppers import Shoppers
from tests.faults.stage import Fault, Stage

TRAFFIC: Final = 3
"""So many intents are to be under way before something is broken."""
RECOVERY_SECONDS: Final = 60.0
"""I8: what was in flight when it hit is at its end so long after it healed, at the most."""
FAULT_SECONDS: Final = 240.0


@dataclass
class Row:
    """What is told of a fault at the end."""

    fault: str
    injected: int = 0
    in_flight: int = 0
    acknowledged: int = 0
    unknown: int = 0
    violations: int = 0
    recovery_seconds: float = 0.0
    impossible: str | None = None


class Nemesis:
    """Plays faults on a fleet under load."""

    def __init__(self, fleet: Fleet, shoppers: Shoppers, diary: Diary, seed: int, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._shoppers = shoppers
        self._diary = diary
        self._random = random.Random(seed)
        self._say = say
        self.rows: dict[str, Row] = {}

    async def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Every fault once, then on until the time is over."""
        possible = []
        for fault in faults:
            row = self.rows[fault.name] = Row(fault.name, impossible=fault.impossible())
            if row.impossible:
                self._say(f"not played: {fault.name}: {row.impossible}")
            else:
                possible.append(fault)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for number, fault in enumerate(self._endless(possible)):
            if number >= len(possible) and loop.time() > until:
                return
            await self._play(fault)

    def _endless(self, faults: Sequence[Fault]) -> Iterator[Fault]:
        while faults:
            yield from self._random.sample(faults, len(faults))

    async def _play(self, fault: Fault) -> None:
        row, loop = self.rows[fault.name], asyncio.get_running_loop()
        await asyncio.sleep(self._random.uniform(0.3, 1.0))
        await self._traffic()
        before = len(self._diary.violations)
        stage = Stage(self._fleet, self._shoppers, self._diary, self._random)
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                await fault.play(stage)
        except TimeoutError:
            self._diary.violate("harness", f"{fault.name} was not over after {FAULT_SECONDS:.0f} s")
        finally:
            heal(self._fleet)
            await self._fleet.ensure_running()
        recovery = await self._recovered(stage, loop.time())
        unknown = len(stage.struck & self._diary.unknown)
        row.injected += 1
        row.in_flight += len(stage.struck)
        row.unknown += unknown
        row.acknowledged += len(stage.struck) - unknown
        row.violations += len(self._diary.violations) - before
        row.recovery_seconds = max(row.recovery_seconds, recovery)
        self._say(
            f"{fault.name}: {len(stage.struck)} in flight, {unknown} unknown, recovered in {recovery:.1f} s"
            + "".join(f"\n    {violation}" for violation in self._diary.violations[before:])
        )

    async def _traffic(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + RECOVERY_SECONDS
        while len(self._diary.under_way) < TRAFFIC and loop.time() < until:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)

    async def _recovered(self, stage: Stage, healed: float) -> float:
        """Seconds until all that was in flight has ended, and others have come and been served since."""
        loop = asyncio.get_running_loop()
        served = self._diary.acknowledged + len(stage.struck)
        while stage.struck & self._diary.under_way or self._diary.acknowledged < served:
            if loop.time() - healed > RECOVERY_SECONDS:
                left = ", ".join(f"{i.kind} {i.reference}" for i in stage.struck & self._diary.under_way)
                self._diary.violate(
                    "I8", f"not recovered {RECOVERY_SECONDS:.0f} s after healing: {left or 'no traffic'}"
                )
                break
            await asyncio.sleep(0.02)
        ends = [intent.ended - healed for intent in stage.struck if intent.ended]
        return max([0.0, *ends])
