"""OpenAPI says what there is, and the one map says a status for every code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resources.registry import RESOURCES
from tcc.errors import CODES
from tcc.http.problems import STATUSES, Problems
from tests.client import Api
from tests.http.samples import NAMES

METHODS = {"get", "put", "post", "delete"}
DESIGN = {
    "/v1/transactions": {"get", "post"},
    "/v1/transactions/{transaction_id}": {"get"},
    "/v1/transactions/{transaction_id}/log": {"get"},
    "/v1/transactions/{transaction_id}/confirm": {"post"},
    "/v1/transactions/{transaction_id}/cancel": {"post"},
    "/v1/transactions/{transaction_id}/extend": {"post"},
    "/v1/inventory/items/{sku}": {"get", "put"},
    "/v1/orders/{id}": {"get"},
    "/v1/payments/{id}": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}
for _name in NAMES:
    DESIGN |= {
        f"/v1/{_name}/reservations": {"post"},
        f"/v1/{_name}/reservations/{{reservation_id}}": {"get", "put", "delete"},
        f"/v1/{_name}/reservations/{{reservation_id}}/confirm": {"post"},
        f"/v1/{_name}/reservations/{{reservation_id}}/cancel": {"post"},
        f"/v1/{_name}/reservations/{{reservation_id}}/extend": {"post"},
    }


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    """The document as it is served."""
    answer = await api.get("/schema/openapi.json")
    assert answer.status == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation, by method and path."""
    return {
        f"{method} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


async def test_every_route_of_the_design_is_described_and_no_other(document: dict[str, Any]) -> None:
    found = {path: METHODS & item.keys() for path, item in document["paths"].items()}
    assert found == DESIGN


async def test_the_document_is_whole(document: dict[str, Any]) -> None:
    """What OpenAPI 3.1 requires of the parts that are used here."""
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"]
    assert document["info"]["version"]
    described = operations(document)
    ids = [operation["operationId"] for operation in described.values()]
    assert len(set(ids)) == len(ids)
    for name, operation in described.items():
        path = name.partition(" ")[2]
        assert operation["summary"], name
        placeholders = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        parameters = operation.get("parameters", [])
        assert len({(p["name"], p["in"]) for p in parameters}) == len(parameters), name
        assert {p["name"] for p in parameters if p["in"] == "path"} == placeholders, name
        assert all(p["required"] for p in parameters if p["in"] == "path"), name
        assert all(p["schema"] for p in parameters), name
        assert operation["responses"], name
        for status, response in operation["responses"].items():
            assert status == "default" or 100 <= int(status) < 600, name
            assert response["description"], name
            assert all("schema" in content for content in (response.get("content") or {}).values()), name
        default = operation["responses"]["default"]["content"]
        assert set(default["application/problem+json"]["schema"]["required"]) >= {"type", "title", "status", "code"}


async def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                at: Any = document
                for part in reference.removeprefix("#/").split("/"):
                    at = at[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


async def test_bodies_are_described_as_they_are_read(document: dict[str, Any]) -> None:
    def body(path: str) -> dict[str, Any]:
        request = document["paths"][path]["post"]["requestBody"]
        assert request["required"] is True
        schema: dict[str, Any] = request["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        return schema

    for resource in RESOURCES:
        tried = body(f"/v1/{resource.name}/reservations")
        assert set(tried["properties"]) == {"id", "ttl_seconds", "reference", *resource.claim.__struct_fields__}
        assert body(f"/v1/{resource.name}/reservations/{{reservation_id}}/extend")["required"] == ["ttl_seconds"]
    begun = body("/v1/transactions")
    assert set(begun["properties"]) == {"branches", "confirm", "ttl_seconds", "reference"}
    branches = begun["properties"]["branches"]["items"]["anyOf"]
    assert [branch["properties"]["resource"]["enum"] for branch in branches] == [[name] for name in NAMES]
    assert all(branch["properties"]["claim"]["properties"] for branch in branches)


async def test_keys_are_described_where_they_are_honoured(document: dict[str, Any]) -> None:
    keyed = {
        name: parameter["required"]
        for name, operation in operations(document).items()
        for parameter in operation.get("parameters", [])
        if parameter["name"] == "Idempotency-Key"
    }
    assert set(keyed) == {name for name in operations(document) if name.startswith("post ")}
    assert [name for name, required in keyed.items() if required] == ["post /v1/transactions"]


async def test_the_page_for_people_is_there(api: Api) -> None:
    page = await api.get("/schema")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")


def test_every_code_has_a_status_and_every_status_a_code() -> None:
    assert set(STATUSES) == set(CODES)
    assert all(400 <= status < 600 for status in STATUSES.values())


def test_every_refusal_of_a_resource_has_a_status_and_a_code_of_its_own() -> None:
    problems = Problems(RESOURCES)
    refusals = [code for resource in RESOURCES for code in resource.refusals]
    assert len(set(refusals)) == len(refusals)
    assert not set(refusals) & set(CODES)
    assert {problems.statuses[code] for code in refusals} <= {402, 409, 422}
    assert set(problems.statuses) == set(problems.kinds)
