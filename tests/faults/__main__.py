"""`make faults`: break the product on purpose, and see that it loses nothing."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from tcc.logs import configure_logs
from tests.faults.breakages import FAULTS
from tests.faults.diary import Violation
from tests.faults.fleet import CannotRun
from tests.faults.report import table
from tests.faults.run import run
from tests.faults.scenarios import SCENARIOS

SHOWN: Final = 5
"""Violations of one kind that are shown."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=8.0, show_default=True, help="About how long; every fault is played at least once.")
@click.option("--seed", type=int, help="Decides the order of faults and what clients do; drawn if not given.")
@click.option(
    "--only", default="", help="Only the faults whose names have one of these words in them, comma-separated."
)
@click.option("--list", "listing", is_flag=True, help="List the faults, and do nothing.")
def main(minutes: float, seed: int | None, only: str, listing: bool) -> None:
    """Run the real processes under load, break them, and check the invariants during it and after.

    \b
    Examples:
      python -m tests.faults
      python -m tests.faults --minutes 30 --seed 7
      python -m tests.faults --minutes 1 --only 'killed,read-only'
    """
    words = [word.strip().lower() for word in only.split(",") if word.strip()]

    def chosen(name: str) -> bool:
        return not words or any(word in name.lower() for word in words)

    faults = [fault for fault in FAULTS if chosen(fault.name)]
    scenarios = [name for name in SCENARIOS if chosen(name)]
    if listing:
        for name in (*(fault.name for fault in faults), *scenarios):
            click.echo(name)
        return
    if not faults and not scenarios:
        raise click.UsageError(f"No fault has a name with {only!r} in it; --list shows them.")
    configure_logs("console", "error")  # of the service in this process, which the model is played against
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    data = Path(tempfile.mkdtemp(prefix="tcc-faults-"))
    click.echo(f"seed {seed}; logs are under {data}")
    try:
        outcome = asyncio.run(
            run(faults, data=data, seed=seed, seconds=minutes * 60, say=click.echo, scenarios=scenarios)
        )
    except CannotRun as error:
        click.echo(f"faults: {error}", err=True)
        sys.exit(2)
    click.echo(f"\n{table(outcome.rows)}\n")
    click.echo(
        f"seed {seed}: {outcome.intents} intents in {outcome.seconds:.0f} s, {outcome.requests} requests; "
        f"{outcome.acknowledged} acknowledged, {outcome.unknown} unknown to their clients; "
        f"{outcome.deadlocks} deadlocks ended by PostgreSQL and tried again; {len(outcome.violations)} violations"
    )
    for line in (*_summary(outcome.violations), *(f"this run proves nothing: {why}" for why in outcome.empty)):
        click.echo(line)
    if outcome.good:
        shutil.rmtree(data, ignore_errors=True)
    else:
        click.echo(f"logs are kept under {data}")
    sys.exit(0 if outcome.good else 1)


def _summary(violations: Sequence[Violation]) -> Iterator[str]:
    """The first few of each kind, and how many there are of it."""
    kinds: dict[str, list[Violation]] = {}
    for violation in violations:
        kinds.setdefault(violation.invariant, []).append(violation)
    for kind, found in kinds.items():
        yield from map(str, found[:SHOWN])
        if len(found) > SHOWN:
            yield f"           {kind}: {len(found)} in all"


if __name__ == "__main__":
    main()
