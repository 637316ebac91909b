"""What a request has left behind, counted and read in the databases themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from tcc.service import Service

TABLES = ("reservations", "transactions", "idempotency_keys", "journal", "orders", "payments")


async def rows(service: Service, query: str, **parameters: Any) -> list[Any]:
    """The rows of a query in the coordinator's database."""
    return await service.stores.home.database.read(text(query), parameters)


async def count(service: Service, table: str) -> int:
    """How many rows a table has."""
    return int((await rows(service, f"SELECT count(*) FROM {table}"))[0][0])


async def footprint(service: Service) -> dict[str, Any]:
    """How many rows there are of everything, and all the stock."""
    found: dict[str, Any] = {table: await count(service, table) for table in TABLES}
    stock = await rows(service, "SELECT * FROM inventory_items ORDER BY tenant_id, sku, location")
    return found | {"stock": [tuple(row) for row in stock]}


async def eventually(looked_for: Callable[[], Any], seconds: float = 10) -> Any:
    """What an async look finds, as soon as it finds something."""
    until = time.monotonic() + seconds
    while not (found := await looked_for()):
        assert time.monotonic() < until, "It never came."
        await asyncio.sleep(0.02)
    return found
