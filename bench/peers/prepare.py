"""An empty database made ready: the peers' tables, and full shelves."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import asyncpg

SCHEMA: Final = Path(__file__).with_name("schema.sql")
STOCK: Final = 1_000_000_000

_FILL: Final = """
INSERT INTO inventory_items (tenant_id, sku, location, on_hand, available)
SELECT 'default', 'SKU-' || n, 'default', $2, $2 FROM generate_series(0, $1 - 1) AS n
ON CONFLICT DO NOTHING"""


def dsn(url: str) -> str:
    """TCC_DATABASE_URL as libpq and asyncpg write it."""
    return url.replace("postgresql+asyncpg:", "postgresql:", 1)


async def prepare(url: str, skus: int) -> None:
    """Make the tables, and shelves `SKU-0` to `SKU-{skus - 1}`, where they aren't there yet."""
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute("SET client_min_messages = warning")
        await connection.execute(SCHEMA.read_text())
        await connection.execute(_FILL, skus, STOCK)
        await connection.execute("VACUUM ANALYZE inventory_items")
    finally:
        await connection.close()
