"""Workers as processes: woken early, deaf without Redis but never idle, and gone in bounded time when told."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arq.constants import job_key_prefix
from redis.asyncio import Redis
from sqlalchemy import text

from resources.payments.gateways import open_gateway
from tcc.dev.servers import ValkeyServer
from tcc.ids import new_id
from tcc.machine import State
from tcc.service import Service
from tcc.wakeups import QUEUE, Wakeups
from tests.client import whole_order
from tests.conftest import OpenService
from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import (
    CONTEXT,
    TENANT,
    begin,
    broken,
    effects_at_the_gateway,
    eventually,
    hold,
    in_both_layouts,
    payment_of,
    put_stock,
    shelf,
    states,
    stock,
)
from tests.workers.processes import running_worker
from workers.run import WorkerProcess

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
"""Debian's; it gives a process a clock of its own."""

SELDOM = "3600"
"""A sweep interval for tests in which no sweep may help."""

TAKEN_UP = text("SELECT id FROM transactions WHERE due_at > created_at + interval '0.9 seconds'")
"""Those whose first lease (half a second) is over, and that a worker has taken for another."""


@pytest.fixture
def own_valkey(tmp_path: Path, environment: dict[str, str]) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to be killed; the services and workers of the test use it."""
    with ValkeyServer(tmp_path / "valkey") as server:
        environment["TCC_REDIS_URL"] = server.url
        yield server


async def job_of(redis: Redis) -> bytes | None:
    """The body of a job that waits, whichever it is."""
    for key in await redis.keys(f"{job_key_prefix}*"):
        body: bytes | None = await redis.get(key)
        return body
    return None


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
async def test_a_worker_whose_clock_is_two_hours_ahead_reconciles_what_changed_lately(
    own_sandbox: SandboxProcess, environment: dict[str, str]
) -> None:
    reference = str(new_id())
    gateway = open_gateway(own_sandbox.url)
    await gateway.authorise(reference=reference, amount=500, currency="EUR", payment_method="tok_ok", key="unknown")
    await gateway.aclose()
    ahead = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+2h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    async with running_worker(environment | ahead | {"TCC_RECONCILE_INTERVAL_SECONDS": "0.5"}) as worker:
        await eventually(lambda: worker.says("worker_started"))
        await eventually(lambda: worker.says(reference))


async def test_a_wakeup_drives_a_transaction_long_before_a_sweep_would(
    own_valkey: ValkeyServer, start_service: OpenService, sandbox: SandboxProcess
) -> None:
    api = start_service(TCC_LEASE_SECONDS=SELDOM)
    worker = WorkerProcess(start_service(TCC_SWEEP_INTERVAL_SECONDS=SELDOM, TCC_LEASE_SECONDS=SELDOM))
    working = asyncio.create_task(worker.work())
    await put_stock(api, "MUG", 1)
    transaction = await begin(api, whole_order("MUG", "tok_500_after_success"))
    transaction = await api.coordinator.drive(CONTEXT, transaction)
    assert transaction.view.state is State.TRYING

    async def confirmed() -> bool:
        return (await states(api, transaction.view.id))[0] is State.CONFIRMED

    await eventually(confirmed, within=10)
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "capture"]
    worker.stop()
    async with asyncio.timeout(5):
        await working


async def test_jobs_carry_ids_only_in_json(own_valkey: ValkeyServer, service: Service) -> None:
    transaction = await begin(service, whole_order("MUG")[2:], confirm="manual")
    wakeups = Wakeups(own_valkey.url)
    redis = Redis.from_url(own_valkey.url)
    wakeups.transaction(TENANT, transaction.view.id, 30)
    body = await eventually(lambda: job_of(redis))
    assert body is not None
    job = msgspec.json.decode(body)
    assert (job["f"], job["a"]) == ("drive_transaction", [TENANT, str(transaction.view.id)])
    await wakeups.close()
    await redis.aclose()


async def test_a_pickle_in_the_queue_runs_nothing_and_does_not_stop_the_worker(
    own_valkey: ValkeyServer, start_service: OpenService, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    redis = Redis.from_url(own_valkey.url)
    await redis.set(f"{job_key_prefix}evil", pickle.dumps(Evil()))
    await redis.zadd(QUEUE, {"evil": 1})
    worker = WorkerProcess(start_service())
    working = asyncio.create_task(worker.work())

    async def taken() -> bool:
        return bool(await redis.zcard(QUEUE) == 0)

    await eventually(taken)
    assert not (tmp_path / "owned").exists()
    assert not working.done()
    worker.stop()
    await working
    await redis.aclose()


async def test_a_worker_survives_the_loss_of_redis_goes_on_sweeping_and_listens_again_afterwards(
    own_valkey: ValkeyServer, environment: dict[str, str], start_service: OpenService
) -> None:
    service = start_service(TCC_LEASE_SECONDS=SELDOM)
    await put_stock(service, "MUG", 3)
    async with running_worker(environment) as worker:
        await eventually(lambda: worker.says("worker_started"))
        await asyncio.to_thread(own_valkey.stop)
        await eventually(lambda: worker.says("wakeups_lost"))
        await hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.1)

        async def given_back() -> bool:
            return await shelf(service, "MUG") == (3, 0, 0)

        await eventually(given_back)
        await asyncio.to_thread(own_valkey.start)
        await eventually(lambda: worker.says("wakeups_resumed"))
        assert worker.said.count("wakeups_lost") == 1

        transaction = await begin(service, whole_order("MUG", "tok_500_after_success"))
        await service.coordinator.drive(CONTEXT, transaction)

        async def confirmed() -> bool:
            return (await states(service, transaction.view.id))[0] is State.CONFIRMED

        await eventually(confirmed)
        assert await worker.stop(within=10) == 0
        assert "Traceback" not in worker.said


async def test_a_worker_runs_without_any_redis_and_stops_in_bounded_time(
    environment: dict[str, str], service: Service
) -> None:
    await put_stock(service, "MUG", 1)
    await hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.05)
    async with running_worker(environment | {"TCC_REDIS_URL": "redis://127.0.0.1:9/0"}) as worker:

        async def given_back() -> bool:
            return await shelf(service, "MUG") == (1, 0, 0)

        await eventually(given_back)
        assert await worker.stop(within=10) == 0
        assert "worker_stopped" in worker.said


@in_both_layouts
async def test_a_worker_told_to_stop_finishes_what_it_is_doing(
    environment: dict[str, str], service: Service, sandbox: SandboxProcess
) -> None:
    await put_stock(service, "MUG", 8)
    begun = [await begin(service, whole_order("MUG", "tok_slow"), ttl_seconds=30) for _ in range(8)]

    async def taken_up() -> bool:
        return bool(await service.stores.home.database.read(TAKEN_UP))

    async with running_worker(environment) as worker:
        await eventually(taken_up)
        code = await worker.stop(within=15)
    assert code == 0
    assert "cut_off=0" in worker.said
    for transaction in begun:
        state, _ = await states(service, transaction.view.id)
        if state is State.CONFIRMED:
            assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "capture"]
    assert State.CONFIRMED in [(await states(service, transaction.view.id))[0] for transaction in begun]
    assert await broken(service) == []


async def test_work_that_does_not_end_is_cut_off_and_taken_up_by_the_next_worker(
    start_service: OpenService, sandbox: SandboxProcess
) -> None:
    service = start_service()
    await put_stock(service, "MUG", 1)
    transaction = await begin(service, whole_order("MUG", "tok_slow"), ttl_seconds=30)
    dying = WorkerProcess(start_service(), finish_seconds=0.1)
    working = asyncio.create_task(dying.work())

    async def recorded() -> bool:
        return (await states(service, transaction.view.id))[1][1] is State.TRYING

    await eventually(recorded)
    dying.stop()
    async with asyncio.timeout(2):
        await working
    next_one = WorkerProcess(start_service())
    working = asyncio.create_task(next_one.work())

    async def confirmed() -> bool:
        return (await states(service, transaction.view.id))[0] is State.CONFIRMED

    await eventually(confirmed)
    next_one.stop()
    await working
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "capture"]
