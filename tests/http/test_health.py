"""Probes and scrapes: alive, ready or why not, and what Prometheus is told."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from tcc.service import Service
from tests.client import Api
from tests.http.samples import SKU


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_process_that_can_work_is_alive_and_ready(api: Api) -> None:
    assert (await api.get("/healthz")).json == {"alive": True}
    ready = await api.get("/readyz")
    assert (ready.status, ready.json["ready"], set(ready.json["databases"].values())) == (200, True, {"ok"})


async def test_a_process_whose_database_is_away_is_alive_but_not_ready(
    start_service: Callable[..., Service], serve: Callable[[Service], Awaitable[Api]]
) -> None:
    away = f"postgresql://nobody:a-password@127.0.0.1:{closed_port()}/nowhere"
    api = await serve(start_service(TCC_INVENTORY_DATABASE_URL=away))
    assert (await api.get("/healthz")).status == 200
    ready = await api.get("/readyz")
    assert (ready.status, ready.json["ready"]) == (503, False)
    (why,) = [state for state in ready.json["databases"].values() if state != "ok"]
    assert "can't be reached" in why
    assert b"a-password" not in ready.body
    assert (await api.get("/metrics")).status == 200, "counters are told whatever is away"
    item = await api.get(f"/v1/inventory/items/{SKU}")
    assert (item.status, item.json["retryable"]) == (503, True)
    assert int(item.headers["retry-after"]) >= 1
    assert b"a-password" not in item.body


async def test_metrics_count_what_was_tried_and_what_is_open(api: Api) -> None:
    await api.stock(SKU, 5)
    await api.order(SKU)
    await api.order(SKU, confirm="manual")
    await api.hold(SKU, 6)
    told = await api.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    lines = told.body.decode().splitlines()
    assert any(line.startswith("tcc_") and 'resource="inventory"' in line for line in lines)
    assert any(line.startswith("tcc_") and 'state="tried"' in line and line.endswith(" 1.0") for line in lines)
