"""The contract that every resource keeps over HTTP: one battery, run for each of the registry."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import pytest

from resources.registry import RESOURCES
from tcc.service import Service
from tests.client import Api, new_key
from tests.http.samples import NAMES, PLENTY, SAMPLES, SKU, Holder, some_id

HELD = (201, "tried")
NOT_FOUND = (404, "not_found")
EXPIRED = (409, "expired")
CANCELLED = (409, "already_cancelled")
CONFIRMED = (409, "already_confirmed")
REFUSED = (409, "already_refused")

EVENTS = ("try", "try another claim", "confirm", "put", "cancel", "delete", "extend")
# What each event is answered with, in the order of EVENTS: the status, and the state or the problem's code.
ATTEMPTS: dict[str, tuple[tuple[int, str | None], ...]] = {
    "unknown": (HELD, HELD, NOT_FOUND, NOT_FOUND, (200, "cancelled"), (204, None), NOT_FOUND),
    "buried": (CANCELLED, CANCELLED, CANCELLED, CANCELLED, (200, "cancelled"), (204, None), CANCELLED),
    "tried": (
        HELD,
        (409, "id_reused"),
        (200, "confirmed"),
        (204, None),
        (200, "cancelled"),
        (204, None),
        (200, "tried"),
    ),
    "confirmed": (
        *((201, "confirmed"), (409, "id_reused"), (200, "confirmed"), (204, None)),
        *(CONFIRMED, CONFIRMED, CONFIRMED),
    ),
    "cancelled": (CANCELLED, CANCELLED, CANCELLED, CANCELLED, (200, "cancelled"), (204, None), CANCELLED),
    "overdue": (HELD, (409, "id_reused"), EXPIRED, EXPIRED, (200, "cancelled"), (204, None), EXPIRED),
    "expired": (EXPIRED, EXPIRED, EXPIRED, EXPIRED, (200, "cancelled"), (204, None), EXPIRED),
}


@pytest.fixture(params=NAMES)
async def holder(request: pytest.FixtureRequest, api: Api, service: Service) -> Holder:
    """Somebody who holds the resource."""
    await api.stock(SKU, PLENTY - 1)
    return Holder(api, service, request.param)


async def _attempts(holder: Holder, state: str) -> dict[str, tuple[int, str | None]]:
    found = {}
    for event in EVENTS:
        answer = await holder.ask(event, await holder.reach(state))
        body: dict[str, Any] = answer.json if answer.body else {}
        found[event] = (answer.status, body.get("code") or body.get("state"))
    return found


def test_every_resource_has_a_sample() -> None:
    assert set(SAMPLES) == set(NAMES)


@pytest.mark.parametrize("state", ATTEMPTS)
async def test_every_event_is_answered_as_the_state_demands(holder: Holder, state: str) -> None:
    assert await _attempts(holder, state) == dict(zip(EVENTS, ATTEMPTS[state], strict=True))


@pytest.mark.parametrize("resource", [name for name, sample in SAMPLES.items() if sample.refusal])
async def test_what_was_refused_stays_refused(api: Api, service: Service, resource: str) -> None:
    await api.stock(SKU, PLENTY - 1)
    holder = Holder(api, service, resource)
    first = await holder.try_(some_id(), holder.sample.refused)
    assert (first.status, first.code) == holder.sample.refusal
    id = await holder.reach("refused")
    assert (await holder.try_(id, holder.sample.refused)).code == first.code
    found = {}
    for event in ("confirm", "put", "extend", "cancel", "delete"):
        answer = await holder.ask(event, id)
        found[event] = (answer.status, answer.json.get("code") or answer.json.get("state") if answer.body else None)
    assert found == {
        "confirm": REFUSED,
        "put": REFUSED,
        "extend": REFUSED,
        "cancel": (200, "refused"),
        "delete": (204, None),
    }
    assert (await holder.shown(id))["state"] == "refused"


@pytest.mark.parametrize("resource", [name for name, sample in SAMPLES.items() if sample.slow])
async def test_what_is_still_being_tried_can_only_be_cancelled(start_service: Any, serve: Any, resource: str) -> None:
    service = start_service(TCC_DEFAULT_WAIT_SECONDS="0.05")
    holder = Holder(await serve(service), service, resource)
    id = await holder.reach("trying")
    answers = {event: await holder.ask(event, id) for event in ("confirm", "extend")}
    assert {event: (a.status, a.code) for event, a in answers.items()} == dict.fromkeys(answers, (409, "not_ready"))
    assert all(a.json["retryable"] and a.headers["retry-after"] for a in answers.values())
    assert (await holder.try_(id, holder.sample.slow)).status == 202
    assert (await holder.ask("cancel", id)).json["state"] in ("cancelling", "cancelled")


async def test_a_reservation_says_what_it_is_from_its_try_on(holder: Holder) -> None:
    tried = await holder.api.post(holder.base, {**holder.sample.claim, "reference": "order 7"}, key=new_key())
    assert tried.status == 201
    body = tried.json
    assert (body["resource"], body["state"], body["reference"]) == (holder.resource, "tried", "order 7")
    assert tried.headers["location"] == f"{holder.base}/{body['id']}"
    shown = await holder.shown(body["id"])
    assert shown == body
    claim = next(resource.claim for resource in RESOURCES if resource.name == holder.resource)
    assert msgspec.convert(shown["claim"], claim) == msgspec.convert(holder.sample.claim, claim)


async def test_no_length_is_given_of_a_body_that_is_not_there(holder: Holder) -> None:
    done = await holder.ask("put", await holder.reach("tried"))
    assert (done.status, done.body) == (204, b"")
    assert "content-length" not in done.headers


async def test_extending_holds_longer_and_never_shorter(holder: Holder) -> None:
    id = await holder.reach("tried")
    ends = [datetime.fromisoformat((await holder.shown(id))["expires_at"])]
    for seconds in (3600, 60):
        extended = await holder.api.post(f"{holder.base}/{id}/extend", {"ttl_seconds": seconds})
        assert extended.status == 200
        ends.append(datetime.fromisoformat(extended.json["expires_at"]))
    assert ends[0] < ends[1] == ends[2]


async def test_a_branch_follows_its_transaction_alone(holder: Holder) -> None:
    branches = [{"resource": holder.resource, "claim": holder.sample.claim}]
    begun = await holder.api.post("/v1/transactions", {"branches": branches}, key=new_key())
    assert begun.status == 201
    (branch,) = begun.json["branches"]
    found = {event: await holder.ask(event, branch["id"]) for event in ("confirm", "put", "cancel", "delete", "extend")}
    assert {event: (a.status, a.code) for event, a in found.items()} == dict.fromkeys(
        found, (409, "part_of_transaction")
    )
    assert (await holder.ask("try", branch["id"])).code == "id_reused"
    assert (await holder.shown(branch["id"]))["state"] == "tried"
    done = await holder.api.post(f"/v1/transactions/{begun.json['id']}/confirm")
    assert (done.status, done.json["state"]) == (200, "confirmed")
    assert (await holder.shown(branch["id"]))["state"] == "confirmed"


async def test_ids_of_one_resource_mean_nothing_to_another(api: Api, service: Service) -> None:
    await api.stock(SKU, PLENTY - 1)
    id = some_id()
    states = [(await Holder(api, service, resource).try_(id)).status for resource in NAMES]
    assert states == [201] * len(NAMES)
    assert (await Holder(api, service, NAMES[0]).ask("cancel", id)).status == 200
    assert [(await Holder(api, service, resource).shown(id))["state"] for resource in NAMES] == [
        "cancelled",
        *["tried"] * (len(NAMES) - 1),
    ]
