"""Several at once: exactly one has its way, and everybody is told the same story."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tcc import batch
from tcc.commands import DONE, Move, Outcome, ReservationView, Try
from tcc.errors import Overloaded, TccError
from tcc.groups import Group
from tcc.idempotency import Claim, KeyRef
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tcc.machine import Event, Reason, State
from tcc.service import Service
from tests.client import Answer, Api, serving, whole_order
from tests.conftest import OpenService
from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import (
    CONTEXT,
    TENANT,
    begin,
    broken,
    card,
    conflicts,
    eventually,
    hold,
    put_stock,
    raw,
    shelf,
    somebody_waits,
    states,
    stock,
)

ROUNDS = 60


async def move(service: Service, view: ReservationView, event: Event, **more: Any) -> Outcome[ReservationView]:
    result = await service.reserver.move(CONTEXT, resource=view.resource, id=view.id, event=event, **more)
    return result.outcomes[0]


async def decide(service: Service, transaction: Transaction, event: Event, **more: Any) -> Outcome[Any]:
    result = await service.coordinator.decide(CONTEXT, transaction.view.id, event, **more)
    return result.outcomes[0]


ANSWERS = {
    Event.CONFIRM: {
        Event.CONFIRM: {"done"},
        Event.CANCEL: {"already_confirmed"},
        Event.EXPIRE: {"already_confirmed", "not_expired"},
    },
    Event.CANCEL: {
        Event.CONFIRM: {"already_cancelled", "expired"},
        Event.CANCEL: {"done"},
        Event.EXPIRE: {"repeated", "not_expired"},
    },
    Event.EXPIRE: {Event.CONFIRM: {"expired"}, Event.CANCEL: {"repeated"}, Event.EXPIRE: {"done"}},
}
"""What everybody may be told, by who had his way."""


def winner_of(codes: dict[Event, str]) -> Event:
    """Who had his way, after seeing that exactly one had, and that the others' answers go with it."""
    (winner,) = (event for event, code in codes.items() if code == DONE)
    for event, code in codes.items():
        assert code in ANSWERS[winner][event], (winner, codes)
    return winner


async def test_of_confirm_cancel_and_expire_of_a_reservation_at_the_same_instant_one_wins(
    start_service: OpenService,
) -> None:
    one, other = start_service(), start_service()
    await put_stock(one, "MUG", ROUNDS)
    won: dict[Event, int] = {}
    for _ in range(ROUNDS):
        ttl_seconds = random.uniform(0.0, 0.012)
        held = (await hold(one, "inventory", stock(("MUG", 1)), ttl_seconds=ttl_seconds)).view
        assert held is not None
        events = [Event.CONFIRM, Event.CANCEL, Event.EXPIRE]
        random.shuffle(events)
        reasons = {Event.CANCEL: Reason.REQUESTED, Event.EXPIRE: Reason.EXPIRED}
        outcomes = await asyncio.gather(
            *(move(random.choice((one, other)), held, event, reason=reasons.get(event)) for event in events)
        )
        winner = winner_of({event: outcome.code for event, outcome in zip(events, outcomes, strict=True)})
        won[winner] = won.get(winner, 0) + 1
        final = (await move(one, held, Event.CANCEL, reason=Reason.REQUESTED)).view
        assert final is not None
        assert final.state is (State.CONFIRMED if winner is Event.CONFIRM else State.CANCELLED)
    sold = won.get(Event.CONFIRM, 0)
    assert await shelf(one, "MUG") == (ROUNDS - sold, 0, sold)
    assert await broken(one) == []


async def test_of_confirm_cancel_and_expire_of_a_transaction_at_the_same_instant_one_wins(
    start_service: OpenService,
) -> None:
    services = start_service(), start_service()
    await put_stock(services[0], "MUG", ROUNDS)
    sold = 0
    for _ in range(ROUNDS):
        branches = [whole_order("MUG")[0], whole_order("MUG")[2]]
        transaction = await begin(services[0], branches, confirm="manual", ttl_seconds=random.uniform(0.0, 0.015))
        reasons = {Event.CANCEL: Reason.REQUESTED, Event.EXPIRE: Reason.EXPIRED}
        events = [Event.CONFIRM, Event.CANCEL, Event.EXPIRE]
        random.shuffle(events)
        outcomes = await asyncio.gather(
            *(decide(random.choice(services), transaction, event, reason=reasons.get(event)) for event in events)
        )
        winner = winner_of({event: outcome.code for event, outcome in zip(events, outcomes, strict=True)})
        decided = await services[0].coordinator.load(TENANT, transaction.view.id)
        await asyncio.gather(*(service.coordinator.drive(CONTEXT, decided) for service in services))
        end = State.CONFIRMED if winner is Event.CONFIRM else State.CANCELLED
        assert await states(services[0], transaction.view.id) == (end, [end, end])
        sold += winner is Event.CONFIRM
    assert await shelf(services[0], "MUG") == (ROUNDS - sold, 0, sold)
    assert await broken(services[0]) == []


