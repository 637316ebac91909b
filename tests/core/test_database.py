"""Databases: what a session is told, behind a pooler too, and what is said of URLs and schemas that won't do."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc.db import Database, Failure, failure_of, fetch
from tcc.errors import Unavailable
from tcc.schema import SchemaMismatch, check_schema, migrate
from tcc.settings import Settings, SettingsError

TOLD = text(
    "SELECT current_setting('statement_timeout') AS statement, current_setting('idle_in_transaction_session_timeout') "
    "AS idle, current_setting('enable_hashjoin') AS hashing, current_setting('plan_cache_mode') AS plans"
)


@pytest.mark.parametrize("pooler", [False, True])
async def test_every_transaction_has_its_time_limits_and_every_batch_its_plans(database_url: str, pooler: bool) -> None:
    database = Database(database_url, pooler=pooler)
    (read,) = await database.read(TOLD)
    async with database.batches.connect() as connection, database.batch(connection):
        (batch,) = await fetch(connection, TOLD, {})
    await database.close()
    assert (read.statement, read.idle, read.hashing) == ("10s", "10s", "on")
    assert (batch.statement, batch.idle, batch.hashing, batch.plans) == ("10s", "10s", "off", "force_generic_plan")


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "", "postgresql://x:port/y"])
def test_a_url_that_makes_no_sense_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError):
        Database(url)


async def test_a_database_that_is_away_is_unavailable_not_an_error_of_ours() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable):
        await database.read(text("SELECT 1"))
    await database.close()


async def test_a_schema_that_is_newer_is_refused_at_start_but_not_while_running(database_url: str) -> None:
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(
            text("UPDATE alembic_version SET version_num = 'tcc_9999' WHERE version_num LIKE 'tcc%'")
        )
    with pytest.raises(SchemaMismatch, match="newer"):
        await check_schema(database, RESOURCES, RESOURCES)
    with pytest.raises(SchemaMismatch, match="newer"):
        await migrate(database, RESOURCES, RESOURCES)
    await check_schema(database, RESOURCES, RESOURCES, newer_will_do=True)
    await database.close()


async def test_a_schema_that_is_older_says_what_to_do(database_url: str) -> None:
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM alembic_version WHERE version_num LIKE 'orders%'"))
    with pytest.raises(SchemaMismatch, match="tcc migrate"):
        await check_schema(database, RESOURCES, RESOURCES)
    await database.close()


@pytest.mark.parametrize(
    "wrong",
    [{}, {"TCC_DATABASE_URL": "x", "TCC_BATCH_SIZE": "-3"}, {"TCC_DATABASE_URL": "x", "TCC_LOG_FORMAT": "xml"}],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="TCC_"):
        Settings.from_environment(wrong)


def test_a_driver_that_lost_its_place_has_lost_the_connection_and_nobody_is_blamed_for_it() -> None:
    """As when a backend is killed between two of its messages: whether it had committed is unknown."""
    assert failure_of(asyncpg.InternalClientError("got result for unknown protocol state 3")) is Failure.LOST


async def test_a_read_finds_another_connection_when_those_that_lie_idle_were_lost(database_url: str) -> None:
    database = Database(database_url, application="lost")
    await asyncio.gather(*(database.read(text("SELECT pg_sleep(0.05)")) for _ in range(4)))
    async with database.transaction() as connection:
        killed = await connection.execute(
            text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND application_name = 'lost'"
            )
        )
        assert killed.scalar_one() >= 4
    for _ in range(4):
        assert [row.one for row in await database.read(text("SELECT 1 AS one"))] == [1]
    await database.close()
