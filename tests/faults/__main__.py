"""`make faults`: break the product on purpose, and see that it loses nothing."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
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
from tests.faults.stage import Fault

SHOWN: Final = 5
"""Violations of one kind that are shown."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=8.0,
    show_default=True,
    help="How long to play; every fault is played once, however long that takes (about 10 minutes for all).",
)
@click.option("--seed", type=int, help="Decides the order of faults and what clients do; drawn if not given.")
@click.option(
    "--only", default="", help="Only the faults whose names have one of these words in them, comma-separated."
)
@click.option("--list", "listing", is_flag=True, help="List the faults, and do nothing.")
def main(minutes: float, seed: int | None, only: str, listing: bool) -> None:
    """Run the real processes under load, break them, and check the invariants during it and after.

    Exit code 0: no promise was broken; 1: one was, or the run proves nothing; 2: it can't run. All it keeps is under
    one temporary directory, which it names; logs are left there unless all is well.

    \b
    Examples:
      make faults
      make faults MINUTES=30 SEED=7
      make faults MINUTES=0 ARGS="--only 'killed,read-only'"      each of these once
    """
    faults, scenarios = _chosen([word.strip().lower() for word in only.split(",") if word.strip()])
    if listing:
        for fault in faults:
            click.echo(fault.name + (f" (not here: {why})" if (why := fault.impossible()) else ""))
        for name in scenarios:
            click.echo(name)
        return
    configure_logs("console", "error")  # of the service in this process, which the model is played against
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    data = Path(tempfile.mkdtemp(prefix="tcc-faults-"))
    click.echo(f"seed {seed}; logs are under {data}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # nothing is to be left behind
    try:
        outcome = asyncio.run(
            run(faults, data=data, seed=seed, seconds=minutes * 60, say=click.echo, scenarios=scenarios)
        )
    except CannotRun as error:
        click.echo(f"faults: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(f"stopped, and no verdict; logs are kept under {data}", err=True)
        sys.exit(1)
    finally:
        _keep_logs(data)
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


def _chosen(words: Sequence[str]) -> tuple[Sequence[Fault], Sequence[str]]:
    """The faults and the scenarios with one of the words in their names; all of them where there is no word."""
    names = [*(fault.name for fault in FAULTS), *SCENARIOS]
    for word in words:
        if not any(word in name.lower() for name in names):
            raise click.UsageError(f"No fault has a name with {word!r} in it; --list shows them.")
    chosen = {name for name in names if not words or any(word in name.lower() for word in words)}
    return [fault for fault in FAULTS if fault.name in chosen], [name for name in SCENARIOS if name in chosen]


def _keep_logs(data: Path) -> None:
    """What was only needed while it ran, databases above all, is removed."""
    for kept in data.glob("**/*"):
        if kept.is_file() and kept.suffix != ".log":
            kept.unlink(missing_ok=True)


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
