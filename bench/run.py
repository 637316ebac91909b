"""`make bench`: everything, side by side in one run on this machine; then docs/performance.md is written anew.

Sections run one after the other, each with servers and databases of its own. Within a section contestants take turns,
round by round. What is found out is kept in `bench/results.json`; a section that isn't run keeps what it had.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report, results
from bench.compare import alone, ceiling, clients, peers, reads, sandbox
from bench.generator import Generator
from bench.lasting import backlogs, history, profile
from bench.latency import open_loop
from bench.machine import describe
from bench.results import SECTIONS, Machine, Results
from bench.section import Run, Sizes
from bench.stage import allow_many_connections
from tcc.dev.servers import PostgresServer

MEASURE: Mapping[str, Callable[[Run], Any]] = {
    "ceiling": ceiling,
    "clients": clients,
    "peers": peers,
    "alone": alone,
    "sandbox": sandbox,
    "reads": reads,
    "openloop": open_loop,
    "backlogs": backlogs,
    "history": history,
    "profile": profile,
}
assert tuple(MEASURE) == SECTIONS

USUAL = Sizes()
QUICK = Sizes(rounds=1, seconds=0.5, history=20_000, tries=2_000, transactions=200, overload_seconds=2.0)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="This section; may be given several times.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=USUAL.rounds, show_default=True, help="Turns of each contestant."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.2), default=USUAL.seconds, show_default=True, help="Of each turn."
)
@click.option(
    "--history",
    "past",
    type=click.IntRange(min=10_000),
    default=USUAL.history,
    show_default=True,
    help="Past reservations; five million take 10 GB of disk.",
)
@click.option("--quick", is_flag=True, help="Only to see that it works: everything small, and nothing is kept.")
def main(only: tuple[str, ...], rounds: int, seconds: float, past: int, quick: bool) -> None:
    """Measure, and write docs/performance.md, the plots beside it, and README.md's table.

    A section that isn't measured keeps what it had, unless that is of another machine or of other versions. To have
    everything back as it was: git checkout README.md docs bench/results.json

    \b
    Examples:
      make bench ARGS="--only peers --rounds 5"
      make bench ARGS="--quick"
    """
    sizes = QUICK if quick else Sizes(rounds=rounds, seconds=seconds, history=past)
    console = Console()
    known = Results() if quick else results.load()
    allow_many_connections()
    started = time.perf_counter()
    failed = _measure(console, known, only or SECTIONS, sizes)
    if not quick:
        results.save(known)
        report.write(results.load())  # as it is kept, so that the pages can be held against it
    console.print(report.goals_table(known))
    console.print(f"Took {(time.perf_counter() - started) / 60:.1f} minutes.")
    if quick:
        console.print("Nothing was kept: such short turns say little.")
    if failed:
        console.print(f"Failed: {', '.join(failed)}.")
    sys.exit(1 if failed else 0)


def _measure(console: Console, known: Results, sections: tuple[str, ...], sizes: Sizes) -> list[str]:
    """Run sections, and put what they find out in `known`; those that failed."""
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="tcc-bench-") as folder,
        PostgresServer(Path(folder) / "pg") as postgres,
        Generator() as generator,
        Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
        ) as progress,
    ):
        task = progress.add_task("starting")
        for section in sections:
            run = Run(
                postgres,
                Path(folder),
                generator,
                sizes,
                lambda what, section=section: progress.update(task, description=f"{section}: {what}"),  # type: ignore[misc]
            )
            if section == sections[0] and _forgets(known, describe(run.stage())):
                console.print("What was measured on another machine, or with other versions, is forgotten.")
            run.tell("starting")
            began = time.perf_counter()
            try:
                setattr(known, section, MEASURE[section](run))
            except Exception:  # noqa: BLE001 - the other sections may well be measured
                console.print_exception()
                failed.append(section)
            console.print(f"{section}: {time.perf_counter() - began:.0f} s")
    return failed


def _forgets(known: Results, here: Machine) -> bool:
    """Forget what was found out on another machine, or with other versions. Whether there was any."""
    before = known.machine
    other = before is not None and _fixed(before) != _fixed(here)
    if other:
        for section in SECTIONS:
            setattr(known, section, None)
    known.machine = here
    return other


def _fixed(machine: Machine) -> tuple[object, ...]:
    return machine.cpu, machine.cores, machine.kernel, machine.python, machine.postgresql, machine.settings


if __name__ == "__main__":
    main()
