"""More work than can be done: new work is refused at once, and what was begun goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tcc.service import Service
from tests.client import Api
from tests.http.records import footprint
from tests.http.refusals import check_problem
from tests.http.samples import SKU
from tests.http.wire import send


class Crowd:
    """Whether the service has more than enough to do."""

    def __init__(self) -> None:
        self.is_there = True

    def __call__(self) -> bool:
        return self.is_there


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture
async def api(service: Service, serve: Any, crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> Api:
    """An API before a service that goes by the crowd."""
    monkeypatch.setattr(service, "crowded", crowd, raising=False)
    put: Api = await serve(service)
    return put


@pytest.mark.parametrize("target", ["/v1/inventory/reservations", "/v1/transactions", "/v1/transactions?wait=0"])
async def test_new_work_is_refused_before_its_body_has_come(api: Api, service: Service, target: str) -> None:
    before = await footprint(service)
    answer = await send(api, f"POST {target} HTTP/1.1\r\nHost: tcc\r\nContent-Length: 1000\r\n\r\n".encode())
    problem = check_problem(answer)
    assert (answer.status, problem["code"], problem["retryable"]) == (503, "overloaded", True)
    assert int(answer.headers["retry-after"]) > 0
    assert await footprint(service) == before


async def test_a_connection_on_which_work_was_refused_is_good_for_more(api: Api) -> None:
    for _ in range(3):
        assert (await api.hold(SKU, reference="x" * 200)).code == "overloaded"
        assert (await api.stock(SKU, 5)).status == 200


async def test_what_was_begun_goes_on(api: Api, crowd: Crowd) -> None:
    crowd.is_there = False
    await api.stock(SKU, 5)
    held = (await api.hold(SKU)).json["id"]
    begun = (await api.order(SKU, confirm="manual")).json["id"]
    crowd.is_there = True
    assert (await api.post(f"/v1/inventory/reservations/{held}/confirm")).json["state"] == "confirmed"
    assert (await api.post(f"/v1/transactions/{begun}/confirm")).json["state"] == "confirmed"
