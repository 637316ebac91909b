"""Databases: engines, their time limits, and what an error of the driver means for us."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum, auto
from functools import cache
from typing import Any, Final
from uuid import uuid4

import asyncpg
import msgspec
import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.engine import Row, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tcc.errors import Unavailable
from tcc.lookups import Key, Lookups, Rows
from tcc.settings import SettingsError

log = structlog.get_logger(__name__)

_LIMITS: Final = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
}
_COMMAND_TIMEOUT_SECONDS: Final = 15
"""For a backend that is frozen, and so keeps no time limit of its own."""

_BATCH_PLANS: Final = {
    # A generic plan that was made while tables were empty would scan them for ever after, or hash them whole. What a
    # batch needs is one look-up by key for each command, whatever the statistics say.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    # Nor does a look at every row of a table that is small, for now, cost less than the few that are asked for.
    "cpu_tuple_cost": "10",
    "random_page_cost": "0.01",
}


def _unread(document: str) -> msgspec.Raw:
    """JSON columns stay as they are: most are sent on without being read."""
    return msgspec.Raw(document.encode())


class Conflict(Exception):
    """Another transaction came first, and what it did is seen only from a new one."""


class Failure(Enum):
    """What an error of the database means for the work that met it."""

    CONFLICT = auto()
    """Lost against another transaction; nothing was done; the same again will do."""
    LOST = auto()
    """The connection, or the server's willingness, is gone; what was under way is unknown."""
    BLOCKED = auto()
    """It took too long, for a lock or for what there was to do; nothing was done."""
    POISON = auto()
    """The server won't do this, whoever asks."""


_CONFLICTS: Final = frozenset({"40001", "40P01", "23505"})
"""The last: somebody recorded the same id, or took the same key, after we had looked for it."""
_TOO_LONG: Final = frozenset({"55P03", "57014"})
_LOST_CLASSES: Final = ("08", "53", "57", "58")
_LOST_CODES: Final = frozenset({"25006", "25P03", "XX000"})


def failure_of(error: BaseException) -> Failure:
    """Classify an error that came out of a statement, a commit or a connection attempt."""
    if isinstance(error, (DBAPIError, asyncpg.PostgresError)):
        state = str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")
        invalidated = getattr(error, "connection_invalidated", False)
        if state in _CONFLICTS:
            return Failure.CONFLICT
        if state in _TOO_LONG:
            return Failure.BLOCKED
        if invalidated or state.startswith(_LOST_CLASSES) or state in _LOST_CODES or not state:
            return Failure.LOST
        return Failure.POISON
    if isinstance(error, Conflict):
        return Failure.CONFLICT
    # InternalClientError: the driver lost its place in what the server says, as when a backend dies in the middle.
    if isinstance(error, (OSError, asyncio.TimeoutError, EOFError, PoolTimeout, asyncpg.InternalClientError)) or (
        isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)  # those are about values
    ):
        return Failure.LOST
    return Failure.POISON


class Record(asyncpg.Record):
    """A row whose columns are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


_NAMED: Final = re.compile(r"(?<![:\w]):(\w+)")


@cache
def numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """A statement as the driver takes it, with $1 for the first name, and the names in order."""
    names = tuple(dict.fromkeys(_NAMED.findall(sql)))
    return _NAMED.sub(lambda match: f"${names.index(match.group(1)) + 1}", sql), names


def driver_of(connection: AsyncConnection) -> Any:
    """The driver's own connection, below SQLAlchemy's."""
    return connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]


async def fetch(connection: AsyncConnection, statement: TextClause, parameters: dict[str, Any]) -> list[Any]:
    """Run one statement by the driver itself, and take all its rows; outside of SQLAlchemy's transactions.

    SQLAlchemy keeps the connection, its codecs and its time limits. Its execution of a statement costs more than all
    else that a batch does in this process, so batches do without.
    """
    sql, names = numbered(statement.text)
    return list(await driver_of(connection).fetch(sql, *(parameters[name] for name in names), record_class=Record))


def _set_local(settings: Mapping[str, str]) -> TextClause:
    """The statement that makes settings hold for one transaction."""
    return text("SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items()))


@asynccontextmanager
async def _telling(name: str) -> AsyncIterator[None]:
    """Say `Unavailable` where the database is away."""
    try:
        yield
    except Exception as error:
        if failure_of(error) is Failure.POISON:
            raise
        log.warning("database_unavailable", database=name, error=str(error)[:300])
        raise Unavailable("database_unavailable", f"{name} can't be reached now.") from error


@asynccontextmanager
async def _lent(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection of a pool, which doesn't get it back when it was lost."""
    connection = await engine.connect()
    try:
        yield connection
    except Exception as error:
        if failure_of(error) is Failure.LOST:
            await connection.invalidate()
        raise
    finally:
        await connection.close()


