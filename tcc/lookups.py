"""Look-ups by key, many in one query: those that are asked for while one runs are one query next.

The same idea as the batcher's, for what only reads: no timer, and the more is asked at once, the less each costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

Key = tuple[Any, ...]
Rows = list[Sequence[Any]]


class _Asked(NamedTuple):
    keys: Sequence[Key]
    future: asyncio.Future[Rows]


class Lookups:
    """One query's look-ups. An answer is never older than its question."""

    def __init__(self, query: Callable[[Sequence[Key]], Awaitable[Rows]], *, most: int = 256) -> None:
        """`query` gives rows that begin with the number of their key, from 1, for about `most` keys at a time."""
        self._query = query
        self._most = most
        self._waiting: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None

    async def rows(self, keys: Sequence[Key]) -> Rows:
        """The rows under keys, in no particular order. Raises what the query does."""
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(keys, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while taken := self._take():
            try:
                found = await self._query([key for asked in taken for key in asked.keys])
                owners = [asked for asked in taken for _ in asked.keys]
                rows: dict[int, Rows] = {id(asked): [] for asked in taken}
                for row in found:
                    rows[id(owners[row[0] - 1])].append(row)
            except BaseException as error:  # noqa: BLE001 - it is told to those who asked, who would wait for ever
                for asked in taken:
                    if not asked.future.done():
                        asked.future.set_exception(error if isinstance(error, Exception) else ConnectionError())
                continue
            for asked in taken:
                if not asked.future.done():
                    asked.future.set_result(rows[id(asked)])
        self._task = None

    def _take(self) -> list[_Asked]:
        count = keys = 0
        while count < len(self._waiting) and keys < self._most:
            keys += len(self._waiting[count].keys)
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
