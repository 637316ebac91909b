"""A server that doesn't answer: nobody waits for long, and whoever is refused is told the truth."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from uuid import UUID

import psutil
import pytest
import pytest_asyncio
from asyncpg import InterfaceError
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from tcc import batch
from tcc.commands import DONE
from tcc.db import Database
from tcc.dev.servers import PostgresServer
from tcc.errors import OutcomeUnknown, Overloaded
from tcc.ids import new_id
from tcc.machine import Event, Reason, State
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import serving
from tests.conftest import OpenService, new_database
from tests.gateways.process import SandboxProcess
from tests.http.records import rows
from tests.recovery.scenes import (
    CONTEXT,
    broken,
    card,
    eventually,
    hold,
    in_three_databases,
    put_stock,
    raw,
    shelf,
    somebody_waits,
    stock,
    swept_to_the_end,
)

AT_ONCE = 5
"""Seconds; to wait for a frozen server takes three times as long."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that refuse after a moment what they don't come to."""
    monkeypatch.setattr(batch, "WAIT_SECONDS", 0.3)


def lost(service: Service) -> float:
    """How many attempts at a batch were lost."""
    return service.metrics.registry.get_sample_value("tcc_batch_failures_total", {"failure": "lost"}) or 0.0


@pytest.mark.usefixtures("impatient")
async def test_what_waits_too_long_for_stuck_runners_is_refused_and_none_of_it_is_done(
    start_service: OpenService, database_url: str
) -> None:
    service = start_service(TCC_BATCH_SIZE="1")
    await put_stock(service, "MUG", 100)
    async with raw(database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM inventory_items FOR UPDATE")
            taken = [asyncio.create_task(hold(service, "inventory", stock(("MUG", 1)))) for _ in range(2)]
            await eventually(lambda: somebody_waits(holder))
            for _ in range(2):  # the second time from an empty queue
                waiting = [hold(service, "inventory", stock(("MUG", 1))) for _ in range(3)]
                refused = await asyncio.gather(*waiting, return_exceptions=True)
                assert [type(error) for error in refused] == [Overloaded] * 3
        assert {outcome.code for outcome in await asyncio.gather(*taken)} == {DONE}
    assert (await hold(service, "inventory", stock(("MUG", 1)))).code == DONE
    assert await shelf(service, "MUG") == (97, 3, 0)


async def test_a_batch_that_waits_for_a_lock_holds_up_nobody_else(service: Service, database_url: str) -> None:
    for sku in ("MUG", "PEN"):
        await put_stock(service, sku, 10)
    async with raw(database_url) as holder, holder.transaction():
        await holder.execute("SELECT FROM inventory_items WHERE sku = 'MUG' FOR UPDATE")
        stuck = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
        await eventually(lambda: somebody_waits(holder))
        assert [(await hold(service, "inventory", stock(("PEN", 1)))).code for _ in range(3)] == [DONE] * 3
        assert not stuck.done()
    assert (await stuck).code == DONE


@pytest.mark.usefixtures("impatient")
async def test_a_sweep_leaves_what_is_refused_to_the_next_one(
    start_service: OpenService, database_url: str, sandbox: SandboxProcess
) -> None:
    service = start_service(TCC_BATCH_SIZE="1")
    for _ in range(4):
        await hold(service, "payments", card(), ttl_seconds=0.01)
    sweeper = Sweeper(service, "worker")
    with capture_logs() as logged:

        async def refused() -> bool:
            return [line["refused"] for line in logged if line["event"] == "waited_too_long"] == [2]

        async with raw(database_url) as holder:
            async with holder.transaction():
                await holder.execute("SELECT FROM payments FOR UPDATE")
                sweep = asyncio.create_task(sweeper.reservations(10))
                await eventually(refused)
            assert await sweep == 4
    assert [line["code"] for line in logged if line["event"] == "left_for_later"] == ["overloaded"] * 2
    assert {line["event"] for line in logged} == {"left_for_later", "waited_too_long"}

    async def given_back() -> bool:
        await sweeper.reservations(10)
        return [row.state for row in await rows(service, "SELECT state FROM reservations")] == ["cancelled"] * 4

    await eventually(given_back)


@in_three_databases
@pytest.mark.usefixtures("impatient")
async def test_an_order_that_is_begun_is_answered_202_though_its_next_step_is_refused(
    start_service: OpenService, environment: dict[str, str]
) -> None:
    service = start_service(TCC_BATCH_SIZE="1")
    await put_stock(service, "MUG", 100)
    async with raw(environment["TCC_INVENTORY_DATABASE_URL"]) as holder, serving(service) as api:
        async with holder.transaction():
            await holder.execute("SELECT FROM inventory_items FOR UPDATE")
            stuck = [asyncio.create_task(hold(service, "inventory", stock(("MUG", 1)))) for _ in range(2)]
            await eventually(lambda: somebody_waits(holder))
            placed = await api.order("MUG", query="?wait=30")
            assert (placed.status, placed.json["status"]) == (202, "processing"), placed.body
        assert {outcome.code for outcome in await asyncio.gather(*stuck)} == {DONE}
    (transaction,) = (await swept_to_the_end(service, [placed.json["id"]])).values()
    assert transaction.view.state is State.CONFIRMED
    assert await broken(service) == []


async def test_a_batch_is_tried_again_only_as_long_as_there_is_time(
    start_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(TCC_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(batch, "GIVE_UP_SECONDS", 0.0)
    with pytest.raises(OutcomeUnknown):
        await hold(service, "inventory", stock(("MUG", 1)))
    assert lost(service) == 1


async def test_what_may_have_been_committed_is_unknown_though_the_next_attempt_was_blocked(
    service: Service, database_url: str
) -> None:
    await put_stock(service, "MUG", 1)
    async with raw(database_url) as holder, holder.transaction():
        await holder.execute("SELECT FROM inventory_items FOR UPDATE")
        held = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
        await eventually(lambda: somebody_waits(holder))
        await holder.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tcc-test' "
            "AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        )
        with pytest.raises(OutcomeUnknown):
            await held
    assert lost(service) == 1


@pytest_asyncio.fixture
async def frozen(inventory_server: PostgresServer) -> AsyncIterator[Database]:
    """A database whose server a test may stop in its tracks; it goes on when the test ends."""
    database = Database(await new_database(inventory_server))
    yield database
    for process in _family(inventory_server):
        process.send_signal(signal.SIGCONT)
    await database.close()


def _family(server: PostgresServer) -> list[psutil.Process]:
    postmaster = psutil.Process(server.pid)
    return [postmaster, *postmaster.children(recursive=True)]


async def test_a_server_that_has_not_answered_in_time_is_not_asked_to_roll_back(
    frozen: Database, inventory_server: PostgresServer
) -> None:
    async def unanswered(connection: AsyncConnection) -> None:
        async with asyncio.timeout(AT_ONCE), frozen.batch(connection):
            for process in _family(inventory_server):
                process.send_signal(signal.SIGSTOP)
            raise TimeoutError

    async with frozen.batches.connect() as connection:
        with pytest.raises(InterfaceError, match="closed"):
            await unanswered(connection)
        await connection.invalidate()


@pytest.mark.parametrize("crowd", ["of tries", "of cancels"])
async def test_a_crowd_of_one_kind_does_not_keep_one_of_the_other_waiting(service: Service, crowd: str) -> None:
    await put_stock(service, "MUG", 1000)
    await put_stock(service, "PEN", 1)
    held = (await hold(service, "inventory", stock(("PEN", 1)))).view
    assert held is not None

    async def cancel(id: UUID) -> object:
        return await service.reserver.move(
            CONTEXT, resource="inventory", id=id, event=Event.CANCEL, reason=Reason.REQUESTED
        )

    one = asyncio.Event()

    async def another() -> None:
        while not one.is_set():
            await (hold(service, "inventory", stock(("NONE", 1))) if crowd == "of tries" else cancel(new_id()))

    others = [asyncio.create_task(another()) for _ in range(24)]
    await asyncio.sleep(0)
    try:
        await (cancel(held.id) if crowd == "of tries" else hold(service, "inventory", stock(("MUG", 1))))
    finally:
        one.set()
        await asyncio.gather(*others)
