"""Whoever drives an order dies, at every point where that can make a difference; a worker ends what it began."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from tcc.asking import Asking, fields
from tcc.commands import Move, MoveTransaction
from tcc.errors import Rejected
from tcc.groups import Group
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tcc.machine import Event, Reason, State
from tcc.resource import Answer
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import whole_order
from tests.conftest import OpenService
from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import (
    CONTEXT,
    LAYOUTS,
    TENANT,
    Crash,
    CrashingProcess,
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
    shelf,
    states,
    stock,
    swept_to_the_end,
)

MORE_COMMITS_THAN_ANY_ORDER = 40
STORIES = {
    "auto": ("auto", None),
    "manual, confirmed": ("manual", Event.CONFIRM),
    "manual, cancelled": ("manual", Event.CANCEL),
}


async def crash_everywhere(
    start_service: OpenService, monkeypatch: pytest.MonkeyPatch, *, story: str, when: str, method: str
) -> list[UUID]:
    """Place an order again and again, and die at its 1st commit, its 2nd, … until one comes through unharmed."""
    confirm, then = STORIES[story]
    ids = []
    for at in range(1, MORE_COMMITS_THAN_ANY_ORDER):
        id = new_id()
        ids.append(id)
        service = start_service()
        CrashingProcess(service, at=at, when=when, monkeypatch=monkeypatch)
        try:
            # Those that nobody decides are ended by their deadline; the others must not meet it, however slow we are.
            ttl_seconds = 60 if confirm == "auto" else 3
            await place(
                service,
                "MUG",
                id=id,
                method=method,
                confirm=confirm,
                ttl_seconds=ttl_seconds,
                then=then,
                patience_seconds=5,
            )
        except Crash:
            continue
        assert at >= 3
        return ids
    raise AssertionError("It never came through.")


async def known(service: Service, ids: list[UUID]) -> list[UUID]:
    """Those of which there is anything: dying before the very first commit leaves nothing, not even a trace."""
    found = []
    for id in ids:
        try:
            await service.coordinator.load(TENANT, id)
        except Rejected:
            continue
        found.append(id)
    return found


def fits(sandbox: SandboxProcess, transaction: Transaction) -> None:
    """All branches ended as their transaction did, and the gateway did exactly what goes with it."""
    end = transaction.view.state
    effects = effects_at_the_gateway(sandbox, payment_of(transaction))
    found = [branch.state for branch in transaction.branches]
    if end is State.CONFIRMED:
        assert found == [State.CONFIRMED] * 3
        assert effects == ["authorise", "capture"]
    else:
        assert set(found) <= {State.CANCELLED, State.REFUSED}
        assert effects in ([], ["authorise", "void"])


@pytest.mark.parametrize(
    ("layout", "when"),
    [(LAYOUTS[0], "before"), (LAYOUTS[0], "after"), (LAYOUTS[1], "before")],
    indirect=["layout"],
)
@pytest.mark.parametrize("story", STORIES)
async def test_an_order_that_lost_its_driver_at_any_commit_is_ended_by_a_worker(
    start_service: OpenService, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch, story: str, when: str
) -> None:
    worker = start_service()
    await put_stock(worker, "MUG", 1000)
    ids = await crash_everywhere(start_service, monkeypatch, story=story, when=when, method="tok_ok")
    begun = await known(worker, ids)
    assert len(begun) >= len(ids) - 1
    ended = await swept_to_the_end(worker, begun)
    ends = Counter(transaction.view.state for transaction in ended.values())
    for transaction in ended.values():
        fits(sandbox, transaction)
    if story == "auto":
        assert ends == {State.CONFIRMED: len(begun)}
    elif story == "manual, cancelled":
        assert ends == {State.CANCELLED: len(begun)}
    else:
        # Those whose decision wasn't committed ran out of time, the others had to be followed.
        assert ends[State.CONFIRMED] >= 2
        assert ends[State.CANCELLED] >= 2
    sold = ends[State.CONFIRMED]
    assert await shelf(worker, "MUG") == (1000 - sold, 0, sold)
    assert await broken(worker) == []


@pytest.mark.parametrize("method", ["tok_lost_reply", "tok_500_after_success", "tok_capture_fails_twice", "tok_slow"])
@pytest.mark.parametrize("story", ["auto", "manual, cancelled"])
async def test_a_gateway_that_misbehaves_and_a_driver_that_dies_still_make_one_effect(
    start_service: OpenService, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch, story: str, method: str
) -> None:
    worker = start_service()
    await put_stock(worker, "MUG", 1000)
    confirm, then = STORIES[story]

    async def doomed(at: int) -> UUID:
        id = new_id()
        service = start_service()
        CrashingProcess(service, at=at, when="before", monkeypatch=monkeypatch)
        with suppress(Crash):
            await place(service, "MUG", id=id, method=method, confirm=confirm, then=then, patience_seconds=5)
        return id

    ids = await asyncio.gather(*(doomed(at) for at in range(2, 11)))
    if then is Event.CANCEL:  # those that died before they could say so are cancelled by hand
        for id in ids:
            await worker.coordinator.decide(CONTEXT, id, Event.CANCEL, reason=Reason.REQUESTED)
    ended = await swept_to_the_end(worker, ids)
    for transaction in ended.values():
        assert transaction.view.state is (State.CONFIRMED if then is None else State.CANCELLED)
        fits(sandbox, transaction)
    assert await broken(worker) == []


@in_both_layouts
@pytest.mark.parametrize("method", ["tok_ok", "tok_lost_reply", "tok_500_after_success", "tok_slow"])
async def test_cancelling_while_the_authorisation_is_unknown_gives_it_back(
    start_service: OpenService, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    worker = start_service()
    await put_stock(worker, "MUG", 1)
    transaction = await begin(worker, whole_order("MUG", method), confirm="manual")
    dying = start_service()
    asked = dying.stores.external("payments")
    died = asyncio.Event()

    async def answer_and_die(*args: object, **kwargs: object) -> None:
        await type(asked).ask(asked, *args, **kwargs)  # type: ignore[arg-type]
        died.set()
        raise Crash

    monkeypatch.setattr(asked, "ask", answer_and_die)
    with pytest.raises(Crash):
        await dying.coordinator.drive(CONTEXT, transaction)
    assert died.is_set()
    assert (await states(worker, transaction.view.id))[0] is State.TRYING
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise"]

    decided = await worker.coordinator.decide(CONTEXT, transaction.view.id, Event.CANCEL, reason=Reason.REQUESTED)
    assert decided.outcomes[0].code == "done"
    ended = await swept_to_the_end(worker, [transaction.view.id])
    assert effects_at_the_gateway(sandbox, payment_of(transaction)) == ["authorise", "void"]
    assert ended[transaction.view.id].view.state is State.CANCELLED
    assert await shelf(worker, "MUG") == (1, 0, 0)


async def test_an_answer_that_no_clock_can_hold_is_an_attempt_like_any_other(
    start_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(TCC_MAX_ATTEMPTS="1")
    held = (await hold(service, "payments", card())).view
    assert held is not None
    lapses = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))

    async def nonsense(*args: object, **kwargs: object) -> Answer:
        return Answer(event=Event.TRY_SUCCEEDED, exchanges=[], cap=lapses)

    monkeypatch.setattr(service.stores.external("payments"), "ask", nonsense)
    view = (await service.reserver.settle(CONTEXT, held)).outcomes[0].view
    assert view is not None
    assert (view.state, view.attention) == (State.TRYING, "Asked 1 times without an answer.")


@pytest.mark.parametrize("event", [Event.CONFIRM, Event.CANCEL])
@pytest.mark.parametrize("method", ["tok_lost_reply", "tok_500_after_success"])
async def test_a_single_authorisation_survives_lost_replies_with_one_key_for_each_operation(
    service: Service, sandbox: SandboxProcess, event: Event, method: str
) -> None:
    held = (await hold(service, "payments", card(method))).view
    assert held is not None
    tried = (await service.reserver.settle(CONTEXT, held, patience_seconds=5)).outcomes[0]
    assert tried.view is not None
    assert tried.view.state is State.TRIED
    reason = None if event is Event.CONFIRM else Reason.REQUESTED
    moved = await service.reserver.move(CONTEXT, resource="payments", id=held.id, event=event, reason=reason)
    view = moved.outcomes[0].view
    assert view is not None
    outcome = (await service.reserver.settle(CONTEXT, view, patience_seconds=5)).outcomes[0]
    assert outcome.view is not None
    assert outcome.view.state is (State.CONFIRMED if event is Event.CONFIRM else State.CANCELLED)
    last = "capture" if event is Event.CONFIRM else "void"
    assert effects_at_the_gateway(sandbox, held.id) == ["authorise", last]
    results = [entry["result"] for entry in sandbox.ledger(reference=str(held.id))["operations"]]
    assert results == ["succeeded", "replayed"] * 2


async def test_a_gateway_that_cannot_be_reached_is_not_a_decline(
    start_service: OpenService, sandbox: SandboxProcess
) -> None:
    away = start_service(TCC_GATEWAY_URL="http://127.0.0.1:9")
    await put_stock(away, "MUG", 1)
    transaction = await place(away, "MUG")
    assert await states(away, transaction.view.id) == (
        State.TRYING,
        [State.TRIED, State.TRYING, State.TRIED],
    )
    there = start_service()
    ended = await swept_to_the_end(there, [transaction.view.id])
    fits(sandbox, ended[transaction.view.id])
    assert ended[transaction.view.id].view.state is State.CONFIRMED


async def test_what_a_gateway_never_answers_is_given_up_at_the_deadline_even_where_a_person_is_called(
    start_service: OpenService,
) -> None:
    """Nothing is held past its expiry unless it was decided (I4): attention must not stop the clock."""
    away = start_service(TCC_GATEWAY_URL="http://127.0.0.1:9", TCC_MAX_ATTEMPTS="1")
    await put_stock(away, "MUG", 1)
    transaction = await place(away, "MUG", ttl_seconds=1)
    assert transaction.view.attention
    sweeper = Sweeper(away, "worker")

    async def given_back() -> bool:
        await sweeper.transactions(100)
        return await shelf(away, "MUG") == (1, 0, 0)

    await eventually(given_back, within=5)
    assert (await states(away, transaction.view.id))[0] is State.CANCELLING


async def test_a_single_card_that_a_gateway_never_answers_for_is_given_up_at_its_expiry(
    start_service: OpenService,
) -> None:
    away = start_service(TCC_GATEWAY_URL="http://127.0.0.1:9", TCC_MAX_ATTEMPTS="1")
    held = (await hold(away, "payments", card(), ttl_seconds=0.5)).view
    assert held is not None
    parked = (await away.reserver.settle(CONTEXT, held)).outcomes[0]
    assert parked.view is not None
    assert parked.view.attention
    sweeper = Sweeper(away, "worker")

    async def given_up() -> bool:
        await sweeper.reservations(100)
        view = (await away.reserver.move(CONTEXT, resource="payments", id=held.id, event=Event.EXTEND)).outcomes[0].view
        return view is not None and view.state is State.CANCELLING

    await eventually(given_up, within=5)


async def test_an_authorisation_that_lapsed_before_the_decision_is_not_confirmed(
    start_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies after the card was authorised; when a worker comes, the authorisation has lapsed."""
    worker = start_service()
    await put_stock(worker, "MUG", 1)
    transaction = await begin(worker, whole_order("MUG", "tok_auth_expires"))
    dying = start_service()
    authorised = asyncio.Event()
    asked = dying.stores.external("payments")

    async def answer_and_die(*args: object, **kwargs: object) -> None:
        await type(asked).ask(asked, *args, **kwargs)  # type: ignore[arg-type]
        authorised.set()
        raise Crash

    monkeypatch.setattr(asked, "ask", answer_and_die)
    with pytest.raises(Crash):
        await dying.coordinator.drive(CONTEXT, transaction)
    ended = await swept_to_the_end(worker, [transaction.view.id], within=5)
    assert ended[transaction.view.id].view.state is State.CANCELLED
    assert await shelf(worker, "MUG") == (1, 0, 0)


