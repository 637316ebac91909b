"""A batch that comes out as foreseen is one statement, with replies that were written before it; and where it comes out
otherwise, nobody notices."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc import reads
from tcc.asking import fields
from tcc.commands import DONE, REPEATED, Move, MoveTransaction, Try
from tcc.db import Database
from tcc.errors import TccError
from tcc.groups import Group, Result
from tcc.idempotency import Claim, KeyRef, Reply
from tcc.ids import new_id
from tcc.knowledge import Transaction, foreseen_of
from tcc.machine import Event, Reason, State
from tcc.procedure import Procedure
from tcc.protocols.tcc import Branch, MoveBranch, MoveWhole
from tcc.schema import SchemaMismatch, check_schema, migrate
from tcc.service import Service
from tests.client import Answer, Api, new_key, whole_order
from tests.recovery.scenes import (
    CONTEXT,
    TENANT,
    begin,
    eventually,
    hold,
    in_three_databases,
    put_stock,
    raw,
    shelf,
    somebody_waits,
    stock,
)

AWKWARD = 'say "no" to \\n, {now} and 0001-01-01T00:00:00Z: ünïcödé, \U0001f680'


async def test_a_whole_order_is_three_commits(api: Api, database_url: str) -> None:
    async with raw(database_url) as connection:

        async def commits() -> int:
            return int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))

        await api.stock("MUG", 10)
        before = await commits()
        assert (await api.order("MUG")).status == 201
        assert await commits() == before + 3


async def test_what_is_sent_is_what_is_stored_and_what_is_there(api: Api) -> None:
    await api.stock("MUG", 10)
    for ask, path in ((api.hold, "/v1/inventory/reservations"), (api.order, "/v1/transactions")):
        first, again = [await ask("MUG", key="once", reference=AWKWARD) for _ in range(2)]
        assert (first.status, first.body) == (201, again.body)
        assert again.headers["idempotency-replayed"] == "true"
        assert first.json["reference"] == AWKWARD
        assert (await api.get(f"{path}/{first.json['id']}")).json == first.json


@pytest.mark.parametrize("changed", ["deadline", "nothing"])
async def test_a_reply_tells_of_a_deadline_that_was_moved_while_the_decision_waited(
    api: Api, service: Service, database_url: str, changed: str
) -> None:
    await api.stock("MUG", 10)
    held = (await api.order("MUG", confirm="manual")).json
    path = f"/v1/transactions/{held['id']}"
    async with raw(database_url) as elsewhere, elsewhere.transaction():
        await elsewhere.execute("SELECT FROM transactions FOR UPDATE")
        confirming = asyncio.create_task(api.post(f"{path}/confirm", key="once"))
        await eventually(lambda: somebody_waits(elsewhere))
        if changed == "deadline":
            later = "expires_at + interval '1 hour', updated_at = clock_timestamp()"
            await elsewhere.execute(f"UPDATE transactions SET expires_at = {later}")
    confirmed = await confirming
    assert confirmed.status == 200
    assert (confirmed.json["deadline"] == held["deadline"]) == (changed == "nothing")
    shown = (await api.get(path)).json
    assert shown == confirmed.json == (await api.post(f"{path}/confirm", key="once")).json


async def test_a_reply_has_its_own_time_though_others_beside_it_are_decided_again(service: Service) -> None:
    for sku in (f"MUG-{n}" for n in range(5)):
        await put_stock(service, "PEN", 10)
        await put_stock(service, sku, 5)
        keyed = service.reserver.hold(
            CONTEXT,
            resource="inventory",
            id=new_id(),
            raw=stock(("PEN", 1)),
            ttl_seconds=60,
            reference=None,
            claim=Claim(KeyRef(TENANT, "tests", "inventory.try", new_key()), b"", new_id()),
            reply=lambda outcome: Reply(201, msgspec.json.encode(outcome.view)),
        )
        others = [hold(service, "inventory", stock((sku, quantity))) for quantity in (3, 4, 2)]
        result = (await asyncio.gather(keyed, *others))[0]
        assert isinstance(result, Result)
        assert result.reply is not None
        assert result.reply.body == msgspec.json.encode(result.outcomes[0].view)


@in_three_databases
async def test_a_driver_that_somebody_has_overtaken_tells_what_that_one_decided(service: Service) -> None:
    begun = await begin(service, [{"resource": "inventory", "claim": {"lines": [{"sku": "NONE", "quantity": 1}]}}])
    id, branch = begun.view.id, begun.branches[0].plan
    await put_stock(service, "NONE", 0)
    refused = Try(
        tenant_id=TENANT,
        id=branch.id,
        correlation_id="tests",
        actor="tests",
        resource="inventory",
        claim=branch.claim,
        ttl_seconds=60,
        transaction_id=id,
    )
    await service.stores.of("inventory").submit(Group(commands=[refused]))
    known = await service.coordinator.load(TENANT, id)
    await service.coordinator.decide(CONTEXT, id, Event.CANCEL, reason=Reason.REQUESTED)
    ended = await service.coordinator.drive(CONTEXT, known)
    assert ended.view.reason == Reason.REQUESTED
    assert ended.view == (await service.coordinator.load(TENANT, id)).view


async def _authorised(service: Service, response: Any = None) -> tuple[Transaction, Group]:
    """A payment whose gateway was asked, and what records the answer."""
    begun = await begin(service, whole_order("MUG")[1:2], confirm="manual")
    payment = begun.branches[0].view
    assert payment is not None
    answer = await service.stores.external("payments").ask(payment, tenant_id=TENANT, attempt=1)
    steps = (
        MoveBranch(Branch(0, "payments", external=True, state=State.TRYING), Event.TRY_SUCCEEDED),
        MoveWhole(Event.TRY_SUCCEEDED),
    )
    commands = [
        Move(
            **fields(CONTEXT),
            id=payment.id,
            resource="payments",
            transaction_id=begun.view.id,
            event=Event.TRY_SUCCEEDED,
            detail=answer.detail,
            exchanges=[
                msgspec.structs.replace(exchange, response=response or exchange.response)
                for exchange in answer.exchanges
            ],
        ),
        MoveTransaction(**fields(CONTEXT), id=begun.view.id, event=Event.TRY_SUCCEEDED),
    ]
    return begun, Group(commands=commands, foreseen=foreseen_of(begun, steps, commands))


async def _log(service: Service, transaction: Transaction) -> list[tuple[str, str, bool]]:
    """Of whom it tells what, and whether of an exchange."""
    subjects = [transaction.view.id, transaction.branches[0].plan.id]
    entries = await reads.journal(service.stores.home.database, TENANT, subjects, limit=100)
    return [(entry.subject, entry.event, bool(entry.exchanges)) for entry in entries]


BEGUN = [("transaction", "begin", False), ("payments", "try", False)]


async def test_an_answer_whose_commit_was_not_heard_of_is_in_the_log_once(service: Service) -> None:
    """The connection is lost in COMMIT, which went through: what is applied once more finds what it did itself."""
    begun, answered = await _authorised(service)
    first, again = [await service.stores.home.submit(answered) for _ in range(2)]
    assert [[outcome.code for outcome in result.outcomes] for result in (first, again)] == [[DONE] * 2, [REPEATED] * 2]
    succeeded = [("payments", "try_succeeded", True), ("transaction", "try_succeeded", False)]
    assert await _log(service, begun) == BEGUN + succeeded


async def test_an_answer_that_cannot_be_kept_is_refused_rather_than_found_in_the_log(service: Service) -> None:
    begun, answered = await _authorised(service, {"message": "no \0 in here"})
    with pytest.raises(TccError, match="internal_error"):
        await service.stores.home.submit(answered)
    assert await _log(service, begun) == BEGUN
    assert (await service.coordinator.load(TENANT, begun.view.id)).view.state == State.TRYING


async def test_a_deadline_is_the_same_to_the_microsecond_wherever_it_is_shown(api: Api) -> None:
    await api.stock("MUG", 10)
    for ttl_seconds in (856.2805925, 18.9453455, 152.3253105):
        for ask, path in (
            (api.hold, "/v1/inventory/reservations"),
            (partial(api.order, confirm="manual"), "/v1/transactions"),
        ):
            held = (await ask("MUG", ttl_seconds=ttl_seconds)).json
            shown = (await api.get(f"{path}/{held['id']}")).json
            assert {name: shown.get(name) for name in ("deadline", "expires_at")} == {
                name: held.get(name) for name in ("deadline", "expires_at")
            }


async def test_what_sells_out_in_the_middle_of_a_batch_is_told_so_under_its_key(api: Api, service: Service) -> None:
    for sku in (f"MUG-{n}" for n in range(6)):
        await api.stock(sku, 5)
        keys = [new_key() for _ in range(16)]
        first: list[Answer] = await asyncio.gather(*(api.hold(sku, key=key) for key in keys))
        assert sorted(answer.status for answer in first) == [201] * 5 + [409] * 11
        assert {answer.code for answer in first if answer.status == 409} == {"insufficient_stock"}
        again = await asyncio.gather(*(api.hold(sku, key=key) for key in keys))
        assert [answer.body for answer in again] == [answer.body for answer in first]
        assert await shelf(service, sku) == (0, 5, 0)


async def test_the_function_is_part_of_the_schema_and_versions_have_one_each(database_url: str) -> None:
    database = Database(database_url)
    ours, theirs = Procedure(RESOURCES), Procedure(RESOURCES[:1])
    assert ours.name != theirs.name
    async with database.transaction() as connection:
        await connection.exec_driver_sql(theirs.create)
        await connection.execute(text(f"DROP FUNCTION {ours.name}"))
    with pytest.raises(SchemaMismatch, match="tcc migrate"):
        await check_schema(database, RESOURCES, RESOURCES)
    await migrate(database, RESOURCES, RESOURCES)
    await check_schema(database, RESOURCES, RESOURCES)
    async with database.transaction() as connection:
        found = await connection.execute(text("SELECT proname FROM pg_proc WHERE proname LIKE 'tcc_apply_%'"))
        assert {row.proname for row in found} == {ours.name, theirs.name}
    await database.close()
