"""Many rows at once, as copies of a few that the service wrote itself: what they look like follows the schema.

A copy has ids of its own, which name the moment at which it is said to have happened, as the service's do; times are
moved to that moment; a key gets its number appended. Rows of several tables that were copied under the same number
belong together as the originals did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import asyncpg
import msgspec

_COLUMNS = """
SELECT attname AS name, atttypid::regtype::text AS type FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"""

_NOTHING: Mapping[str, str] = {}

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Source(msgspec.Struct, frozen=True):
    """The rows of a table to be copied. `given` are expressions for columns that shall differ from the original's, with
    `s` for the original and `c` for the copy (its number `c.n`, and `c.back`, how long ago it was). `named` are JSON
    columns in which other ids of the originals are named. `most`: none of a higher number is made."""

    table: str
    where: str
    given: Mapping[str, str] = _NOTHING
    named: tuple[str, ...] = ()
    most: int | None = None


class Copier:
    """Copies on one connection. Copy number n is said to have happened n times `apart_seconds` ago, a millisecond or
    more."""

    def __init__(self, connection: Connection, apart_seconds: float) -> None:
        self._connection = connection
        self._apart_seconds = apart_seconds
        self._statements: list[tuple[str, int | None]] = []

    async def prepare(self, sources: Sequence[Source], ids: Sequence[str] = ()) -> None:
        """Look at the originals. `ids` are those that may be named in JSON columns."""
        for source in sources:
            sample = f"sample_{source.table}"
            await self._connection.execute(
                f"CREATE TEMPORARY TABLE {sample} AS SELECT * FROM {source.table} WHERE {source.where}"
            )
            columns = await self._connection.fetch(_COLUMNS, source.table)
            values = [source.given.get(row["name"]) or _copied(row["name"], row["type"]) for row in columns]
            for position, row in enumerate(columns):
                if row["name"] in source.named:
                    values[position] = _renamed(row["name"], ids)
            statement = f"""
INSERT INTO {source.table} ({", ".join(row["name"] for row in columns)})
SELECT {", ".join(values)}
FROM (SELECT n, n * make_interval(secs => $3) AS back, CAST(n * $3 * 1000 AS bigint) AS back_ms
      FROM generate_series($1::bigint, $2::bigint, -1) AS n) c
CROSS JOIN {sample} s"""
            self._statements.append((statement, source.most))

    async def copy(self, first: int, last: int) -> None:
        """Write the copies from number `first` down to `last`, in one transaction."""
        async with self._connection.transaction():
            for statement, most in self._statements:
                begin = first if most is None else min(first, most)
                if begin >= last:
                    await self._connection.execute(statement, begin, last, self._apart_seconds)


def _copied(name: str, type: str) -> str:
    """The value of a column in a copy."""
    if type == "uuid":
        return _id_of(f"s.{name}::text")
    if type.startswith("timestamp"):
        return f"s.{name} - c.back"
    if name == "key":
        return f"s.{name} || '-' || c.n"
    return f"s.{name}"


def _id_of(original: str) -> str:
    """A copy's id, a UUIDv7 as the original's: of as much earlier a millisecond, and with the same rest."""
    moment = f"CAST(CAST('x0000' || left(replace({original}, '-', ''), 12) AS bit(64)) AS bigint)"
    return f"CAST(lpad(to_hex({moment} - c.back_ms), 12, '0') || right(replace({original}, '-', ''), 20) AS uuid)"


def _renamed(name: str, ids: Sequence[str]) -> str:
    """A JSON column in which the copies' ids stand for the originals'."""
    value = f"s.{name}::text"
    for id in ids:
        original = f"'{id}'"
        value = f"replace({value}, {original}, {_id_of(original)}::text)"
    return f"CAST({value} AS jsonb)"