async def test_a_refused_branch_gives_back_the_others_though_its_driver_died(
    start_service: OpenService, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_service()
    await put_stock(worker, "MUG", 100)
    ids = await crash_everywhere(start_service, monkeypatch, story="auto", when="after", method="tok_declined")
    ended = await swept_to_the_end(worker, ids)
    for transaction in ended.values():
        assert (transaction.view.state, transaction.view.reason) == (State.CANCELLED, "refused")
        assert effects_at_the_gateway(sandbox, payment_of(transaction)) == []
    assert await shelf(worker, "MUG") == (100, 0, 0)
    assert await broken(worker) == []


async def test_two_workers_that_drive_the_same_orders_at_once_do_nothing_twice(
    start_service: OpenService, sandbox: SandboxProcess
) -> None:
    services = [start_service() for _ in range(3)]
    await put_stock(services[0], "MUG", 100)
    begun = [await begin(services[0], whole_order("MUG", "tok_500_after_success")) for _ in range(8)]
    for _ in range(3):
        await asyncio.gather(
            *(service.coordinator.drive(CONTEXT, t, patience_seconds=2) for service in services for t in begun)
        )
    ended = await swept_to_the_end(services[0], [t.view.id for t in begun])
    for transaction in ended.values():
        assert transaction.view.state is State.CONFIRMED
        fits(sandbox, transaction)
    assert await shelf(services[0], "MUG") == (92, 0, 8)
    assert await broken(services[0]) == []


async def test_stock_alone_is_given_back_by_whichever_worker_comes_first_once(start_service: OpenService) -> None:
    services = [start_service() for _ in range(3)]
    await put_stock(services[0], "MUG", 50)
    await asyncio.gather(*(hold(services[0], "inventory", stock(("MUG", 1)), ttl_seconds=0.1) for _ in range(50)))

    async def given_back() -> bool:
        await asyncio.gather(*(Sweeper(service, "worker").reservations(20) for service in services for _ in range(2)))
        return await shelf(services[0], "MUG") == (50, 0, 0)

    await eventually(given_back)
    assert await broken(services[0]) == []


async def test_a_capture_refused_for_good_is_not_asked_again_before_a_person_says_so(
    service: Service, sandbox: SandboxProcess
) -> None:
    """Not even by a driver that comes after one which died between noting it on the branch and on the transaction."""
    await put_stock(service, "MUG", 1)
    transaction = await place(service, "MUG", method="tok_capture_refused")
    id, payment = transaction.view.id, payment_of(transaction)

    def captures() -> list[str]:
        entries = sandbox.ledger(reference=str(payment))["operations"]
        return [entry["key"] for entry in entries if entry["operation"] == "capture"]

    async with service.stores.home.database.reads.begin() as connection:
        await connection.exec_driver_sql("UPDATE transactions SET attention = NULL, attention_since = NULL")
    driven = await service.coordinator.drive(CONTEXT, await service.coordinator.load(TENANT, id))
    assert driven.view.attention
    assert len(captures()) == 1
    await service.coordinator.retry(CONTEXT, id)
    retried = await service.coordinator.drive(CONTEXT, await service.coordinator.load(TENANT, id))
    assert (retried.view.state, bool(retried.view.attention)) == (State.CONFIRMING, True)
    assert len(set(captures())) == 2


async def test_however_long_a_gateway_asks_us_to_wait_nothing_is_held_past_its_deadline(service: Service) -> None:
    await put_stock(service, "MUG", 1)
    transaction = await begin(service, whole_order("MUG"), ttl_seconds=60)
    single = (await hold(service, "payments", card(), ttl_seconds=60)).view
    assert single is not None
    about: dict[str, Any] = {**fields(CONTEXT), "retry_seconds": 86400.0}
    whole = MoveTransaction(**about, id=transaction.view.id, event=Event.POSTPONE)
    await service.stores.home.submit(Group(commands=[whole]))
    alone = Move(**about, id=single.id, resource="payments", event=Event.POSTPONE)
    await service.stores.home.submit(Group(commands=[alone]))
    for table, id in (("transactions", transaction.view.id), ("reservations", single.id)):
        async with service.stores.home.database.reads.connect() as connection:
            sql = f"SELECT due_at = expires_at AS at_the_deadline FROM {table} WHERE id = $1"
            assert (await connection.exec_driver_sql(sql, (id,))).scalar_one()


@pytest.mark.parametrize(("said", "least", "most"), [(None, 0.04, 0.06), (0, 0.04, 0.06), (3, 2.4, 3.6), (1e6, 48, 72)])
async def test_a_gateway_is_asked_again_no_sooner_than_it_said_and_never_at_once(
    service: Service, said: float | None, least: float, most: float
) -> None:
    waits = [Asking(service.stores, service.settings, service.metrics).backoff(1, said) for _ in range(50)]
    assert least <= min(waits) <= max(waits) <= most