class Database:
    """One PostgreSQL database: small pools for queries and transactions, and connections of their own for batches."""

    def __init__(self, url: str, *, application: str = "tcc", pooler: bool = False) -> None:
        """`url` as PostgreSQL writes it; `pooler` where a pooler in transaction mode stands before it.

        Raises `SettingsError` where the URL makes no sense.
        """
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise SettingsError(
                "A database URL can't be read: write it as postgresql://user:password@host:5432/name."
            ) from error
        if parsed.drivername.partition("+")[0] not in ("postgres", "postgresql"):
            raise SettingsError(f"A database URL names {parsed.drivername}, and only PostgreSQL will do.")
        parsed = parsed.set(drivername="postgresql+asyncpg")
        self.name = f"{parsed.host or 'local'}:{parsed.port or 5432}/{parsed.database}"
        self.url = parsed
        self._application = application
        self._lookups: dict[str, Lookups] = {}
        self._pooler = pooler
        # A pooler gives each transaction another session: what a session would have been told once, each is told.
        self._told_reads = _set_local(_LIMITS) if pooler else None
        self._told_batches = _set_local(_LIMITS | _BATCH_PLANS) if pooler else None
        self.reads = self._engine(_LIMITS, pool_size=8)
        self.queries = self._engine(_LIMITS, pool_size=8, ping=False)
        self.batches = self._engine(_LIMITS | _BATCH_PLANS, pool_size=4)

    def _engine(
        self,
        settings: dict[str, str],
        *,
        pool_size: int,
        command_timeout: float | None = _COMMAND_TIMEOUT_SECONDS,
        ping: bool = True,
    ) -> AsyncEngine:
        arguments: dict[str, Any] = {
            "timeout": 5,
            "command_timeout": command_timeout,
            "prepared_statement_name_func": lambda: f"tcc_{uuid4().hex}",
        }
        if self._pooler:
            arguments["statement_cache_size"] = arguments["prepared_statement_cache_size"] = 0
        else:
            arguments["server_settings"] = {"application_name": self._application, **settings}
        return create_async_engine(
            self.url,
            connect_args=arguments,
            pool_size=pool_size,
            max_overflow=0,  # one that is made for a moment costs PostgreSQL a process, and more than many queries
            pool_timeout=5,
            pool_pre_ping=ping,
            isolation_level="READ COMMITTED",
            json_deserializer=_unread,
            hide_parameters=True,  # errors are logged, and claims are nobody's business there
        )

    @property
    def at_once(self) -> bool:
        """Whether a statement may be a transaction of its own: nothing has to be said before it."""
        return self._told_batches is None

    @asynccontextmanager
    async def batch(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """A transaction for `fetch`, on a connection of `batches`."""
        async with driver_of(connection).transaction(), self.alone(connection):
            if self._told_batches is not None:
                await fetch(connection, self._told_batches, {})
            yield

    @asynccontextmanager
    async def alone(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """No transaction but that of each statement, where this database is `at_once`."""
        try:
            yield
        except TimeoutError:  # who doesn't answer a command doesn't answer a ROLLBACK: don't wait for that as well
            driver_of(connection).terminate()
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for what isn't a command: reads, sweeps taking their rows, management.

        Raises `Unavailable` (`database_unavailable`) when the database is away.
        """
        async with _telling(self.name), self.reads.begin() as connection:
            if self._told_reads is not None:
                await connection.execute(self._told_reads)
            yield connection

    async def commit(self, statement: TextClause, parameters: dict[str, Any]) -> list[Any]:
        """Run one statement, planned as those of batches are, and commit it; its rows. Raises what the driver does."""
        async with _lent(self.batches) as connection, self.batch(connection):
            return await fetch(connection, statement, parameters)

    async def read(self, statement: TextClause, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Run a query that changes nothing, and take all its rows: one statement, in no transaction of its own.

        That a connection was lost since it was last used is found out by the query itself: then all that lie idle are
        let go, and it is asked once more. Raises `Unavailable` when the database is away.
        """
        async with _telling(self.name):
            try:
                return await self._query(statement, parameters or {})
            except Exception as error:
                if failure_of(error) is not Failure.LOST or isinstance(error, TimeoutError):
                    raise
                await self.queries.dispose()
                return await self._query(statement, parameters or {})

    async def look_up(self, statement: TextClause, keys: Sequence[Key]) -> Rows:
        """The rows under keys, together with what others look up by the same statement meanwhile (`Lookups`).

        The statement takes the columns of the keys as arrays, in the order in which it names them, and its rows begin
        with the number of their key, from 1. Raises as `read` does.
        """
        if statement.text not in self._lookups:
            _, names = numbered(statement.text)

            async def query(keys: Sequence[Key]) -> Rows:
                return await self.read(statement, dict(zip(names, map(list, zip(*keys, strict=True)), strict=True)))

            self._lookups[statement.text] = Lookups(query)
        return await self._lookups[statement.text].rows(keys)

    async def _query(self, statement: TextClause, parameters: dict[str, Any]) -> list[Any]:
        async with _lent(self.queries) as connection:
            if self._told_reads is None:
                return await fetch(connection, statement, parameters)
            async with driver_of(connection).transaction(readonly=True):
                await fetch(connection, self._told_reads, {})
                return await fetch(connection, statement, parameters)

    async def survey(self, statement: TextClause, parameters: dict[str, Any]) -> list[Row[Any]]:
        """Run a query over whole tables, without a time limit. Raises `Unavailable` when the database is away."""
        engine = self._engine(_LIMITS | {"statement_timeout": "0"}, pool_size=1, command_timeout=None)
        try:
            async with _telling(self.name), engine.connect() as connection:
                return await fetch(connection, statement, parameters)
        finally:
            await engine.dispose()

    async def close(self) -> None:
        for engine in (self.reads, self.queries, self.batches):
            await engine.dispose()
