"""Where a fault is played: what it may break, and the moment at which it hit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.diary import Diary, Intent
from tests.faults.fleet import Fleet
from tests.faults.shoppers import Shoppers


@dataclass
class Stage:
    """One injection of a fault."""

    fleet: Fleet
    shoppers: Shoppers
    diary: Diary
    random: random.Random
    struck: set[Intent] = field(default_factory=set)
    """What was in flight when it hit."""

    def hit(self) -> None:
        """Now: whatever is under way is hit."""
        self.struck |= self.diary.under_way

    async def hold(self, least_seconds: float, most_seconds: float) -> None:
        """Leave it broken for a while."""
        await asyncio.sleep(self.random.uniform(least_seconds, most_seconds))

    def choose(self, *options: Any) -> Any:
        return self.random.choice(options)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong. `play` breaks it and puts it right again."""

    name: str
    play: Callable[[Stage], Awaitable[None]]
    impossible: Callable[[], str | None] = lambda: None
    """Why it can't be played on this machine, if so."""
