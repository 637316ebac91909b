"""What requests may say, as types: made from the resources' claims, so that one pass reads and checks all of a body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import msgspec
from msgspec import Meta

from tcc.http.requests import invalid_field
from tcc.resource import Resource
from tcc.settings import Settings

Reference = Annotated[str, Meta(min_length=1, max_length=255)]
TtlSeconds = Annotated[float, Meta(ge=1)]


class Extend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long from now it shall be held, in seconds. Never shortens a hold."""

    ttl_seconds: TtlSeconds


def try_type(resource: Resource) -> type[Any]:
    """The body of a Try: the claim's fields, and how to hold it."""
    return msgspec.defstruct(
        f"{resource.name.capitalize()}Try",
        [("id", UUID | None, None), ("ttl_seconds", TtlSeconds | None, None), ("reference", Reference | None, None)],
        bases=(resource.claim,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


def branch_type(resource: Resource) -> type[Any]:
    """A branch of a transaction on one resource: `{"resource": its name, "claim": …}`."""
    return msgspec.defstruct(
        f"{resource.name.capitalize()}Branch",
        [("claim", resource.claim)],
        tag_field="resource",
        tag=resource.name,
        frozen=True,
        forbid_unknown_fields=True,
    )


def begin_type(branch_types: Iterable[type[Any]]) -> type[Any]:
    """What is to be held together. `auto` confirms as soon as everything is held, `manual` waits to be told."""
    branch: Any = Union[tuple(branch_types)]  # noqa: UP007 - there are as many as there are resources
    return msgspec.defstruct(
        "Begin",
        [
            ("branches", Annotated[list[branch], Meta(min_length=1, max_length=20)]),
            ("confirm", Literal["auto", "manual"], "manual"),
            ("ttl_seconds", TtlSeconds | None, None),
            ("reference", Reference | None, None),
        ],
        frozen=True,
        forbid_unknown_fields=True,
    )


def ttl_of(given: float | None, settings: Settings) -> float:
    """The time to live asked for, or the usual one, in whole milliseconds: smaller parts of a second PostgreSQL and
    Python round each in its own way. Raises `Rejected` beyond the longest allowed."""
    if given is not None and given > settings.max_ttl_seconds:
        raise invalid_field("ttl_seconds", "out_of_bounds", f"At most {settings.max_ttl_seconds:g} seconds.")
    return settings.default_ttl_seconds if given is None else round(given, 3)
