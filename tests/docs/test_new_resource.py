"""docs/new-resource.md, done: its files are written, registered, migrated, and used over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import text

import resources
from tcc.checks import findings
from tcc.db import Database
from tcc.dev.servers import PostgresServer
from tcc.resource import Resource
from tcc.schema import migrate
from tcc.service import Service, open_service
from tcc.settings import Settings
from tests.client import Answer, Api, new_key, serving
from tests.docs.pages import DOCS, blocks
from tests.docs.shell import run_as_pasted

PAGE = DOCS / "new-resource.md"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Resource]]:
    """The resources of the page's registry, its folder being one more place where `resources` are found."""
    home = tmp_path_factory.mktemp("new-resource")
    for block in blocks(PAGE, "python"):
        path = home / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    patch = pytest.MonkeyPatch()
    patch.setattr(resources, "__path__", [*resources.__path__, str(home / "resources")])
    importlib.invalidate_caches()
    registry: dict[str, Sequence[Resource]] = {}
    exec((home / "resources" / "registry.py").read_text(), registry)
    yield registry["RESOURCES"]
    patch.undo()
    vars(resources).pop("seats", None)
    for name in [name for name in sys.modules if name.startswith("resources.seats")]:
        del sys.modules[name]


@pytest_asyncio.fixture
async def service(
    environment: dict[str, str], postgres: PostgresServer, registered: Sequence[Resource]
) -> AsyncIterator[Service]:
    """A service with the four resources, on a fresh database."""
    name = f"tcc_seats_{next(_numbers)}"
    admin = Database(postgres.url("postgres"), application="tests")
    connection = await admin.reads.connect()
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    await connection.execute(text(f"CREATE DATABASE {name}"))
    await connection.close()
    await admin.close()
    database = Database(postgres.url(name), application="tests")
    assert "seats_0001" in await migrate(database, registered, registered)
    await database.close()
    given = environment | {"TCC_DATABASE_URL": postgres.url(name)}
    opened = open_service(Settings.from_environment(given), registered, given, application="tcc-test")
    yield opened
    await opened.close(patience_seconds=5)


@pytest_asyncio.fixture
async def api(service: Service) -> AsyncIterator[Api]:
    async with serving(service) as running:
        yield running


async def _hold(api: Api, *seats: str) -> Answer:
    return await api.post("/v1/seats/reservations", {"show": "hamlet", "seats": seats}, key=new_key())


async def _plan(api: Api) -> dict[str, str]:
    plan: dict[str, str] = (await api.get("/v1/seats/shows/hamlet")).json["seats"]
    return plan


async def _put(api: Api, *seats: str) -> None:
    assert (await api.put("/v1/seats/shows/hamlet", {"seats": seats})).status == 200


async def _broken(service: Service) -> list[str]:
    checks = findings(service, tenant_id="default", recent=1000, reconcile=False)
    return [finding.detail async for _, found in checks for finding in found]


async def test_the_commands_of_the_page_do_what_it_says(api: Api) -> None:
    (block,) = blocks(PAGE, "sh")
    await run_as_pasted(block, api.url)


async def test_seats_are_tried_confirmed_and_cancelled(api: Api, service: Service) -> None:
    await _put(api, "A1", "A2", "A3")
    kept, given_back = (await _hold(api, "A1", "A2")), (await _hold(api, "A3"))
    assert (kept.status, given_back.status) == (201, 201)
    assert await _plan(api) == {"A1": "held", "A2": "held", "A3": "held"}

    base = "/v1/seats/reservations"
    assert (await api.post(f"{base}/{kept.json['id']}/confirm")).json["state"] == "confirmed"
    assert (await api.post(f"{base}/{given_back.json['id']}/cancel")).json["state"] == "cancelled"

    assert await _plan(api) == {"A1": "sold", "A2": "sold", "A3": "free"}
    assert await _broken(service) == []


async def test_a_seat_that_is_taken_or_not_there_is_refused_by_name(api: Api) -> None:
    await _put(api, "A1", "A2")
    await _hold(api, "A1")

    taken = await _hold(api, "A2", "A1")
    assert (taken.status, taken.code) == (409, "seat_taken")
    assert [(e["field"], e["detail"]) for e in taken.json["errors"]] == [("seats[1]", "A1 is held.")]
    unknown = await _hold(api, "Z9")
    assert (unknown.status, unknown.code) == (422, "unknown_seat")
    twice = await _hold(api, "A2", "A2")
    assert (twice.status, twice.code) == (422, "invalid_request")

    assert await _plan(api) == {"A1": "held", "A2": "free"}


async def test_of_many_who_want_the_same_seats_at_once_each_seat_goes_to_one(api: Api, service: Service) -> None:
    seats = [f"B{number}" for number in range(1, 9)]
    await _put(api, *seats)
    pairs = [(seats[n % 8], seats[(n + 1) % 8]) for n in range(64)]
    answers = await asyncio.gather(*(_hold(api, *pair) for pair in pairs))
    held = [seat for answer, pair in zip(answers, pairs, strict=True) if answer.status == 201 for seat in pair]
    assert len(held) == len(set(held))
    assert held
    assert {seat for seat, state in (await _plan(api)).items() if state == "held"} == set(held)
    assert await _broken(service) == []


async def test_a_late_try_of_cancelled_seats_holds_nothing(api: Api) -> None:
    await _put(api, "A1")
    id = str(uuid4())
    assert (await api.post(f"/v1/seats/reservations/{id}/cancel")).status == 200
    late = await api.post("/v1/seats/reservations", {"id": id, "show": "hamlet", "seats": ["A1"]})
    assert (late.status, late.code) == (409, "already_cancelled")
    assert await _plan(api) == {"A1": "free"}


@pytest.mark.parametrize(
    ("payment_method", "status", "state"), [("tok_ok", 201, "sold"), ("tok_declined", 409, "free")]
)
async def test_seats_and_a_card_confirm_or_cancel_together(
    api: Api, service: Service, payment_method: str, status: int, state: str
) -> None:
    await _put(api, "A1")
    branches = [
        {"resource": "seats", "claim": {"show": "hamlet", "seats": ["A1"]}},
        {"resource": "payments", "claim": {"amount": 4500, "currency": "EUR", "payment_method": payment_method}},
    ]
    answer = await api.post("/v1/transactions", {"branches": branches, "confirm": "auto"}, key=new_key())
    assert answer.status == status, answer.json
    assert await _plan(api) == {"A1": state}
    assert await _broken(service) == []


async def test_the_new_resource_is_described_and_counted_like_any_other(api: Api) -> None:
    await _put(api, "A1")
    await _hold(api, "A1")
    paths = (await api.get("/schema/openapi.json")).json["paths"]
    assert "/v1/seats/reservations/{reservation_id}/confirm" in paths
    assert 'tcc_tries_total{outcome="done",resource="seats"} 1.0' in (await api.get("/metrics")).body.decode()


def test_the_registry_of_the_page_is_ours_and_one_more(registered: Sequence[Resource]) -> None:
    from resources.registry import RESOURCES

    assert [resource.name for resource in registered if resource.name != "seats"] == [r.name for r in RESOURCES]


def test_every_block_of_the_page_names_its_file() -> None:
    assert [Path(block.splitlines()[0].removeprefix("# ")).name for block in blocks(PAGE, "python")] == [
        "claims.py",
        "effects.py",
        "0001_seats.py",
        "api.py",
        "__init__.py",
        "registry.py",
    ]
