"""What every section of a run works with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.generator import Generator
from bench.machine import stamp
from bench.results import Stamp
from bench.stage import Stage
from bench.throughput import Course
from tcc.dev.servers import PostgresServer


class Sizes(msgspec.Struct, frozen=True):
    """How much of everything."""

    rounds: int = 3
    seconds: float = 1.25
    """Of each contestant's turn in a round."""
    history: int = 5_000_000
    tries: int = 100_000
    transactions: int = 10_000
    overload_seconds: float = 10.0
    """At twice the sustainable rate; half as long again at half of it."""


class Run(msgspec.Struct, frozen=True):
    """One run: its server, its load, and whom to tell how far it is."""

    postgres: PostgresServer
    folder: Path
    generator: Generator
    sizes: Sizes
    tell: Callable[[str], None]

    def stage(self) -> Stage:
        """An empty stage on the run's server."""
        return Stage(self.postgres, self.folder)

    def course(self, postgres: PostgresServer | None = None) -> Course:
        """To run contestants on, next to the run's server or another."""
        return Course(self.generator, (postgres or self.postgres).pid, self.sizes.seconds)

    def stamp(self) -> Stamp:
        """Of a section measured now."""
        return stamp(self.sizes.rounds, self.sizes.seconds)
