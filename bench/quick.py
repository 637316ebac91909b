"""`make bench-quick`: throughput as a ratio to a no-op endpoint of the same framework, in under a minute.

One run, one machine, rounds interleaved, medians. PostgreSQL is embedded, with fsync and synchronous_commit on; the
card gateway answers in the API's process (`instant:`), so that an order measures us and not a gateway. Clients, API
and PostgreSQL share the machine's cores. `make bench` measures far more.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from bench.generator import Generator
from bench.results import Line, ratio, spread
from bench.stage import Stage, memory_megabytes
from bench.tables import show
from bench.throughput import Course, race
from bench.workloads import HOT, SPREAD, hold, noop, order
from tcc.dev.servers import PostgresServer

NOOP = "no-op"


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.2), default=1.5, show_default=True, help="Of each round.")
@click.option("--clients", type=click.IntRange(min=1), default=64, show_default=True)
def main(rounds: int, seconds: float, clients: int) -> None:
    """Measure, and print a table.

    \b
    Example:
      python -m bench.quick --rounds 5
    """
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="tcc-bench-") as folder,
        PostgresServer(Path(folder) / "pg") as postgres,
        Generator() as generator,
        Stage(postgres, Path(folder)) as stage,
    ):
        api, nothing = stage.api(stage.database("tcc")), stage.noop()
        idle = memory_megabytes(api)
        course = Course(generator, postgres.pid, seconds)
        course.warm(order(SPREAD), [api])
        contestants = [
            course.http(NOOP, noop(), [nothing], clients),
            course.http("Try, one hot SKU", hold(HOT), [api], clients),
            course.http("Try, 1,000 SKUs", hold(SPREAD), [api], clients),
            course.http("order, one hot SKU", order(HOT), [api], clients),
            course.http("order, 1,000 SKUs", order(SPREAD), [api], clients),
        ]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=rounds * len(contestants))
            lines = race(contestants, rounds, lambda what: progress.update(task, advance=1, description=what))
    title = f"{clients} clients, 1 API process, median of {rounds} rounds of {seconds:g} s"
    show(console, title, HEADINGS, [_row(name, line, lines[NOOP]) for name, line in lines.items()])
    console.print(f"An idle API process: {idle:.0f} MB.")


HEADINGS = ("workload", "per second", "range", "to no-op", "p50 ms", "p99 ms", "CPU ms", "not 2xx")


def _row(name: str, line: Line, ceiling: Line) -> tuple[str, ...]:
    rate = spread(line.per_second)
    return (
        name,
        f"{rate.median:,.0f}",
        f"{rate.low:,.0f} to {rate.high:,.0f}",
        f"{ratio(line, ceiling).median:.2f}",
        f"{spread(line.p50_ms).median:.1f}",
        f"{spread(line.p99_ms).median:.1f}",
        f"{spread(line.service_cpu_ms).median:.2f} + {spread(line.postgres_cpu_ms).median:.2f}",
        str(line.not_good),
    )


if __name__ == "__main__":
    sys.exit(main())
