"""`make bench-expiry`: how long 100,000 abandoned tries take to be given back by one worker, while the API serves."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.progress import Progress

from bench.backlogs import LONGEST_SECONDS, abandoned, work_off
from bench.generator import Generator
from bench.openloop import OpenLoad, Phase, summary
from bench.stage import Stage
from bench.workloads import SKUS, SPREAD, hold
from tcc.dev.servers import PostgresServer


@click.command()
@click.option("--tries", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--skus", type=click.IntRange(min=1), default=SKUS, show_default=True, help="The units that they are on.")
@click.option(
    "--serving",
    type=click.FloatRange(min=1),
    default=200.0,
    show_default=True,
    help="Tries a second that the API is sent meanwhile.",
)
def main(tries: int, skus: int, serving: float) -> None:
    """Measure, and say it in a line.

    \b
    Example:
      python -m bench.expiry --skus 1
    """
    with (
        tempfile.TemporaryDirectory(prefix="tcc-bench-") as folder,
        PostgresServer(Path(folder) / "pg") as postgres,
        Generator() as generator,
        Stage(postgres, Path(folder)) as stage,
        Progress(transient=True) as progress,
    ):
        url = stage.database("tcc")
        backlog = abandoned(stage, url, tries, skus)
        load = OpenLoad(hold(SPREAD), (stage.api(url).port,), (Phase(serving, LONGEST_SECONDS),))
        task = progress.add_task("giving back", total=tries)
        seconds = work_off(
            stage,
            url,
            backlog,
            "reservations",
            begin=lambda: generator.begin(load),
            tell=lambda left: progress.update(task, completed=tries - left),
        )
        served = summary(generator.end()[0])
    click.echo(
        f"{tries:,} abandoned tries on {skus:,} SKUs given back in {seconds:.1f} s ({tries / seconds:,.0f}/s); "
        f"meanwhile {served.good:,} of {served.offered:,} Tries were served, p99 {served.p99_ms:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
