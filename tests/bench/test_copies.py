"""Copies of what the service wrote are, to the service, its own: complete, and adding up."""

from __future__ import annotations

import asyncio

import asyncpg

from bench import history
from bench.stage import Server, asyncpg_url
from tcc.checks import findings
from tcc.service import Service
from tests.client import Api

COPIES = 4


async def test_a_past_that_is_made_of_copies_reads_as_one_that_happened(
    api: Api, service: Service, database_url: str
) -> None:
    for number in range(history.SINGLES):
        assert (await api.stock(f"SKU-{number}", 100)).status == 200
    past = await asyncio.to_thread(history.live, Server(int(api.url.rpartition(":")[2]), 0))
    reservations = COPIES * (len(past.branches) + history.SINGLES)
    told: list[tuple[int, int]] = []
    await asyncio.to_thread(history.fill, database_url, past, reservations, lambda done, of: told.append((done, of)))
    assert told == [(COPIES, COPIES)]

    page = (await api.get("/v1/transactions")).json["items"]
    assert len(page) == COPIES + 1
    assert len({branch["id"] for shown in page for branch in shown["branches"]}) == 3 * (COPIES + 1)
    logs = []
    for shown in page:
        assert (shown["state"], [branch["state"] for branch in shown["branches"]]) == ("confirmed", ["confirmed"] * 3)
        entries = (await api.get(f"/v1/transactions/{shown['id']}/log")).json["entries"]
        logs.append([(entry["subject"], entry["event"]) for entry in entries])
    assert all(log == logs[0] for log in logs)
    assert [shown["created_at"] for shown in page] == sorted((shown["created_at"] for shown in page), reverse=True)

    checks = findings(service, tenant_id="default", recent=1000, reconcile=False)
    assert [finding async for _, found in checks for finding in found] == []
    connection = await asyncpg.connect(asyncpg_url(database_url))
    assert await connection.fetchval("SELECT count(*) FROM reservations") == reservations + 3 + history.SINGLES
    await connection.close()
