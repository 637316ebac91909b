"""Idempotency keys: one effect and one reply for each, whatever is sent again, and whatever crashed."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import pytest

from resources.registry import RESOURCES
from tcc.commands import Context
from tcc.http.bodies import begin_type, branch_type
from tcc.http.requests import claim_of
from tcc.idempotency import KeyRef, Reply
from tcc.ids import new_id
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import Answer, Api, new_key, whole_order
from tests.http.records import count, eventually, footprint, rows
from tests.http.samples import NAMES, PLENTY, SAMPLES, SKU, Holder
from tests.recovery.scenes import raw, somebody_waits

SLOW = {"resource": "payments", "claim": {"amount": 100, "currency": "EUR", "payment_method": "tok_slow"}}


def same(first: Answer, second: Answer) -> bool:
    """Whether the second is the first, replayed byte for byte."""
    assert "idempotency-replayed" not in first.headers
    assert second.headers.get("idempotency-replayed") == "true"
    named = ("content-type", "location")
    return (second.status, second.body) == (first.status, first.body) and all(
        first.headers.get(name) == second.headers.get(name) for name in named
    )


@pytest.mark.parametrize("resource", NAMES)
async def test_a_try_is_replayed_byte_for_byte(api: Api, resource: str) -> None:
    await api.stock(SKU, 10)
    key, base, claim = new_key(), f"/v1/{resource}/reservations", SAMPLES[resource].claim
    first = await api.post(base, claim, key=key)
    assert first.status == 201
    assert (await api.post(f"{base}/{first.json['id']}/confirm")).json["state"] == "confirmed"
    assert same(first, await api.post(base, claim, key=key))


@pytest.mark.parametrize("resource", [name for name in NAMES if SAMPLES[name].refusal])
async def test_a_refusal_is_replayed_though_it_would_come_out_otherwise_now(
    api: Api, service: Service, resource: str
) -> None:
    await api.stock(SKU, 10)
    key, base, sample = new_key(), f"/v1/{resource}/reservations", SAMPLES[resource]
    first = await api.post(base, sample.refused, key=key)
    assert (first.status, first.code) == sample.refusal
    await api.stock(SKU, PLENTY)
    assert same(first, await api.post(base, sample.refused, key=key))
    assert await count(service, "reservations") == 1


@pytest.mark.parametrize(
    ("confirm", "method", "status", "state"),
    [
        ("auto", "tok_ok", 201, "confirmed"),
        ("manual", "tok_ok", 201, "tried"),
        ("auto", "tok_declined", 409, "transaction_refused"),
        ("manual", "tok_declined", 409, "transaction_refused"),
    ],
)
async def test_a_transaction_is_replayed_byte_for_byte(
    api: Api, service: Service, confirm: str, method: str, status: int, state: str
) -> None:
    await api.stock(SKU, 10)
    key = new_key()
    first = await api.order(SKU, confirm=confirm, payment_method=method, key=key)
    assert (first.status, first.json.get("code") or first.json["state"]) == (status, state)
    if state == "tried":
        assert (await api.post(f"/v1/transactions/{first.json['id']}/confirm")).status == 200
    before = await footprint(service)
    assert same(first, await api.order(SKU, confirm=confirm, payment_method=method, key=key))
    assert await footprint(service) == before


async def test_a_202_is_replayed_after_the_end_has_come(api: Api) -> None:
    await api.stock(SKU, 10)
    key = new_key()
    first = await api.order(SKU, payment_method="tok_slow", query="?wait=0", key=key)
    assert first.status == 202
    ended = await api.get(f"{first.headers['location']}?wait=20")
    assert ended.json["state"] == "confirmed"
    assert same(first, await api.order(SKU, payment_method="tok_slow", query="?wait=0", key=key))


@pytest.mark.parametrize("resource", NAMES)
async def test_keys_are_honoured_on_confirm_cancel_and_extend_of_a_reservation(
    api: Api, service: Service, resource: str
) -> None:
    await api.stock(SKU, 10)
    holder = Holder(api, service, resource)
    for event, body in (("confirm", None), ("cancel", None), ("extend", {"ttl_seconds": 3600})):
        path, key = f"{holder.base}/{await holder.reach('tried')}/{event}", new_key()
        first = await api.post(path, body, key=key)
        assert first.status == 200
        before = await count(service, "journal")
        assert same(first, await api.post(path, body, key=key))
        assert await count(service, "journal") == before
        again = await api.post(path, body)
        assert again.status == 200, "without the key it is an ordinary repeat"
    refused, key = f"{holder.base}/{await holder.reach('confirmed')}/cancel", new_key()
    first = await api.post(refused, key=key)
    assert first.code == "already_confirmed"
    assert same(first, await api.post(refused, key=key))


async def test_keys_are_honoured_on_confirm_cancel_and_extend_of_a_transaction(api: Api, service: Service) -> None:
    await api.stock(SKU, 10)
    for event, body in (("confirm", None), ("cancel", None), ("extend", {"ttl_seconds": 3600})):
        begun = await api.order(SKU, confirm="manual")
        path, key = f"/v1/transactions/{begun.json['id']}/{event}", new_key()
        first = await api.post(path, body, key=key)
        assert first.status == 200
        before = await count(service, "journal")
        assert same(first, await api.post(path, body, key=key))
        assert await count(service, "journal") == before
        if event != "extend":
            late_key = new_key()
            late = await api.post(path, key=late_key)
            assert late.json == first.json, "the same, asked under another key"
            assert same(late, await api.post(path, key=late_key))
            stored = await rows(service, "SELECT 1 FROM idempotency_keys WHERE status IS NULL")
            assert not stored, "every key has its reply"
    ended = await api.order(SKU, confirm="manual")
    contradicted, key = f"/v1/transactions/{ended.json['id']}/confirm", new_key()
    assert (await api.post(f"/v1/transactions/{ended.json['id']}/cancel")).status == 200
    first = await api.post(contradicted, key=key)
    assert (first.status, first.code) == (409, "already_cancelled")
    assert same(first, await api.post(contradicted, key=key))


async def test_a_quoted_key_is_the_same_as_a_bare_one(api: Api) -> None:
    await api.stock(SKU, 10)
    first = await api.hold(SKU, key="an order's key")
    assert same(first, await api.hold(SKU, key='"an order\'s key"'))


async def test_a_key_of_255_characters_is_one(api: Api) -> None:
    await api.stock(SKU, 10)
    key = "k" * 255
    assert same(await api.hold(SKU, key=key), await api.hold(SKU, key=key))


@pytest.mark.parametrize("changed", [{"quantity": 2}, {"ttl_seconds": 60}, {"reference": "another"}])
async def test_another_try_under_the_same_key_is_told_so(api: Api, service: Service, changed: dict[str, Any]) -> None:
    await api.stock(SKU, 10)
    key = new_key()
    assert (await api.hold(SKU, key=key)).status == 201
    before = await footprint(service)
    other = await api.hold(SKU, key=key, **changed)
    assert (other.status, other.code) == (409, "idempotency_key_reused")
    assert await footprint(service) == before


@pytest.mark.parametrize("changed", [{"quantity": 2}, {"confirm": "manual"}, {"payment_method": "tok_slow"}])
async def test_another_transaction_under_the_same_key_is_told_so(
    api: Api, service: Service, changed: dict[str, Any]
) -> None:
    await api.stock(SKU, 10)
    key = new_key()
    assert (await api.order(SKU, key=key)).status == 201
    before = await footprint(service)
    other = await api.order(SKU, key=key, **changed)
    assert (other.status, other.code) == (409, "idempotency_key_reused")
    assert await footprint(service) == before


async def test_a_key_belongs_to_one_operation(api: Api) -> None:
    await api.stock(SKU, 10)
    key = new_key()
    held = await api.hold(SKU, key=key)
    done = await api.post(f"/v1/inventory/reservations/{held.json['id']}/confirm", key=key)
    placed = await api.order(SKU, key=key)
    assert [held.status, done.status, placed.status] == [201, 200, 201]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/transactions", {"branches": [SLOW], "confirm": "auto"}),
        ("/v1/payments/reservations", SLOW["claim"]),
    ],
)
async def test_a_key_that_is_in_flight_says_when_to_ask_again(
    api: Api, service: Service, path: str, body: dict[str, Any]
) -> None:
    key = new_key()
    first = asyncio.create_task(api.post(path, body, key=key))
    await eventually(lambda: count(service, "idempotency_keys"))
    second = await api.post(path, body, key=key)
    assert (second.status, second.code, second.json["retryable"]) == (409, "request_in_flight", True)
    assert int(second.headers["retry-after"]) >= 1
    other = await api.post(path, {**body, "reference": "another"}, key=key)
    assert other.code == "idempotency_key_reused"
    assert (await first).status == 201
    assert same(await first, await api.post(path, body, key=key))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/transactions", {"branches": [SLOW], "confirm": "auto"}),
        ("/v1/payments/reservations", SLOW["claim"]),
    ],
)
async def test_a_request_is_answered_with_what_its_key_has_though_somebody_else_was_first_to_store_it(
    api: Api, service: Service, path: str, body: dict[str, Any]
) -> None:
    """A sweep ends what is asked for while the request itself is at it, and a repeat is told of that before it is."""
    key = new_key()
    first = asyncio.create_task(api.post(path, body, key=key))
    (row,) = await eventually(lambda: rows(service, "SELECT caller, operation, key FROM idempotency_keys"))
    resource = None if path == "/v1/transactions" else "payments"
    told = Reply(201, b'{"state": "as the repeat was told"}', "/v1/somewhere")
    stored = await service.answer(resource, KeyRef("default", row.caller, row.operation, row.key), told)
    assert stored == told
    assert (await first).body == told.body
    assert same(await first, await api.post(path, body, key=key))


async def test_a_request_is_answered_with_what_its_key_was_given_while_its_last_commit_waited(
    api: Api, database_url: str
) -> None:
    key = new_key()
    first = asyncio.create_task(api.post("/v1/transactions", {"branches": [SLOW], "confirm": "auto"}, key=key))
    async with raw(database_url) as elsewhere, elsewhere.transaction():
        await eventually(lambda: elsewhere.fetch("SELECT FROM idempotency_keys FOR UPDATE"))
        await eventually(lambda: somebody_waits(elsewhere))
        await elsewhere.execute("UPDATE idempotency_keys SET status = 202, body = 'told meanwhile'")
    assert ((await first).status, (await first).body) == (202, b"told meanwhile")
    assert same(await first, await api.post("/v1/transactions", {"branches": [SLOW], "confirm": "auto"}, key=key))


@pytest.mark.parametrize("path", ["/v1/transactions", *(f"/v1/{resource}/reservations" for resource in NAMES)])
async def test_a_key_is_needed_where_nothing_else_tells_a_repeat(api: Api, service: Service, path: str) -> None:
    await api.stock(SKU, 10)
    before = await footprint(service)
    resource = path.split("/")[2]
    body = SAMPLES[resource].claim if resource in SAMPLES else {"branches": whole_order(SKU)}
    answer = await api.post(path, body)
    assert (answer.status, answer.code) == (400, "idempotency_key_missing")
    assert answer.json["errors"][0]["field"] == "Idempotency-Key"
    assert await footprint(service) == before


async def test_one_key_from_twenty_clients_at_once_has_one_effect(api: Api, service: Service) -> None:
    await api.stock(SKU, 100)
    key = new_key()
    holds = await asyncio.gather(*(api.hold(SKU, key=key) for _ in range(20)))
    assert {hold.status for hold in holds} == {201}
    assert len({hold.json["id"] for hold in holds}) == 1
    assert sum("idempotency-replayed" not in hold.headers for hold in holds) == 1
    shelf = (await api.get(f"/v1/inventory/items/{SKU}")).json
    assert (shelf["available"], shelf["held"]) == (99, 1)


async def test_one_order_from_twenty_clients_at_once_is_placed_once(api: Api, service: Service) -> None:
    await api.stock(SKU, 100)
    key = new_key()

    async def place() -> Answer:
        """As clients do: wait and ask again while the first is under way."""
        while (answer := await api.order(SKU, key=key)).status == 409:
            assert answer.code == "request_in_flight"
            await asyncio.sleep(0.05)
        return answer

    placed = await asyncio.gather(*(place() for _ in range(20)))
    assert {answer.status for answer in placed} == {201}
    assert len({answer.body for answer in placed}) == 1
    shelf = (await api.get(f"/v1/inventory/items/{SKU}")).json
    assert (shelf["available"], shelf["sold"]) == (99, 1)
    assert await count(service, "transactions") == 1


async def test_a_claim_that_makes_no_sense_does_not_burn_its_key(api: Api, service: Service) -> None:
    key = new_key()
    wrong = await api.hold(SKU, key=key)
    assert (wrong.status, wrong.code, wrong.json["errors"][0]["field"]) == (422, "unknown_sku", "lines[0]")
    assert await count(service, "idempotency_keys") == 0
    assert await count(service, "reservations") == 0
    await api.stock(SKU, 10)
    assert (await api.hold(SKU, key=key)).status == 201


async def crashed(service: Service, method: str) -> tuple[str, UUID, dict[str, Any]]:
    """An order whose API died after its first commit: its key, its id, and what was sent."""
    key, id = new_key(), new_id()
    branches = whole_order(SKU, method)
    sent = {"branches": branches, "confirm": "auto"}
    body: Any = msgspec.convert(sent, begin_type(branch_type(resource) for resource in RESOURCES))
    encode = msgspec.json.encode
    begun = await service.coordinator.begin(
        Context("default", "api", "crashed"),
        id=id,
        branches=[(b["resource"], msgspec.Raw(encode(b["claim"]))) for b in branches],
        confirm="auto",
        ttl_seconds=900,
        reference=None,
        claim=claim_of(key, "transactions.begin", id, encode(body)),
        reply=lambda transaction: None,
    )
    assert begun.transaction is not None
    return key, id, sent


@pytest.mark.parametrize(("method", "status"), [("tok_ok", 201), ("tok_declined", 409)])
async def test_a_request_that_crashed_is_finished_by_a_sweep_and_answered_to_whoever_asks_again(
    api: Api, service: Service, method: str, status: int
) -> None:
    await api.stock(SKU, 10)
    key, id, sent = await crashed(service, method)
    assert (await api.post("/v1/transactions", sent, key=key)).code == "request_in_flight"
    await Sweeper(service, "test").drive("default", id)
    replayed = await api.post("/v1/transactions", sent, key=key)
    assert (replayed.status, replayed.headers["idempotency-replayed"]) == (status, "true")
    assert replayed.headers["location"] == f"/v1/transactions/{id}"
    ((stored,),) = await rows(service, "SELECT body FROM idempotency_keys")
    assert bytes(stored) == replayed.body
    assert (await api.post("/v1/transactions", sent, key=key)).body == replayed.body
    assert await count(service, "transactions") == 1


async def accepted(api: Api, key: str, id: UUID, sent: dict[str, Any]) -> None:
    """Whoever asks again is told 202 and where to look, and so is everybody after that."""
    answer = await api.post("/v1/transactions", sent, key=key)
    assert (answer.status, answer.json["id"]) == (202, str(id))
    assert answer.headers["location"] == f"/v1/transactions/{id}"
    assert (await api.post("/v1/transactions", sent, key=key)).body == answer.body


async def test_a_request_that_crashed_and_now_waits_for_a_person_is_accepted(api: Api, service: Service) -> None:
    await api.stock(SKU, 10)
    key, id, sent = await crashed(service, "tok_capture_refused")
    assert (await Sweeper(service, "test").drive("default", id)).view.attention
    await accepted(api, key, id, sent)


async def test_a_request_that_crashed_is_accepted_once_it_would_have_been(api: Api, service: Service) -> None:
    """However long its end is in coming, a client learns its id within the time that a request waits."""
    await api.stock(SKU, 10)
    key, id, sent = await crashed(service, "tok_ok")
    async with service.stores.home.database.reads.begin() as connection:
        await connection.exec_driver_sql("UPDATE idempotency_keys SET created_at = created_at - interval '11 s'")
    await accepted(api, key, id, sent)


async def test_a_card_whose_request_crashed_is_accepted_once_it_would_have_been(api: Api, service: Service) -> None:
    sent = SLOW["claim"]
    key = new_key()
    first = asyncio.create_task(api.post("/v1/payments/reservations", sent, key=key))
    await eventually(lambda: count(service, "idempotency_keys"))
    async with service.stores.home.database.reads.begin() as connection:
        await connection.exec_driver_sql("UPDATE idempotency_keys SET created_at = created_at - interval '11 s'")
    answer = await api.post("/v1/payments/reservations", sent, key=key)
    assert (answer.status, answer.json["state"]) == (202, "trying")
    assert (await first).body == answer.body
