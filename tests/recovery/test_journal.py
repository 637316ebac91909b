"""The journal, as the version before keeps it and as this one does."""

from __future__ import annotations

from alembic import command
from sqlalchemy import Connection

from resources.registry import RESOURCES
from tcc.db import Database
from tcc.schema import _config
from tests.client import Api
from tests.recovery.scenes import raw


async def test_a_log_is_the_same_when_its_rows_were_those_of_the_version_before(api: Api, database_url: str) -> None:
    await api.stock("MUG", 10)
    path = f"/v1/transactions/{(await api.order('MUG')).json['id']}/log"
    log = (await api.get(path)).json
    await _alembic(database_url, "downgrade", "tcc_0003")
    async with raw(database_url) as connection:
        rows = await connection.fetch("SELECT event, target FROM journal ORDER BY at, entry_id")
    assert [tuple(row) for row in rows] == [(entry["event"], entry["to"]) for entry in log["entries"]]
    await _alembic(database_url, "upgrade", "tcc_0004")
    assert (await api.get(path)).json == log


async def _alembic(url: str, way: str, revision: str) -> None:
    def run(connection: Connection) -> None:
        config = _config(RESOURCES)
        config.attributes["connection"] = connection
        getattr(command, way)(config, revision)
        connection.commit()

    database = Database(url, application="tests")
    async with database.reads.connect() as connection:
        await connection.run_sync(run)
    await database.close()