async def test_orders_told_to_confirm_and_to_cancel_at_once_by_two_processes_do_one_of_them_whole(
    start_service: OpenService, sandbox: SandboxProcess
) -> None:
    services = start_service(), start_service()
    await put_stock(services[0], "MUG", 24)
    async with serving(services[0]) as one, serving(services[1]) as other:
        held = [(await one.order("MUG", confirm="manual")).json["id"] for _ in range(24)]

        async def tell(api: Api, id: str, what: str) -> Answer:
            return await api.post(f"/v1/transactions/{id}/{what}", key=f"{what} {id}")

        asked = [(api, id, what) for id in held for api, what in ((one, "confirm"), (other, "cancel"))]
        random.shuffle(asked)
        answers = await asyncio.gather(*(tell(*each) for each in asked))
        told = {(id, what): answer for (_, id, what), answer in zip(asked, answers, strict=True)}
        for id in held:
            confirmed, cancelled = told[id, "confirm"], told[id, "cancel"]
            shown = (await one.get(f"/v1/transactions/{id}?wait=10")).json
            end = "confirmed" if confirmed.status < 300 else "cancelled"
            loser = cancelled if end == "confirmed" else confirmed
            assert (loser.status, loser.code) == (409, f"already_{end}")
            assert (shown["state"], {branch["state"] for branch in shown["branches"]}) == (end, {end})
            (card_id,) = [branch["id"] for branch in shown["branches"] if branch["resource"] == "payments"]
            money = {"confirmed": "captured", "cancelled": "voided"}[end]
            assert sandbox.account(card_id)["authorisation"]["state"] == money
        again = await asyncio.gather(*(tell(*each) for each in asked))
    assert [answer.body for answer in again] == [answer.body for answer in answers]
    assert await broken(services[0]) == []


@pytest.mark.usefixtures("sandbox")
async def test_whoever_confirms_as_soon_as_it_may_be_is_confirmed(start_service: OpenService) -> None:
    driver, service = start_service(), start_service()
    await put_stock(driver, "MUG", 40)
    async with serving(service) as api:

        async def eager() -> tuple[str, str | None]:
            begun = await begin(driver, whole_order("MUG"), confirm="manual")
            path = f"/v1/transactions/{begun.view.id}"
            driving = asyncio.create_task(driver.coordinator.drive(CONTEXT, begun, patience_seconds=5))
            while (await api.post(f"{path}/confirm")).status == 409:
                pass
            await driving
            shown = (await api.get(f"{path}?wait=5")).json
            return shown["state"], shown["attention"]

        assert set(await asyncio.gather(*(eager() for _ in range(40)))) == {("confirmed", None)}
    assert await broken(service) == []


async def test_try_and_cancel_of_one_id_at_once_leave_nothing_held(start_service: OpenService) -> None:
    one, other = start_service(), start_service()
    await put_stock(one, "MUG", ROUNDS)
    for _ in range(ROUNDS):
        id = new_id()
        cancel = other.reserver.move(CONTEXT, resource="inventory", id=id, event=Event.CANCEL, reason=Reason.REQUESTED)
        tried, cancelled = await asyncio.gather(hold(one, "inventory", stock(("MUG", 1)), id=id), cancel)
        assert tried.code in ("done", "already_cancelled")
        (outcome,) = cancelled.outcomes
        assert outcome.code == DONE
        assert outcome.view is not None
        assert outcome.view.state is State.CANCELLED
        assert outcome.view.reason == ("requested" if tried.code == "done" else "never_tried")
    assert await shelf(one, "MUG") == (ROUNDS, 0, 0)


