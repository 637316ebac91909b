"""Whether the process lives, whether it can do its work, and what Prometheus is told."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text

from tcc.batch import Batcher
from tcc.http.draining import Draining
from tcc.http.openapi import operation
from tcc.machine import OPEN, State
from tcc.schema import SchemaMismatch, check_schema
from tcc.service import Service

_OPEN_TRANSACTIONS = text(
    """
SELECT state, count(*) AS number, count(attention) AS attention,
  COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS age,
  COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(decided_at)), 0)::float8 AS undriven,
  COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(due_at)), 0)::float8 AS overdue
FROM transactions WHERE due_at IS NOT NULL OR attention IS NOT NULL GROUP BY state"""
)
_DUE_RESERVATIONS = text(
    """
SELECT (SELECT count(*) FROM reservations WHERE attention IS NOT NULL) AS attention,
  COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(due_at)), 0)::float8 AS overdue
FROM reservations WHERE due_at IS NOT NULL"""
)
READY_SECONDS = 5


class Ready(msgspec.Struct, frozen=True):
    """Whether it should be sent requests: not while it is `draining`, about to stop, when it looks at no database."""

    ready: bool
    databases: dict[str, str]
    """Whether each can be reached and has the right schema: `ok`, or what is wrong."""
    draining: bool = False


async def refresh(service: Service) -> None:
    """Read from the databases what the gauges show. One that is away leaves its gauges as they were."""
    metrics = service.metrics
    home = service.stores.home.database
    rows = await home.read(_OPEN_TRANSACTIONS)
    for state in OPEN:
        metrics.open_transactions.labels(state).set(0)
    undecided = [row.age for row in rows if row.state in (State.TRYING, State.TRIED)]
    undriven = [row.undriven for row in rows if row.state in (State.CONFIRMING, State.CANCELLING)]
    for row in rows:
        metrics.open_transactions.labels(row.state).set(row.number)
    metrics.attention.labels("transaction").set(sum(row.attention for row in rows))
    metrics.oldest_undecided.set(max(undecided, default=0))
    metrics.oldest_undriven.set(max(undriven, default=0))
    overdue = [row.overdue for row in rows]
    attention = 0
    for batcher, _ in service.stores.distinct():
        (row,) = await batcher.database.read(_DUE_RESERVATIONS)
        overdue.append(row.overdue)
        attention += row.attention
    metrics.attention.labels("reservation").set(attention)
    metrics.overdue.set(max(0, *overdue))


def health_handlers(service: Service, draining: Draining) -> list[Any]:
    """Litestar handlers for probes and scrapes."""

    @get(
        "/healthz",
        summary="Is the process alive?",
        tags=["health"],
        operation_class=operation(replies={200: ("It is.", None)}),
    )
    async def healthz() -> Response[bytes]:
        return Response(b'{"alive":true}', media_type="application/json")

    @get(
        "/readyz",
        summary="Can it do its work?",
        tags=["health"],
        operation_class=operation(replies={200: ("It can.", Ready), 503: ("It can't.", Ready)}),
    )
    async def readyz() -> Response[bytes]:
        if draining.begun:
            return _ready(Ready(ready=False, databases={}, draining=True))
        known = list(service.stores.resources.values())

        async def look(batcher: Batcher, resources: Any) -> tuple[str, str]:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await check_schema(batcher.database, resources, known, newer_will_do=True)
            except SchemaMismatch as error:
                return batcher.database.name, str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is: not ready, and this is why
                return batcher.database.name, f"can't be reached: {type(error).__name__}"
            return batcher.database.name, "ok"

        found = dict(await asyncio.gather(*(look(b, r) for b, r in service.stores.distinct())))
        ready = all(state == "ok" for state in found.values())
        return _ready(Ready(ready, found))

    @get(
        "/metrics",
        summary="For Prometheus",
        tags=["health"],
        operation_class=operation(replies={200: ("Metrics.", None)}),
    )
    async def metrics() -> Response[bytes]:
        try:
            async with asyncio.timeout(READY_SECONDS):
                await refresh(service)
        except Exception:  # noqa: BLE001 - a scrape must not fail because a database does: the counters still tell
            service.metrics.scrape_failures.inc()
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return [healthz, readyz, metrics]


def _ready(ready: Ready) -> Response[bytes]:
    status = 200 if ready.ready else 503
    return Response(msgspec.json.encode(ready), status_code=status, media_type="application/json")
