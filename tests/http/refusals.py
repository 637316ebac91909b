"""Bad requests as tables, and what must be true of the answer to each."""

from __future__ import annotations

from typing import Any

import msgspec

from tcc.service import Service
from tests.client import Answer, Api
from tests.http.records import footprint


class Bad(msgspec.Struct, frozen=True):
    """A request that must be refused, and how: status, code, and the field that is at fault."""

    expected: tuple[int, str, str]
    method: str
    path: str
    body: Any = None
    key: str | None = "a key"
    headers: dict[str, str] = {}


def check_problem(answer: Answer) -> dict[str, Any]:
    """The body of an answer that is a problem in all its parts."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json
    assert problem["status"] == answer.status
    assert problem["type"] == f"urn:tcc:problem:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem["retryable"], bool)
    assert problem["correlation_id"] == answer.headers["x-correlation-id"]
    assert answer.headers["traceparent"]
    for error in problem.get("errors", []):
        assert error["field"]
        assert error["code"]
        assert error["detail"]
    return problem


async def refuse_all(api: Api, service: Service, table: dict[str, Bad]) -> None:
    """Send all; each is refused as expected, and together they leave nothing behind."""
    before = await footprint(service)
    wrong = {}
    for name, bad in table.items():
        answer = await api.ask(bad.method, bad.path, bad.body, key=bad.key, headers=bad.headers)
        problem = check_problem(answer)
        found = (answer.status, problem["code"], problem["errors"][0]["field"])
        if found != bad.expected:
            wrong[name] = (found, bad.expected, problem["detail"])
    assert not wrong
    assert await footprint(service) == before
