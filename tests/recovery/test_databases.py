"""Three PostgreSQL servers, one for each resource: what is away delays, and nothing goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tcc.dev.servers import PostgresServer
from tcc.machine import Event, Reason, State
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import Api, new_key
from tests.conftest import OpenService
from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import (
    CONTEXT,
    broken,
    card,
    effects_at_the_gateway,
    eventually,
    hold,
    in_both_layouts,
    in_three_databases,
    payment_of,
    place,
    put_stock,
    shelf,
    states,
    stock,
    swept_to_the_end,
)


@pytest.fixture(params=["inventory", "payments"])
def away(request: pytest.FixtureRequest, inventory_server: PostgresServer, payments_server: PostgresServer) -> str:
    """The resource whose server a test takes away."""
    return str(request.param)


@pytest_asyncio.fixture
async def server(
    away: str, inventory_server: PostgresServer, payments_server: PostgresServer
) -> AsyncIterator[PostgresServer]:
    """That server; it is there again when the test ends."""
    chosen = {"inventory": inventory_server, "payments": payments_server}[away]
    yield chosen
    await asyncio.to_thread(chosen.start)


@in_both_layouts
async def test_an_order_is_confirmed_refused_and_cancelled_over_http(api: Api, service: Service) -> None:
    await api.stock("MUG", 2)
    placed = await api.order("MUG")
    assert (placed.status, placed.json["state"]) == (201, "confirmed")
    declined = await api.order("MUG", payment_method="tok_declined")
    assert (declined.status, declined.code) == (409, "transaction_refused")
    sold_out = await api.order("MUG", quantity=2)
    assert (sold_out.status, sold_out.code) == (409, "transaction_refused")
    manual = await api.order("MUG", confirm="manual")
    assert (manual.status, manual.json["state"]) == (201, "tried")
    cancelled = await api.post(f"/v1/transactions/{manual.json['id']}/cancel")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    manual = await api.order("MUG", confirm="manual")
    confirmed = await api.post(f"/v1/transactions/{manual.json['id']}/confirm")
    assert (confirmed.status, confirmed.json["state"]) == (200, "confirmed")
    assert await shelf(service, "MUG") == (0, 0, 2)
    assert await broken(service) == []


@in_three_databases
async def test_an_order_placed_while_a_database_is_away_is_processing_and_ends_when_it_returns(
    api: Api, service: Service, server: PostgresServer, sandbox: SandboxProcess
) -> None:
    await api.stock("MUG", 3)
    await api.order("MUG")
    await asyncio.to_thread(server.kill)
    key = new_key()
    placed = await api.order("MUG", key=key, query="?wait=0.5")
    assert placed.status == 202, placed.body
    location = placed.headers["location"]
    assert placed.json["status"] == "processing"
    replayed = await api.order("MUG", key=key, query="?wait=0.5")
    assert (replayed.status, replayed.headers["location"]) == (202, location)

    await asyncio.to_thread(server.start)
    ended = await swept_to_the_end(service, [placed.json["id"]], within=30)
    (transaction,) = ended.values()
    assert transaction.view.state is State.CONFIRMED
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "capture"]
    assert await shelf(service, "MUG") == (1, 0, 2)
    assert await broken(service) == []


@in_three_databases
async def test_what_a_database_that_is_away_owns_is_unavailable_or_unknown_and_the_rest_is_shown(
    api: Api, server: PostgresServer, away: str
) -> None:
    await api.stock("MUG", 3)
    placed = await api.order("MUG")
    branch = next(b for b in placed.json["branches"] if b["resource"] == away)
    await asyncio.to_thread(server.kill)
    shown = await api.get(f"/v1/{away}/reservations/{branch['id']}")
    assert (shown.status, shown.json["retryable"]) == (503, True), shown.body
    transaction = await api.get(f"/v1/transactions/{placed.json['id']}")
    assert (transaction.status, transaction.json["state"]) == (200, "confirmed")
    told = {branch["resource"]: branch["state"] for branch in transaction.json["branches"]}
    assert told.pop(away) == "unknown"
    assert set(told.values()) == {"confirmed"}


@in_three_databases
@pytest.mark.parametrize("decision", ["confirm", "cancel"])
async def test_a_decision_that_is_committed_is_answered_202_though_a_database_is_away(
    api: Api, service: Service, server: PostgresServer, decision: str
) -> None:
    await api.stock("MUG", 3)
    held = await api.order("MUG", confirm="manual")
    await asyncio.to_thread(server.kill)
    answer = await api.post(f"/v1/transactions/{held.json['id']}/{decision}?wait=0.5")
    assert (answer.status, answer.json["status"]) == (202, "processing"), answer.body

    await asyncio.to_thread(server.start)
    (transaction,) = (await swept_to_the_end(service, [held.json["id"]], within=30)).values()
    assert transaction.view.state is (State.CONFIRMED if decision == "confirm" else State.CANCELLED)


@in_three_databases
@pytest.mark.parametrize("decision", ["confirm", "cancel"])
async def test_a_decision_taken_while_a_database_is_away_is_followed_when_it_returns(
    start_service: OpenService, server: PostgresServer, sandbox: SandboxProcess, decision: str
) -> None:
    service = start_service()
    await put_stock(service, "MUG", 3)
    held = await place(service, "MUG", confirm="manual")
    assert held.view.state is State.TRIED
    await asyncio.to_thread(server.kill)
    event = Event(decision)
    reason = Reason.REQUESTED if event is Event.CANCEL else None
    decided = await service.coordinator.decide(CONTEXT, held.view.id, event, reason=reason)
    assert decided.outcomes[0].code == "done"
    await Sweeper(service, "worker").transactions(10)

    await asyncio.to_thread(server.start)
    ended = await swept_to_the_end(service, [held.view.id], within=30)
    end = State.CONFIRMED if event is Event.CONFIRM else State.CANCELLED
    assert await states(service, held.view.id) == (end, [end] * 3)
    effects = effects_at_the_gateway(sandbox, payment_of(ended[held.view.id]))
    assert effects == ["authorise", "capture" if event is Event.CONFIRM else "void"]
    assert await shelf(service, "MUG") == ((2, 0, 1) if event is Event.CONFIRM else (3, 0, 0))
    assert await broken(service) == []


@in_three_databases
async def test_orders_under_way_when_a_database_is_killed_all_end(
    start_service: OpenService, server: PostgresServer, sandbox: SandboxProcess
) -> None:
    service, worker = start_service(), start_service()
    await put_stock(service, "MUG", 100)
    orders = [asyncio.create_task(place(service, "MUG")) for _ in range(3)]
    await asyncio.gather(*orders)
    orders = [asyncio.create_task(place(service, "MUG")) for _ in range(30)]
    await asyncio.sleep(0.03)
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*orders, return_exceptions=True)
    await asyncio.to_thread(server.start)

    async with worker.stores.home.database.reads.connect() as connection:
        ids = [row.id for row in await connection.exec_driver_sql("SELECT id FROM transactions")]
    ended = await swept_to_the_end(worker, ids, within=30)
    for transaction in ended.values():
        end = transaction.view.state
        assert {branch.state for branch in transaction.branches} == {end}
        wanted = [["authorise", "capture"]] if end is State.CONFIRMED else [[], ["authorise", "void"]]
        assert effects_at_the_gateway(sandbox, payment_of(transaction)) in wanted
    sold = sum(transaction.view.state is State.CONFIRMED for transaction in ended.values())
    assert sold >= 3
    assert await shelf(worker, "MUG") == (100 - sold, 0, sold)
    assert await broken(worker) == []


@in_three_databases
async def test_sweeps_of_the_other_databases_go_on_while_one_is_away(
    start_service: OpenService, inventory_server: PostgresServer, payments_server: PostgresServer
) -> None:
    service = start_service()
    await put_stock(service, "MUG", 1)
    await hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.1)
    await hold(service, "payments", card(), ttl_seconds=0.1)
    await asyncio.to_thread(payments_server.kill)
    try:
        sweeper = Sweeper(service, "worker")

        async def given_back() -> bool:
            await sweeper.reservations(10)
            await sweeper.purge(10)
            return await shelf(service, "MUG") == (1, 0, 0)

        await eventually(given_back)
    finally:
        await asyncio.to_thread(payments_server.start)
