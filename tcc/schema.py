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
from tcc.procedure import Procedure
from tcc.resource import Resource

_LOCK = 7_226_001
"""An advisory lock, held for the transaction: two `tcc migrate` at once run one after the other."""


class SchemaMismatch(Exception):
    """The database's schema isn't the one this version of the code works with. Says what to do."""


def _config(known: Sequence[Resource]) -> Config:
    here = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(here))
    config.set_main_option("path_separator", "os")
    folders = [
        str(here / "versions"),
        *(resource.migrations for resource in known if resource.migrations),
    ]
    config.set_main_option("version_locations", os.pathsep.join(folders))
    return config


def _labels(resources: Sequence[Resource]) -> list[str]:
    return ["tcc", *(resource.name for resource in resources if resource.migrations)]


async def migrate(database: Database, resources: Sequence[Resource], known: Sequence[Resource]) -> list[str]:
    """Bring a database up to date for the resources that live in it. Returns the revisions it has now.

    `known`: all resources there are; one of them may have lived in it before.
    """

    def run(connection: Connection) -> list[str]:
        config = _config(known)
        config.attributes["connection"] = connection
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
        connection.commit()
        try:
            _refuse_newer(database.name, config, connection)
            for label in _labels(resources):
                command.upgrade(config, f"{label}@head")
                connection.commit()
            connection.exec_driver_sql(Procedure(known).create)
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


def _refuse_newer(name: str, config: Config, connection: Connection) -> None:
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions("base", "heads")}
    if newer := set(MigrationContext.configure(connection).get_current_heads()) - known:
        raise SchemaMismatch(
            f"The schema of {name} is newer than this version of tcc ({', '.join(sorted(newer))}): "
            "run a newer tcc, or restore a matching database."
        )


async def check_schema(
    database: Database, resources: Sequence[Resource], known: Sequence[Resource], *, newer_will_do: bool = False
) -> None:
    """Raise `SchemaMismatch` unless the database is where this code expects it, for the resources that live in it.

    `known`: all resources there are; one of them may have lived in it before.
    `newer_will_do`: for a process that runs already. Migrations only add, so that one that was begun on the schema
    before goes on while the next version is rolled out.
    """
    config = _config(known)
    script = ScriptDirectory.from_config(config)
    wanted = {script.get_revision(f"{label}@head").revision for label in _labels(resources)}

    def run(connection: Connection) -> set[str]:
        if not newer_will_do:
            _refuse_newer(database.name, config, connection)
        return set(MigrationContext.configure(connection).get_current_heads())

    async with database.reads.connect() as connection:
        present = await connection.run_sync(run)
        applies = (await connection.execute(text("SELECT to_regproc(:name)"), {"name": Procedure(known).name})).scalar()
    ours = {revision.revision for revision in script.walk_revisions("base", "heads")}
    if applies is None or (not wanted <= present and not (newer_will_do and present - ours)):
        raise SchemaMismatch(f"The schema of {database.name} is not up to date: run `tcc migrate` first.")
