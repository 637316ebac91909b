"""`make bench-expiry`: how long 100,000 abandoned tries take to be given back, by one worker's sweeps."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.progress import Progress
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc.db import Database
from tcc.dev.servers import PostgresServer
from tcc.logs import configure_logs
from tcc.schema import migrate
from tcc.service import open_service
from tcc.settings import Settings
from tcc.sweeps import Sweeper
from workers.cli import BATCH_SIZE

_ABANDONED = text(
    """
INSERT INTO reservations (tenant_id, resource, id, state, claim, expires_at, due_at, created_at, updated_at,
  correlation_id)
SELECT 'default', 'inventory', uuidv7(), 'tried',
  jsonb_build_object('lines', jsonb_build_array(jsonb_build_object('sku', 'SKU-' || n % :skus, 'quantity', 1))),
  now(), now(), now(), now(), 'bench'
FROM generate_series(1, :tries) AS n"""
)
_SHELVES = text(
    """
INSERT INTO inventory_items (tenant_id, sku, location, on_hand, available, held)
SELECT 'default', 'SKU-' || n, 'default', :each + 10, 10, :each FROM generate_series(0, :skus - 1) AS n"""
)
_HELD = text("SELECT sum(held) AS held FROM inventory_items")


async def measure(url: str, tries: int, skus: int, batch_size: int) -> float:
    """Seconds from the first sweep to the last try given back. Raises AssertionError if stock is still held."""
    environment = os.environ | {"TCC_DATABASE_URL": url, "TCC_GATEWAY_URL": "instant:"}
    database = Database(url)
    await migrate(database, RESOURCES, RESOURCES)
    async with database.reads.begin() as connection:
        await connection.execute(_ABANDONED, {"tries": tries, "skus": skus})
        await connection.execute(_SHELVES, {"skus": skus, "each": tries // skus})
    settings = Settings.from_environment(environment)
    configure_logs("json", "error")
    service = open_service(settings, RESOURCES, environment, application="tcc-bench", batch_size=batch_size)
    sweeper = Sweeper(service, "bench")
    started = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("giving back", total=tries)
        while done := await sweeper.reservations(settings.sweep_size):
            progress.advance(task, done)
    elapsed = time.perf_counter() - started
    (row,) = await database.read(_HELD)
    assert row.held == 0, f"{row.held} units are still held"
    await service.close()
    await database.close()
    return elapsed


@click.command()
@click.option("--tries", default=100_000, show_default=True)
@click.option("--skus", default=1000, show_default=True)
@click.option("--batch-size", default=BATCH_SIZE, show_default=True)
def main(tries: int, skus: int, batch_size: int) -> None:
    """Measure, and say it in a line.

    \b
    Example:
      python -m bench.expiry --skus 1
    """
    with tempfile.TemporaryDirectory(prefix="tcc-bench-") as folder, PostgresServer(Path(folder) / "pg") as postgres:
        postgres.create_database()
        elapsed = asyncio.run(measure(postgres.url(), tries, skus, batch_size))
    click.echo(f"{tries:,} abandoned tries on {skus:,} SKUs given back in {elapsed:.1f} s ({tries / elapsed:,.0f}/s)")


if __name__ == "__main__":
    sys.exit(main())