async def test_a_confirm_that_waits_for_the_row_across_its_expiry_is_expired(
    service: Service, database_url: str
) -> None:
    await put_stock(service, "MUG", 1)
    held = (await hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.4)).view
    assert held is not None
    async with raw(database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM reservations WHERE id = $1 FOR UPDATE", held.id)
            confirm = asyncio.create_task(move(service, held, Event.CONFIRM))
            await eventually(lambda: somebody_waits(holder))
            await holder.execute(
                "SELECT pg_sleep(GREATEST(0, EXTRACT(epoch FROM $1::timestamptz - clock_timestamp())) + 0.01)",
                held.expires_at,
            )
        assert (await confirm).code == "expired"
    assert await shelf(service, "MUG") == (0, 1, 0)


async def test_a_decision_that_waits_for_the_row_across_the_deadline_is_expired(
    service: Service, database_url: str
) -> None:
    transaction = await begin(service, whole_order("MUG")[2:], confirm="manual", ttl_seconds=0.4)
    async with raw(database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM transactions WHERE id = $1 FOR UPDATE", transaction.view.id)
            confirm = asyncio.create_task(decide(service, transaction, Event.CONFIRM))
            await eventually(lambda: somebody_waits(holder))
            await holder.execute(
                "SELECT pg_sleep(GREATEST(0, EXTRACT(epoch FROM $1::timestamptz - clock_timestamp())) + 0.01)",
                transaction.view.deadline,
            )
        assert (await confirm).code == "expired"
    assert (await states(service, transaction.view.id))[0] is State.TRIED


async def test_a_cancel_that_waits_while_the_try_comes_out_well_still_cancels(
    service: Service, database_url: str
) -> None:
    trying = (await hold(service, "payments", card())).view
    assert trying is not None
    async with raw(database_url) as holder:
        async with holder.transaction():
            await holder.execute("UPDATE reservations SET state = 'tried' WHERE id = $1", trying.id)
            cancel = asyncio.create_task(move(service, trying, Event.CANCEL, reason=Reason.REQUESTED))
            await eventually(lambda: somebody_waits(holder))
        outcome = await cancel
    assert outcome.code == DONE
    assert outcome.view is not None
    assert outcome.view.state is State.CANCELLING


async def test_a_confirm_that_waits_while_the_transaction_becomes_tried_confirms_it(
    service: Service, database_url: str
) -> None:
    transaction = await begin(service, whole_order("MUG")[1:2], confirm="manual")
    assert transaction.view.state is State.TRYING
    async with raw(database_url) as holder:
        async with holder.transaction():
            await holder.execute("UPDATE transactions SET state = 'tried' WHERE id = $1", transaction.view.id)
            confirm = asyncio.create_task(decide(service, transaction, Event.CONFIRM))
            await eventually(lambda: somebody_waits(holder))
        assert (await confirm).code == DONE


async def test_a_try_that_waits_while_stock_is_given_back_gets_it(service: Service, database_url: str) -> None:
    await put_stock(service, "MUG", 1)
    await hold(service, "inventory", stock(("MUG", 1)))
    async with raw(database_url) as other:
        giving_back = other.transaction()
        await giving_back.start()
        await other.execute("UPDATE inventory_items SET available = available + 1, held = held - 1")
        second = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
        await eventually(lambda: somebody_waits(other))
        await giving_back.commit()
    assert (await second).code == DONE
    assert await shelf(service, "MUG") == (0, 1, 0)


async def test_a_driver_that_heard_nothing_takes_the_end_that_another_has_heard_of(start_service: OpenService) -> None:
    one, deaf = start_service(), start_service(TCC_GATEWAY_URL="http://127.0.0.1:9")
    held = await hold(one, "payments", card())
    assert held.view is not None
    tried = (await one.reserver.settle(CONTEXT, held.view)).outcomes[0].view
    assert tried is not None
    confirming = (await move(one, tried, Event.CONFIRM)).view
    assert confirming is not None
    await one.reserver.settle(CONTEXT, confirming)
    outcome = (await deaf.reserver.settle(CONTEXT, confirming)).outcomes[0]
    assert outcome.view is not None
    assert (outcome.ok, outcome.view.state) == (True, State.CONFIRMED)


@pytest.mark.parametrize("event", [None, Event.CANCEL])
async def test_what_somebody_else_put_under_the_id_of_a_branch_is_never_taken_for_it(
    service: Service, event: Event | None
) -> None:
    """A driver died before the branch was recorded, and its id was shown as untried."""
    await put_stock(service, "MUG", 5)
    order, nowhere = whole_order("MUG")[2], {"resource": "inventory", "claim": {"lines": [{"sku": "?", "quantity": 1}]}}
    transaction = await begin(service, [nowhere, order])
    id = transaction.view.plans()[0].id
    stranger = await hold(service, "inventory", stock(("MUG", 1)), id=id)
    assert stranger.code == DONE
    if event:
        await decide(service, transaction, event, reason=Reason.REQUESTED)
    driven = await service.coordinator.drive(CONTEXT, await service.coordinator.load(TENANT, transaction.view.id))
    assert driven.view.state is State.CANCELLED
    assert driven.branches[0].state is State.REFUSED
    assert await shelf(service, "MUG") == (4, 1, 0)
    assert stranger.view is not None
    assert (await move(service, stranger.view, Event.CONFIRM)).code == DONE


async def test_a_poisonous_group_is_refused_alone(service: Service) -> None:
    await put_stock(service, "MUG", 100)
    poison = [
        stock(("MUG", 10**30)),
        stock(("MUG\x00", 1)),
        msgspec.Raw(b'{"lines": "none"}'),
        msgspec.Raw(b'{"lines": [{"sku": "MUG", "quantity": "many"}]}'),
    ]
    claims = [stock(("MUG", 1)) for _ in range(40)]
    for index, claim in enumerate(poison):
        claims.insert(index * 9 + 3, claim)
    outcomes = await asyncio.gather(*(hold(service, "inventory", claim) for claim in claims), return_exceptions=True)
    for claim, outcome in zip(claims, outcomes, strict=True):
        if claim in poison:
            assert isinstance(outcome, TccError)
            assert outcome.code == "internal_error"
        else:
            assert isinstance(outcome, Outcome)
            assert outcome.code == DONE
    assert await shelf(service, "MUG") == (60, 40, 0)
    assert (await hold(service, "inventory", stock(("MUG", 1)))).code == DONE


async def test_a_claim_that_repeats_a_line_is_decided_rather_than_looked_at_for_ever(service: Service) -> None:
    """The edge refuses such claims; a runner that met one all the same must not turn round and round."""
    await put_stock(service, "MUG", 5)
    command = Try(
        tenant_id=TENANT,
        id=new_id(),
        correlation_id="tests",
        actor="tests",
        resource="inventory",
        claim=stock(("MUG", 3), ("MUG", 3)),
        ttl_seconds=60,
    )
    (outcome,) = (await service.stores.of("inventory").submit(Group(commands=[command]))).outcomes
    assert outcome.code == "insufficient_stock"


async def test_a_command_applied_again_after_its_commit_was_not_heard_is_a_repeat(service: Service) -> None:
    """The connection is lost in COMMIT, which went through: the runner applies the same commands once more."""
    trying = (await hold(service, "payments", card())).view
    assert trying is not None
    answered = await service.stores.external("payments").ask(trying, tenant_id=TENANT, attempt=1)
    learned = Move(
        tenant_id=TENANT,
        id=trying.id,
        correlation_id="tests",
        actor="tests",
        resource="payments",
        event=Event.TRY_SUCCEEDED,
        detail=answered.detail,
        exchanges=answered.exchanges,
    )
    postponed = msgspec.structs.replace(learned, entry_id=new_id(), event=Event.POSTPONE, detail=None)
    batcher = service.stores.of("payments")
    first, again = [await batcher.submit(Group(commands=[postponed])) for _ in range(2)]
    assert [first.outcomes[0].code, again.outcomes[0].ok] == [DONE, True]
    first, again = [await batcher.submit(Group(commands=[learned])) for _ in range(2)]
    assert [first.outcomes[0].code, again.outcomes[0].code] == [DONE, "repeated"]


async def test_a_key_in_flight_is_not_taken_over_by_another_request_for_the_same_subject(service: Service) -> None:
    transaction = await begin(service, whole_order("MUG")[2:], confirm="manual")
    ref = KeyRef(TENANT, "tests", "transactions.extend", "key")
    first = Claim(ref, b"1" * 32, transaction.view.id)
    other = Claim(ref, b"2" * 32, transaction.view.id)
    extended = await service.coordinator.decide(
        CONTEXT, transaction.view.id, Event.EXTEND, ttl_seconds=100, claim=first
    )
    assert extended.held is None
    refused = await service.coordinator.decide(CONTEXT, transaction.view.id, Event.EXTEND, ttl_seconds=200, claim=other)
    assert refused.held is not None
    assert refused.held.fingerprint == first.fingerprint


async def test_claims_on_many_skus_in_any_order_never_deadlock(start_service: OpenService) -> None:
    services = [start_service() for _ in range(3)]
    skus = [f"SKU-{n}" for n in range(8)]
    for sku in skus:
        await put_stock(services[0], sku, 100_000)

    async def customer(service: Service) -> None:
        for _ in range(12):
            lines = [(sku, random.randint(1, 3)) for sku in random.sample(skus, 4)]
            held = (await hold(service, "inventory", stock(*lines))).view
            assert held is not None
            event = random.choice((Event.CONFIRM, Event.CANCEL))
            reason = None if event is Event.CONFIRM else Reason.REQUESTED
            assert (await move(random.choice(services), held, event, reason=reason)).code == DONE

    await asyncio.gather(*(customer(service) for service in services for _ in range(16)))
    assert [conflicts(service) for service in services] == [0, 0, 0]
    assert await broken(services[0]) == []


async def test_try_confirm_and_cancel_of_the_same_ids_in_any_order_never_deadlock(
    start_service: OpenService, database_url: str
) -> None:
    """Cancels that find nothing leave tombstones, and those of the same statement that find something give back stock:
    neither may be waited for by a Try that has locked the other."""
    services = [start_service() for _ in range(2)]
    skus = [f"SKU-{n}" for n in range(4)]
    for sku in skus:
        await put_stock(services[0], sku, 100_000)

    async def tried(id: UUID) -> None:
        lines = [(sku, 1) for sku in random.sample(skus, 2)]
        assert (await hold(random.choice(services), "inventory", stock(*lines), id=id)).code in (
            DONE,
            "already_cancelled",
        )

    async def moved(id: UUID, event: Event) -> None:
        reason = Reason.REQUESTED if event is Event.CANCEL else None
        await random.choice(services).reserver.move(CONTEXT, resource="inventory", id=id, event=event, reason=reason)

    for _ in range(12):
        old, new = [new_id() for _ in range(24)], [new_id() for _ in range(24)]
        await asyncio.gather(*(tried(id) for id in old))
        work = [tried(id) for id in new]
        work += [moved(id, random.choice((Event.CONFIRM, Event.CANCEL))) for id in old]
        work += [moved(id, Event.CANCEL) for id in (*new, *new)]
        random.shuffle(work)
        await asyncio.gather(*work)
    async with raw(database_url) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.fetchval(deadlocks) == 0
    assert await broken(services[0]) == []


@pytest.mark.parametrize("resources", [("inventory", "orders"), ("inventory", "orders", "inventory")], ids="+".join)
async def test_whole_orders_in_any_order_never_deadlock(start_service: OpenService, resources: tuple[str, ...]) -> None:
    services = [start_service(TCC_GATEWAY_URL="instant:") for _ in range(2)]
    skus = [f"SKU-{n}" for n in range(8)]
    for sku in skus:
        await put_stock(services[0], sku, 100_000)

    def branches() -> list[dict[str, Any]]:
        order, payment = whole_order("SKU-0")[2], whole_order("SKU-0")[1]
        made: list[dict[str, Any]] = [order if name == "orders" else {"resource": name} for name in resources]
        for branch in made:
            if branch["resource"] == "inventory":
                lines = [{"sku": sku, "quantity": 1} for sku in random.sample(skus, 3)]
                branch["claim"] = {"lines": lines}
        return [*made, *([payment] if random.random() < 0.5 else [])]

    async def customer(service: Service) -> None:
        for _ in range(4):
            confirm = random.choice(("auto", "manual"))
            transaction = await begin(service, branches(), confirm=confirm)
            transaction = await service.coordinator.drive(CONTEXT, transaction)
            if confirm == "manual":
                event = random.choice((Event.CONFIRM, Event.CANCEL))
                reason = None if event is Event.CONFIRM else Reason.REQUESTED
                await decide(service, transaction, event, reason=reason)
                transaction = await service.coordinator.load(TENANT, transaction.view.id)
                transaction = await service.coordinator.drive(CONTEXT, transaction)
            assert transaction.view.state in (State.CONFIRMED, State.CANCELLED)

    await asyncio.gather(*(customer(service) for service in services for _ in range(10)))
    assert [conflicts(service) for service in services] == [0, 0]
    assert await broken(services[0]) == []


@pytest.mark.parametrize(("stall_seconds", "served"), [(600.0, (15, 5)), (0.0, (5, 5))])
async def test_a_burst_is_served_and_a_crowd_that_stays_is_overloaded(
    stall_seconds: float,
    served: tuple[int, ...],
    start_service: OpenService,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "STALL_SECONDS", stall_seconds)
    monkeypatch.setattr(batch, "CALM_SECONDS", 600.0)
    service = start_service(TCC_QUEUE_SIZE="5", TCC_BATCH_SIZE="1")
    await put_stock(service, "MUG", 100)
    for accepted in served:
        async with raw(database_url) as holder:
            async with holder.transaction():
                await holder.execute("SELECT FROM inventory_items FOR UPDATE")
                first = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
                await eventually(lambda: somebody_waits(holder))
                others = [asyncio.create_task(hold(service, "inventory", stock(("MUG", 1)))) for _ in range(20)]
                done, waiting = await asyncio.wait(others, timeout=0.2)
                assert (len(done), len(waiting)) == (20 - accepted, accepted)
                assert {type(task.exception()) for task in done} == {Overloaded}
            outcomes = await asyncio.gather(first, *waiting)
        assert {outcome.code for outcome in outcomes} == {DONE}
    held = sum(served) + len(served)
    assert await shelf(service, "MUG") == (100 - held, held, 0)


async def test_shutting_down_finishes_what_was_accepted(start_service: OpenService) -> None:
    service = start_service(TCC_BATCH_SIZE="4")
    await put_stock(service, "MUG", 100)
    tries = [asyncio.create_task(hold(service, "inventory", stock(("MUG", 1)))) for _ in range(60)]
    await asyncio.sleep(0)
    await service.close()
    assert {outcome.code for outcome in await asyncio.gather(*tries)} == {DONE}
    with pytest.raises(Overloaded):
        await hold(service, "inventory", stock(("MUG", 1)))
    assert await shelf(start_service(), "MUG") == (40, 60, 0)


async def test_a_caller_that_goes_away_does_not_undo_its_command(service: Service, database_url: str) -> None:
    await put_stock(service, "MUG", 3)
    async with raw(database_url) as holder, holder.transaction():
        await holder.execute("SELECT FROM inventory_items FOR UPDATE")
        running = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
        await eventually(lambda: somebody_waits(holder))
        queued = asyncio.create_task(hold(service, "inventory", stock(("MUG", 1))))
        await asyncio.sleep(0)
        for task in (running, queued):
            task.cancel()
        gone = await asyncio.gather(running, queued, return_exceptions=True)
        assert [type(error) for error in gone] == [asyncio.CancelledError] * 2
    assert (await hold(service, "inventory", stock(("MUG", 1)))).code == DONE

    async def all_held() -> bool:
        return await shelf(service, "MUG") == (0, 3, 0)

    await eventually(all_held)


async def test_no_acknowledged_write_is_lost_when_backends_are_killed_under_load(
    service: Service, database_url: str
) -> None:
    await put_stock(service, "MUG", 100_000)
    acknowledged: dict[str, bytes] = {}

    async def customer(api: Api, name: int) -> None:
        for n in range(12):
            key = f"key-{name}-{n}"
            answer = await api.hold("MUG", key=key)
            while answer.status == 503:
                answer = await api.hold("MUG", key=key)
            assert answer.status == 201, answer.body
            acknowledged[key] = answer.body

    async def killer() -> None:
        async with raw(database_url) as killing:
            while True:
                await killing.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'tcc-test' AND datname = current_database()"
                )
                await asyncio.sleep(random.uniform(0.05, 0.25))

    async with serving(service) as api:
        kills = asyncio.create_task(killer())
        await asyncio.gather(*(customer(api, name) for name in range(24)))
        kills.cancel()
        for key, body in acknowledged.items():
            again = await api.hold("MUG", key=key)
            assert (again.status, again.body) == (201, body)
    assert len({msgspec.json.decode(body)["id"] for body in acknowledged.values()}) == len(acknowledged)
    assert await shelf(service, "MUG") == (100_000 - len(acknowledged), len(acknowledged), 0)
    assert await broken(service) == []
