"""Settings, read once from environment variables by a composition root, and handed down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class SettingsError(Exception):
    """A setting is missing or makes no sense. The message says which, and what would be right."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that an operator may set; each field is `TCC_` and its name in capitals."""

    database_url: str
    """PostgreSQL: the coordinator's, and every resource's that has none of its own (TCC_<RESOURCE>_DATABASE_URL)."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Valkey or Redis: only wakes workers early."""
    database_pooler: bool = False
    """A pooler in transaction mode stands between us and PostgreSQL."""
    log_format: Literal["json", "console"] = "json"
    """`json`, or `console` for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    default_ttl_seconds: Positive = 900
    max_ttl_seconds: Positive = 7 * 86400
    grace_seconds: NotNegative = 60
    """How much longer than its transaction a branch is held."""
    lease_seconds: Positive = 15
    """How long whoever works on something has it to themselves, before a sweep takes it up."""
    default_wait_seconds: NotNegative = 10
    """How long a request waits for its transaction before it is answered 202."""
    retry_base_seconds: Positive = 0.5
    retry_cap_seconds: Positive = 60
    max_attempts: Count = 300
    """After so many unanswered calls in a row a person must look: with the cap above, after about five hours."""
    key_retention_seconds: Positive = 72 * 3600
    batch_size: Count = 64
    queue_size: Count = 320
    sweep_interval_seconds: Positive = 1.0
    sweep_size: Count = 500
    reconcile_interval_seconds: Positive = 300
    max_body_bytes: Count = 256 * 1024
    drain_seconds: NotNegative = 5
    """How long the API goes on serving after it was told to stop, and says on /readyz that it will."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises `SettingsError` with one sentence that says what to do."""
        given = {
            field: environment[f"TCC_{field.upper()}"]
            for field in cls.__struct_fields__
            if environment.get(f"TCC_{field.upper()}")
        }
        if "database_url" not in given:
            raise SettingsError(
                "TCC_DATABASE_URL is not set: name a PostgreSQL database, such as postgresql://user@host:5432/tcc, "
                "or run `tcc dev`, which brings its own."
            )
        try:
            return msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            field = str(error).rpartition("$.")[2].rstrip("`")
            raise SettingsError(
                f"TCC_{field.upper()} doesn't make sense: {str(error).partition(' - at')[0]}."
            ) from error


def resource_database_url(resource: str, settings: Settings, environment: Mapping[str, str]) -> str:
    """The database that owns a resource's rows."""
    return environment.get(f"TCC_{resource.upper()}_DATABASE_URL") or settings.database_url
