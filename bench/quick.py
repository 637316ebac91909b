"""`make bench-quick`: throughput as a ratio to a no-op endpoint of the same framework, in under a minute.

One run, one machine, rounds interleaved, medians. PostgreSQL is embedded, with fsync and synchronous_commit on; the
card gateway answers in the API's process (`instant:`), so that an order measures us and not a gateway. Clients, API
and PostgreSQL share the machine's cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import Load, Measured, measure
from tcc.dev.patience import wait_until
from tcc.dev.programs import LOOPBACK, free_port
from tcc.dev.servers import PostgresServer

ROUNDS = 3
SECONDS = 1.5
SKUS = 1000
STOCK = 1_000_000_000

TRY = '{"lines":[{"sku":"{sku}","quantity":1}]}'
ORDER = (
    '{"confirm":"auto","branches":['
    '{"resource":"inventory","claim":{"lines":[{"sku":"{sku}","quantity":1}]}},'
    '{"resource":"payments","claim":{"amount":1250,"currency":"EUR","payment_method":"tok_ok"}},'
    '{"resource":"orders","claim":{"customer":"ada","currency":"EUR",'
    '"lines":[{"sku":"{sku}","quantity":1,"unit_amount":1250}]}}]}'
)
LOADS = {
    "no-op": Load("/noop", TRY, seconds=SECONDS),
    "Try, one hot SKU": Load("/v1/inventory/reservations", TRY, seconds=SECONDS),
    "Try, 1,000 SKUs": Load("/v1/inventory/reservations", TRY, skus=SKUS, seconds=SECONDS),
    "order, one hot SKU": Load("/v1/transactions", ORDER, seconds=SECONDS),
    "order, 1,000 SKUs": Load("/v1/transactions", ORDER, skus=SKUS, seconds=SECONDS),
}


def main() -> int:
    """Measure, and print a table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tcc-bench-") as folder, PostgresServer(Path(folder) / "pg") as postgres:
        environment = {
            **os.environ,
            "TCC_DATABASE_URL": postgres.url(),
            "TCC_GATEWAY_URL": "instant:",
            "TCC_LOG_FORMAT": "json",
            "TCC_DRAIN_SECONDS": "0",
        }
        postgres.create_database()
        tcc = Path(sys.executable).with_name("tcc")
        subprocess.run([tcc, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        with (
            _process([tcc, "serve", "--port"], environment, "/readyz") as (api, pid),
            _process([sys.executable, "-m", "bench.noop"], environment, "/noop") as (noop, _),
        ):
            idle = psutil.Process(pid).memory_info().rss / 1e6
            for number in range(SKUS):
                _put(f"http://{LOOPBACK}:{api}/v1/inventory/items/SKU-{number}", {"on_hand": STOCK})
            measured: dict[str, list[Measured]] = {name: [] for name in LOADS}
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("measuring", total=ROUNDS * len(LOADS))
                for _ in range(ROUNDS):
                    for name, load in LOADS.items():
                        measured[name].append(measure(LOOPBACK, noop if name == "no-op" else api, load))
                        progress.advance(task)
    console.print(_table(measured))
    console.print(f"An idle API process: {idle:.0f} MB.")
    return 0


def _table(measured: dict[str, list[Measured]]) -> Table:
    ceiling = statistics.median(one.per_second for one in measured["no-op"])
    clients = LOADS["no-op"].clients
    table = Table(title=f"{clients} clients, 1 API process, median of {ROUNDS} rounds of {SECONDS:g} s")
    for heading in ("workload", "per second", "range", "ratio to no-op", "p50 ms", "p99 ms", "not 2xx"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for name, rounds in measured.items():
        rates = [one.per_second for one in rounds]
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{statistics.median(rates) / ceiling:.2f}",
            f"{statistics.median(one.p50_ms for one in rounds):.1f}",
            f"{statistics.median(one.p99_ms for one in rounds):.1f}",
            str(sum(count for one in rounds for status, count in one.statuses.items() if status >= 300)),
        )
    return table


@contextmanager
def _process(command: list[Any], environment: dict[str, str], path: str) -> Iterator[tuple[int, int]]:
    """A server on a free port: its port and its process id."""
    port = free_port()
    process = subprocess.Popen([*command, str(port)], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(_answers(f"http://{LOOPBACK}:{port}{path}"), within=30)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 405
        except OSError:
            return False

    return answers


def _put(url: str, body: dict[str, int]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, method="PUT", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=10):
        pass


if __name__ == "__main__":
    sys.exit(main())
