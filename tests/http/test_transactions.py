"""Transactions over HTTP: several reservations that confirm or cancel together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import Answer, Api, new_key, whole_order
from tests.gateways.process import SandboxProcess
from tests.http.records import footprint, rows
from tests.http.refusals import check_problem
from tests.http.samples import SKU, let_time_pass, some_id

BASE = "/v1/transactions"


@pytest.fixture(autouse=True)
async def _shelf(api: Api) -> None:
    await api.stock(SKU, 10)


async def shelf(api: Api) -> tuple[int, int, int]:
    """Available, held and sold."""
    item = (await api.get(f"/v1/inventory/items/{SKU}")).json
    return item["available"], item["held"], item["sold"]


def branch(answer: Answer, resource: str) -> dict[str, Any]:
    """The branch on a resource of the transaction in an answer."""
    found: dict[str, Any] = next(b for b in answer.json["branches"] if b["resource"] == resource)
    return found


def states(answer: Answer) -> tuple[str, list[str]]:
    """The state of a transaction, and those of its branches."""
    return answer.json["state"], [b["state"] for b in answer.json["branches"]]


async def test_an_automatic_one_is_confirmed_at_once(api: Api, sandbox: SandboxProcess) -> None:
    placed = await api.order(SKU, reference="order 7")
    assert (placed.status, *states(placed)) == (201, "confirmed", ["confirmed"] * 3)
    assert placed.headers["location"] == f"{BASE}/{placed.json['id']}"
    assert (placed.json["status"], placed.json["confirm"], placed.json["reference"]) == ("confirmed", "auto", "order 7")
    assert await shelf(api) == (9, 0, 1)
    account = sandbox.account(branch(placed, "payments")["id"])
    assert account["authorisation"]["state"] == "captured"
    assert (account["effects"]["authorise"], account["effects"]["capture"]) == (1, 1)
    order = (await api.get(f"/v1/orders/{branch(placed, 'orders')['id']}")).json
    assert (order["state"], order["total"], order["currency"]) == ("confirmed", 1250, "EUR")
    payment = (await api.get(f"/v1/payments/{branch(placed, 'payments')['id']}")).json
    assert (payment["state"], payment["amount"]) == ("captured", 1250)


async def test_a_manual_one_waits_to_be_confirmed(api: Api, sandbox: SandboxProcess) -> None:
    begun = await api.order(SKU, confirm="manual")
    assert (begun.status, *states(begun)) == (201, "tried", ["tried"] * 3)
    assert begun.json["status"] == "reserved"
    assert await shelf(api) == (9, 1, 0)
    assert sandbox.account(branch(begun, "payments")["id"])["authorisation"]["state"] == "authorised"
    done = await api.post(f"{BASE}/{begun.json['id']}/confirm")
    assert (done.status, *states(done)) == (200, "confirmed", ["confirmed"] * 3)
    assert await shelf(api) == (9, 0, 1)
    assert sandbox.account(branch(begun, "payments")["id"])["authorisation"]["state"] == "captured"


@pytest.mark.parametrize("decision", ["confirm", "cancel"])
async def test_a_decision_and_its_local_branches_are_one_commit(api: Api, service: Service, decision: str) -> None:
    order = [branch for branch in whole_order(SKU) if branch["resource"] != "payments"]
    begun = await api.post(BASE, {"confirm": "manual", "branches": order}, key=new_key())
    assert (begun.status, states(begun)[0]) == (201, "tried")
    ended = await api.post(f"{BASE}/{begun.json['id']}/{decision}", key="only once")
    assert (ended.status, states(ended)[0]) == (200, {"confirm": "confirmed", "cancel": "cancelled"}[decision])
    journaled = """
