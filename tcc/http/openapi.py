"""OpenAPI for handlers that read their bodies themselves: request bodies and replies from msgspec types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar.openapi.spec import (
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    RequestBody,
    Schema,
)
from msgspec import Meta

from tcc.http.problems import MEDIA_TYPE, Problem
from tcc.idempotency import MAX_KEY_LENGTH

_PROBLEM = "A problem (RFC 9457). `code` is stable; see docs/errors.md."


def schema_of(type_: Any) -> Schema:
    """The JSON schema of a msgspec type, with its components written in place."""
    (out,), components = msgspec.json.schema_components([type_], ref_template="{name}")
    return _Verbatim(_inlined(out, components))


def _inlined(node: Any, components: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(components[node["$ref"]], components)
        return {key: _inlined(value, components) for key, value in node.items()}
    if isinstance(node, list):
        return [_inlined(item, components) for item in node]
    return node


class _Verbatim(Schema):
    """A schema that is already JSON schema."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__()
        self._document = document

    def to_schema(self) -> dict[str, Any]:
        return self._document

    def __hash__(self) -> int:
        return id(self)


def _content(type_: Any, media_type: str = "application/json") -> dict[str, OpenAPIMediaType]:
    return {media_type: OpenAPIMediaType(schema=schema_of(type_))}


def operation(
    *,
    body: Any = None,
    replies: dict[int, tuple[str, Any]],
    problems: dict[int, str] | None = None,
    keyed: bool | None = None,
    query: dict[str, tuple[str, Any]] | None = None,
) -> type[Operation]:
    """An operation with a body of type `body`, replies by status as (description, type), and problems by status.

    `keyed`: whether an Idempotency-Key is required (True), honoured (False) or of no use (None).
    """
    responses: dict[str, Any] = {}
    for status, (description, type_) in replies.items():
        headers: dict[str, Any] = {
            "X-Correlation-ID": OpenAPIHeader(schema=schema_of(str), description="Of this request.")
        }
        if keyed is not None:
            headers["Idempotency-Replayed"] = OpenAPIHeader(
                schema=schema_of(str), description="`true` on a stored reply."
            )
        responses[str(status)] = OpenAPIResponse(
            description=description, headers=headers, content=_content(type_) if type_ is not None else None
        )
    for status, description in (problems or {}).items():
        responses[str(status)] = OpenAPIResponse(description=description, content=_content(Problem, MEDIA_TYPE))
    responses.setdefault("default", OpenAPIResponse(description=_PROBLEM, content=_content(Problem, MEDIA_TYPE)))
    parameters: list[Any] = [
        Parameter(name=name, param_in="query", required=False, schema=schema_of(type_), description=description)
        for name, (description, type_) in (query or {}).items()
    ]
    if keyed is not None:
        parameters.append(
            Parameter(
                name="Idempotency-Key",
                param_in="header",
                required=keyed,
                schema=schema_of(Annotated[str, Meta(min_length=1, max_length=MAX_KEY_LENGTH)]),
                description="New for every new intent, the same for every repeat of it.",
            )
        )

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            self.responses = responses
            self.parameters = [*(self.parameters or []), *parameters]
            if body is not None:
                self.request_body = RequestBody(content=_content(body), required=True)

    return Described
