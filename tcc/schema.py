"""The schema of a database: brought up to date, and checked at start.

Every database has the protocol's tables, and those of the resources that live in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from tcc.db import Database
from tcc.resource import Resource

_LOCK = 7_226_001
"""An advisory lock, held for the transaction: two `tcc migrate` at once run one after the other."""


class SchemaMismatch(Exception):
    """The database's schema isn't the one this version of the code works with. Says what to do."""


def _config(resources: Sequence[Resource]) -> Config:
    here = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(here))
    config.set_main_option("path_separator", "os")
    folders = [
        str(here / "versions"),
        *(resource.migrations for resource in resources if resource.migrations),
    ]
    config.set_main_option("version_locations", os.pathsep.join(folders))
    return config


def _labels(resources: Sequence[Resource]) -> list[str]:
    return ["tcc", *(resource.name for resource in resources if resource.migrations)]


async def migrate(database: Database, resources: Sequence[Resource]) -> list[str]:
    """Bring a database up to date. Returns the revisions it has now."""

    def run(connection: Connection) -> list[str]:
        config = _config(resources)
        config.attributes["connection"] = connection
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
        connection.commit()
        try:
            for label in _labels(resources):
                command.upgrade(config, f"{label}@head")
                connection.commit()
        finally:
            connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
            connection.commit()
        return sorted(MigrationContext.configure(connection).get_current_heads())

    async with database.reads.connect() as connection:
        try:
            return await connection.run_sync(run)
        finally:
            await connection.invalidate()  # the session's time limits were lifted


async def check_schema(database: Database, resources: Sequence[Resource]) -> None:
    """Raise `SchemaMismatch` unless the database is where this code expects it."""
    script = ScriptDirectory.from_config(_config(resources))
    wanted = {script.get_revision(f"{label}@head").revision for label in _labels(resources)}

    def run(connection: Connection) -> set[str]:
        return set(MigrationContext.configure(connection).get_current_heads())

    async with database.reads.connect() as connection:
        present = await connection.run_sync(run)
    if wanted <= present:
        return
    known = {revision.revision for revision in script.walk_revisions("base", "heads")}
    if present - known:
        raise SchemaMismatch(
            f"The schema of {database.name} is newer than this version of tcc ({', '.join(sorted(present - known))}): "
            "run a newer tcc, or restore a matching database."
        )
    raise SchemaMismatch(f"The schema of {database.name} is not up to date: run `tcc migrate` first.")
