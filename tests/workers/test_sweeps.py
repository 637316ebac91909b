"""What is abandoned is given back, what is due is taken up once, what is old is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import msgspec
import pytest

from resources.payments.gateways import open_gateway
from tcc.ids import new_id
from tcc.machine import State
from tcc.service import Service
from tcc.sweeps import OutsideUnreachable, Sweeper
from tests.client import Api, whole_order
from tests.conftest import OpenService
from tests.gateways.process import SandboxProcess
from tests.http.records import rows
from tests.recovery.scenes import (
    TENANT,
    begin,
    broken,
    card,
    effects_at_the_gateway,
    eventually,
    hold,
    in_both_layouts,
    payment_of,
    place,
    put_stock,
    raw,
    shelf,
    states,
    stock,
    swept_to_the_end,
)


@in_both_layouts
async def test_abandoned_tries_of_every_resource_are_given_back(
    service: Service, api: Api, sandbox: SandboxProcess
) -> None:
    await api.stock("MUG", 5)
    order = whole_order("MUG")
    made = {}
    for branch in order:
        body = {**branch["claim"], "ttl_seconds": 1}
        answer = await api.post(f"/v1/{branch['resource']}/reservations", body, key=str(new_id()))
        assert (answer.status, answer.json["state"]) == (201, "tried")
        made[branch["resource"]] = answer.json["id"]
    kept = await api.hold("MUG")
    assert await shelf(service, "MUG") == (3, 2, 0)
    sweeper = Sweeper(service, "worker")

    async def all_given_back() -> bool:
        await sweeper.reservations(100)
        answers = [await api.get(f"/v1/{resource}/reservations/{id}") for resource, id in made.items()]
        return {(answer.json["state"], answer.json["reason"]) for answer in answers} == {("cancelled", "expired")}

    await eventually(all_given_back)
    assert await shelf(service, "MUG") == (4, 1, 0)
    assert sandbox.account(made["payments"])["authorisation"]["state"] == "voided"
    assert (await api.get(f"/v1/orders/{made['orders']}")).json["state"] == "cancelled"
    confirmed = await api.post(f"/v1/inventory/reservations/{made['inventory']}/confirm")
    assert (confirmed.status, confirmed.code) == (409, "expired")
    confirmed = await api.post(f"/v1/inventory/reservations/{kept.json['id']}/confirm")
    assert confirmed.status == 200
    assert await broken(service) == []


@in_both_layouts
async def test_a_manual_transaction_past_its_deadline_is_cancelled_with_all_its_branches(
    service: Service, api: Api, sandbox: SandboxProcess
) -> None:
    await api.stock("MUG", 1)
    placed = await api.order("MUG", confirm="manual", ttl_seconds=1)
    assert placed.json["state"] == "tried"
    ended = await swept_to_the_end(service, [placed.json["id"]])
    (transaction,) = ended.values()
    assert transaction.view.reason == "expired"
    assert [branch.state for branch in transaction.branches] == [State.CANCELLED] * 3
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "void"]
    assert await shelf(service, "MUG") == (1, 0, 0)
    confirm = await api.post(f"/v1/transactions/{placed.json['id']}/confirm")
    assert (confirm.status, confirm.code) == (409, "expired")
    assert await broken(service) == []


async def test_nothing_is_swept_before_its_time(service: Service) -> None:
    await put_stock(service, "MUG", 2)
    await hold(service, "inventory", stock(("MUG", 1)))
    transaction = await place(service, "MUG", confirm="manual")
    assert transaction.view.state is State.TRIED
    sweeper = Sweeper(service, "worker")
    assert (await sweeper.reservations(10), await sweeper.transactions(10)) == (0, 0)
    assert await shelf(service, "MUG") == (0, 2, 0)


async def test_two_sweepers_of_two_services_at_once_take_each_row_once(
    start_service: OpenService, database_url: str
) -> None:
    services = [start_service(TCC_LEASE_SECONDS="30") for _ in range(2)]
    await put_stock(services[0], "MUG", 200)
    await asyncio.gather(*(hold(services[0], "inventory", stock(("MUG", 1)), ttl_seconds=0.05) for _ in range(200)))
    transactions = [
        await begin(services[0], whole_order("MUG")[2:], confirm="manual", ttl_seconds=0.05) for _ in range(20)
    ]
    await asyncio.sleep(0.1)
    sweepers = [Sweeper(service, f"worker {n}") for n, service in enumerate(services) for _ in range(2)]
    taken = await asyncio.gather(*(sweeper.reservations(80) for sweeper in sweepers))
    taken += [await sweepers[0].reservations(1000)]
    driven = await asyncio.gather(*(sweeper.transactions(8) for sweeper in sweepers))
    driven += [await sweepers[0].transactions(1000)]
    assert (sum(taken), sum(driven)) == (200, 20)
    assert await shelf(services[0], "MUG") == (200, 0, 0)
    for transaction in transactions:
        assert await states(services[0], transaction.view.id) == (State.CANCELLED, [State.CANCELLED])
    async with raw(database_url) as connection:
        moves = await connection.fetch("SELECT subject_id FROM transitions WHERE event = 'expire'")
    assert set(Counter(row["subject_id"] for row in moves).values()) == {1}
    assert len(moves) == 220
    assert await broken(services[0]) == []


async def test_a_sweep_takes_no_more_than_its_limit(service: Service) -> None:
    await put_stock(service, "MUG", 10)
    await asyncio.gather(*(hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.05) for _ in range(10)))
    await asyncio.sleep(0.1)
    sweeper = Sweeper(service, "worker")
    assert [await sweeper.reservations(4) for _ in range(4)] == [4, 4, 2, 0]


async def test_a_sweeper_that_died_leaves_its_rows_to_the_next_after_the_lease(
    start_service: OpenService, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, next_one = start_service(TCC_LEASE_SECONDS="0.3"), start_service()
    held = await hold(dying, "payments", card(), ttl_seconds=0.05)
    assert held.view
    await asyncio.sleep(0.1)

    async def die(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(dying.reserver, "move", die)
    assert await Sweeper(dying, "worker").reservations(10) == 1
    assert await Sweeper(next_one, "worker").reservations(10) == 0

    async def taken_up() -> int:
        return await Sweeper(next_one, "worker").reservations(10)

    assert await eventually(taken_up) == 1
    (found,) = await rows(next_one, "SELECT state, reason FROM reservations")
    assert (found.state, found.reason) == (State.CANCELLED, "expired")


async def test_what_cannot_be_given_back_does_not_keep_the_rest(service: Service) -> None:
    for sku in ("CUP", "MUG", "POT"):
        await put_stock(service, sku, 1)
        await hold(service, "inventory", stock((sku, 1)), ttl_seconds=0.05)
    await rows(service, "UPDATE inventory_items SET held = 0, on_hand = available WHERE sku = 'MUG' RETURNING sku")
    await asyncio.sleep(0.1)
    await Sweeper(service, "worker").reservations(100)
    assert [await shelf(service, sku) for sku in ("CUP", "MUG", "POT")] == [(1, 0, 0), (0, 0, 0), (1, 0, 0)]
    left = await rows(service, "SELECT claim FROM reservations WHERE state = 'tried'")
    assert [msgspec.json.decode(row.claim) for row in left] == [{"lines": [{"sku": "MUG", "quantity": 1}]}]


async def test_keys_are_kept_for_the_retention_and_then_forgotten(
    start_service: OpenService, service: Service, api: Api, database_url: str
) -> None:
    await api.stock("MUG", 10)
    first = await api.hold("MUG", key="old")
    await api.hold("MUG", key="young")
    async with raw(database_url) as connection:
        await connection.execute(
            "UPDATE idempotency_keys SET created_at = created_at - interval '73 hours' WHERE key = 'old'"
        )
        assert await Sweeper(service, "worker").purge(10) == 1
        assert [row["key"] for row in await connection.fetch("SELECT key FROM idempotency_keys")] == ["young"]
    assert (await api.hold("MUG", key="old")).json["id"] != first.json["id"]
    await asyncio.gather(*(api.hold("MUG") for _ in range(5)))
    short = Sweeper(start_service(TCC_KEY_RETENTION_SECONDS="0.001"), "worker")
    assert [await short.purge(4) for _ in range(3)] == [4, 3, 0]


async def test_reconciling_finds_what_the_gateway_holds_though_we_think_it_is_over(
    own_sandbox: SandboxProcess, service: Service
) -> None:
    await put_stock(service, "MUG", 10)
    await place(service, "MUG")
    await place(service, "MUG", method="tok_declined")
    await place(service, "MUG", confirm="manual")
    sweeper = Sweeper(service, "worker")

    async def found() -> set[str]:
        findings = await sweeper.reconcile(tenant_id=TENANT, since=timedelta(hours=1))
        return {finding.subject for finding in findings}

    assert await found() == set()

    gateway = open_gateway(own_sandbox.url)
    over = (await hold(service, "payments", card(), ttl_seconds=0.01)).view
    assert over is not None
    await asyncio.sleep(0.05)
    settled = await sweeper.reservations(10)
    assert settled >= 1
    twice = await gateway.authorise(
        reference=str(over.id), amount=500, currency="EUR", payment_method="tok_ok", key="a second key"
    )
    unknown = str(new_id())
    await gateway.authorise(reference=unknown, amount=500, currency="EUR", payment_method="tok_ok", key="unknown")
    await gateway.authorise(reference="not an id", amount=5, currency="EUR", payment_method="tok_ok", key="foreign")
    await gateway.authorise(reference=str(new_id()), amount=5, currency="EUR", payment_method="tok_declined", key="no")
    assert await found() == {f"payments {over.id}", f"payments {unknown}", "payments not an id"}
    await gateway.void(authorisation_id=twice.authorisation_id or "", key="mended")
    assert await found() == {f"payments {unknown}", "payments not an id"}
    await gateway.aclose()
    own_sandbox.stop()
    with pytest.raises(OutsideUnreachable, match="payments"):
        await found()