SELECT DISTINCT j.xmin::text
FROM journal j JOIN transitions t ON t.filed_under = j.subject_id AND t.filed_as = j.entry_id
WHERE t.event LIKE 'confirm%' OR t.event LIKE 'cancel%'"""
    stored = "SELECT xmin::text FROM idempotency_keys WHERE key = 'only once'"
    assert await rows(service, journaled) == await rows(service, stored)


async def test_one_that_is_not_said_to_be_automatic_is_manual(api: Api) -> None:
    begun = await api.post(BASE, {"branches": whole_order(SKU)}, key=new_key())
    assert (begun.json["confirm"], begun.json["state"]) == ("manual", "tried")


async def test_cancelling_gives_everything_back(api: Api, sandbox: SandboxProcess) -> None:
    begun = await api.order(SKU, confirm="manual")
    done = await api.post(f"{BASE}/{begun.json['id']}/cancel")
    assert (done.status, *states(done)) == (200, "cancelled", ["cancelled"] * 3)
    assert (done.json["reason"], {b["reason"] for b in done.json["branches"]}) == ("requested", {"transaction"})
    assert await shelf(api) == (10, 0, 0)
    assert sandbox.account(branch(begun, "payments")["id"])["authorisation"]["state"] == "voided"


async def test_extending_holds_all_branches_longer(api: Api) -> None:
    begun = await api.order(SKU, confirm="manual", ttl_seconds=60)
    extended = await api.post(f"{BASE}/{begun.json['id']}/extend", {"ttl_seconds": 3600})
    assert (extended.status, extended.json["state"]) == (200, "tried")
    assert extended.json["deadline"] > begun.json["deadline"]
    for each in extended.json["branches"]:
        held = (await api.get(f"/v1/{each['resource']}/reservations/{each['id']}")).json
        assert held["expires_at"] > extended.json["deadline"], "a branch outlives its transaction's deadline"


# What each event is answered with: the status, and the state or the problem's code.
EVENTS = ("confirm", "cancel", "extend")
ATTEMPTS: dict[str, tuple[tuple[int, str], ...]] = {
    "unknown": ((404, "not_found"), (404, "not_found"), (404, "not_found")),
    "tried": ((200, "confirmed"), (200, "cancelled"), (200, "tried")),
    "confirmed": ((200, "confirmed"), (409, "already_confirmed"), (409, "already_confirmed")),
    "cancelled": ((409, "already_cancelled"), (200, "cancelled"), (409, "already_cancelled")),
    "overdue": ((409, "expired"), (200, "cancelled"), (409, "expired")),
    "expired": ((409, "expired"), (200, "cancelled"), (409, "expired")),
    "refused": ((409, "already_cancelled"), (200, "cancelled"), (409, "already_cancelled")),
}


async def reach(api: Api, service: Service, state: str) -> str:
    """The id of a new transaction in a state."""
    if state == "unknown":
        return some_id()
    if state == "refused":
        refused = await api.order(SKU, payment_method="tok_declined")
        return str(refused.json["transaction_id"])
    id = str((await api.order(SKU, confirm="manual")).json["id"])
    if state in ("confirmed", "cancelled"):
        await api.post(f"{BASE}/{id}/{ {'confirmed': 'confirm', 'cancelled': 'cancel'}[state] }")
    if state in ("overdue", "expired"):
        await let_time_pass(service, "transactions", id)
    if state == "expired":
        await Sweeper(service, "test").transactions(10)
    return id


@pytest.mark.parametrize("state", ATTEMPTS)
async def test_every_event_is_answered_as_the_state_demands(api: Api, service: Service, state: str) -> None:
    found = {}
    for event in EVENTS:
        body = {"ttl_seconds": 3600} if event == "extend" else None
        answer = await api.post(f"{BASE}/{await reach(api, service, state)}/{event}", body)
        found[event] = (answer.status, answer.json.get("code") or answer.json["state"])
    assert found == dict(zip(EVENTS, ATTEMPTS[state], strict=True))


async def test_sold_out_stock_never_costs_an_authorisation(api: Api, sandbox: SandboxProcess) -> None:
    refused = await api.order(SKU, quantity=11)
    problem = check_problem(refused)
    assert (refused.status, problem["code"]) == (409, "transaction_refused")
    assert "inventory: insufficient_stock" in problem["detail"]
    (error,) = problem["errors"]
    assert (error["field"], error["code"]) == ("branches[0].claim.lines[0]", "insufficient_stock")
    assert (error["requested"], error["available"]) == (11, 10)
    assert refused.headers["location"] == f"{BASE}/{problem['transaction_id']}"
    ended = await api.get(refused.headers["location"])
    assert (ended.json["state"], ended.json["reason"]) == ("cancelled", "refused")
    assert sandbox.ledger(reference=branch(ended, "payments")["id"])["operations"] == []
    assert await shelf(api) == (10, 0, 0)


async def test_a_declined_card_gives_the_stock_back(api: Api, sandbox: SandboxProcess) -> None:
    refused = await api.order(SKU, payment_method="tok_declined")
    problem = check_problem(refused)
    assert (refused.status, problem["code"]) == (409, "transaction_refused")
    (error,) = problem["errors"]
    assert (error["field"], error["code"]) == ("branches[1]", "card_declined")
    ended = await api.get(refused.headers["location"])
    assert states(ended) == ("cancelled", ["cancelled", "refused", "cancelled"])
    assert branch(ended, "payments")["reason"] == "card_declined"
    assert sandbox.account(branch(ended, "payments")["id"])["authorisation"]["state"] == "declined"
    assert await shelf(api) == (10, 0, 0)


async def test_a_sku_that_nobody_knows_is_named(api: Api) -> None:
    problem = check_problem(await api.order("NONE"))
    assert problem["code"] == "transaction_refused"
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [("branches[0].claim.lines[0]", "unknown_sku")]


async def test_what_is_charged_is_what_is_owed_over_all_branches(api: Api, service: Service) -> None:
    stock, payment, order = whole_order(SKU, quantity=2)
    half = {**payment["claim"], "amount": 1250}
    two_cards = [stock, {"resource": "payments", "claim": half}, {"resource": "payments", "claim": half}, order]
    placed = await api.post(BASE, {"branches": two_cards, "confirm": "auto"}, key=new_key())
    assert (placed.status, *states(placed)) == (201, "confirmed", ["confirmed"] * 4)
    before = await footprint(service)
    refused = await api.post(BASE, {"branches": two_cards[:2] + two_cards[3:], "confirm": "auto"}, key=new_key())
    assert (refused.status, refused.code) == (422, "amounts_differ")
    assert refused.json["detail"] == "Owed: 2500 EUR. Charged: 1250 EUR."
    assert await footprint(service) == before


async def test_branches_on_the_same_sku_are_weighed_together(api: Api) -> None:
    lines = [{"resource": "inventory", "claim": {"lines": [{"sku": SKU, "quantity": 6}]}} for _ in range(2)]
    refused = await api.post(BASE, {"branches": lines, "confirm": "auto"}, key=new_key())
    assert check_problem(refused)["errors"][0]["field"] == "branches[1].claim.lines[0]"
    assert await shelf(api) == (10, 0, 0)


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?wait=0", {}), ("", {"Prefer": "wait=0"}), ("", {"Prefer": "respond-async, wait=0"})],
)
async def test_one_that_takes_long_is_answered_202_and_can_be_waited_for(
    api: Api, query: str, headers: dict[str, str]
) -> None:
    body = {"branches": whole_order(SKU, "tok_slow"), "confirm": "auto"}
    begun = await api.post(f"{BASE}{query}", body, key=new_key(), headers=headers)
    assert (begun.status, begun.json["status"]) == (202, "processing")
    assert begun.json["message"]
    where = begun.headers["location"]
    assert where == f"{BASE}/{begun.json['id']}"
    ended = await api.get(f"{where}?wait=30")
    assert (ended.status, ended.json["state"]) == (200, "confirmed")


async def test_waiting_ends_when_the_time_is_over(api: Api) -> None:
    placed = await api.order(SKU, payment_method="tok_capture_refused", query="?wait=1")
    assert (placed.status, placed.json["state"]) == (202, "confirming")
    shown = await api.get(f"{placed.headers['location']}?wait=0.1")
    assert (shown.status, shown.json["status"]) == (200, "processing")


async def test_a_decision_whose_branches_still_follow_is_answered_202(api: Api) -> None:
    begun = await api.order(SKU, confirm="manual", payment_method="tok_lost_reply")
    assert begun.status == 201
    done = await api.post(f"{BASE}/{begun.json['id']}/confirm?wait=0")
    assert (done.status, done.json["state"]) == (202, "confirming")
    contradicted = await api.post(f"{BASE}/{begun.json['id']}/cancel")
    assert (contradicted.status, contradicted.code) == (409, "already_confirmed")
    ended = await api.get(f"{done.headers['location']}?wait=30")
    assert states(ended) == ("confirmed", ["confirmed"] * 3)


async def test_one_that_needs_a_person_says_so(api: Api) -> None:
    placed = await api.order(SKU, payment_method="tok_capture_refused")
    assert (placed.status, placed.json["state"], placed.json["status"]) == (202, "confirming", "processing")
    shown = (await api.get(placed.headers["location"])).json
    assert "capture_refused" in shown["attention"]
    assert shown["attention_since"]
    listed = (await api.get(f"{BASE}?attention=true")).json["items"]
    assert [one["id"] for one in listed] == [shown["id"]]
    assert (await api.get(f"{BASE}?attention=false")).json["items"] == []


async def test_lists_come_newest_first_and_in_pages(api: Api) -> None:
    placed = [(await api.order(SKU)).json["id"] for _ in range(3)]
    held = [(await api.order(SKU, confirm="manual")).json["id"] for _ in range(2)]
    newest_first = [*held[::-1], *placed[::-1]]

    async def pages(query: str) -> list[list[str]]:
        found, cursor = [], ""
        while True:
            page = await api.get(f"{BASE}?{query}{cursor}")
            assert page.status == 200
            found.append([one["id"] for one in page.json["items"]])
            if page.json["next_cursor"] is None:
                return found
            cursor = f"&cursor={page.json['next_cursor']}"

    assert await pages("") == [newest_first]
    assert await pages("limit=5") == [newest_first]
    assert await pages("limit=2") == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert await pages("limit=1&state=confirmed") == [[id] for id in placed[::-1]]
    assert await pages("state=tried") == [held[::-1]]
    assert await pages("state=cancelled") == [[]]
    shown = (await api.get(f"{BASE}/{held[0]}")).json
    assert shown in (await api.get(f"{BASE}?state=tried")).json["items"]


async def test_the_log_tells_everything_in_order(api: Api) -> None:
    placed = await api.order(SKU, payment_method="tok_capture_fails_twice", query="?wait=30")
    assert placed.json["state"] == "confirmed"
    answer = await api.get(f"{BASE}/{placed.json['id']}/log")
    assert answer.status == 200
    entries = answer.json["entries"]
    assert [e["at"] for e in entries] == sorted(e["at"] for e in entries)
    own = [(e["event"], e["from"], e["to"]) for e in entries if e["subject"] == "transaction"]
    assert own[0] == ("begin", None, "trying")
    assert ("commit", "trying", "confirming") in own
    assert own[-1] == ("confirm_succeeded", "confirming", "confirmed")
    stock = [(e["event"], e["from"], e["to"]) for e in entries if e["subject"] == "inventory"]
    assert stock == [("try", None, "tried"), ("confirm", "tried", "confirmed")]
    exchanges = [exchange for e in entries for exchange in e["exchanges"] or []]
    assert [(x["operation"], x["outcome"]) for x in exchanges] == [
        ("authorise", "succeeded"),
        ("capture", "unknown"),
        ("capture", "unknown"),
        ("capture", "succeeded"),
    ]
    assert all(x["request"] and x["response"] and x["status"] and x["duration_seconds"] > 0 for x in exchanges)
    assert [x.get("attempt", 1) for x in exchanges] == [1, 1, 2, 3]
    asked = placed.headers["x-correlation-id"]
    assert {e["correlation_id"] for e in entries} == {asked}
    assert {e["actor"] for e in entries} == {"api"}


async def test_the_log_says_who_did_what_under_which_request(api: Api) -> None:
    begun = await api.order(SKU, confirm="manual")
    done = await api.post(f"{BASE}/{begun.json['id']}/cancel", headers={"X-Correlation-ID": "by-hand-7"})
    assert done.status == 200
    entries = (await api.get(f"{BASE}/{begun.json['id']}/log")).json["entries"]
    by_hand = [(e["subject"], e["event"]) for e in entries if e["correlation_id"] == "by-hand-7"]
    assert by_hand[0] == ("transaction", "cancel")
    assert {subject for subject, _ in by_hand} == {"transaction", "inventory", "payments", "orders"}


async def test_what_is_unknown_is_not_found(api: Api) -> None:
    for path in (
        f"{BASE}/{some_id()}",
        f"{BASE}/{some_id()}/log",
        f"/v1/orders/{some_id()}",
        f"/v1/payments/{some_id()}",
    ):
        answer = await api.get(path)
        assert (answer.status, check_problem(answer)["code"]) == (404, "not_found")


async def test_the_last_unit_is_sold_once_to_two_hundred_clients(api: Api, sandbox: SandboxProcess) -> None:
    await api.stock("LAST", 1)
    answers = await asyncio.gather(*(api.order("LAST") for _ in range(200)))
    sold = [answer for answer in answers if answer.status == 201]
    assert len(sold) == 1
    refused = [answer for answer in answers if answer.status != 201]
    assert {(answer.status, answer.code) for answer in refused} == {(409, "transaction_refused")}
    item = (await api.get("/v1/inventory/items/LAST")).json
    assert (item["on_hand"], item["available"], item["held"], item["sold"]) == (0, 0, 0, 1)
    assert sandbox.account(branch(sold[0], "payments")["id"])["effects"]["capture"] == 1
    one = await api.get(refused[0].headers["location"])
    assert sandbox.ledger(reference=branch(one, "payments")["id"])["operations"] == []
