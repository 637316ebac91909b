"""Many writes to one SQLite commit: a thread that takes whatever has queued up while the last one ran."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]
Settled = list[tuple["asyncio.Future[Any]", Any, Exception | None]]


class GroupCommit:
    """Runs jobs one after the other on one connection, in a thread of its own, up to `most` per commit.

    A job's future is settled only when its transaction is on disk. Each job stands in a savepoint, so one
    that fails takes no neighbour with it; if the commit itself fails, all of its jobs do.
    """

    def __init__(self, db: sqlite3.Connection, *, most: int = 256) -> None:
        self._db = db
        self._most = most
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Do a job; raises what it raised. A caller that is cancelled does not undo it."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((job, future))
        return await future

    async def aclose(self) -> None:
        """Finish what was accepted, then stop the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs, last = [first], False
            while len(jobs) < self._most:
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
                if job is None:
                    last = True
                    break
                jobs.append(job)
            self._loop.call_soon_threadsafe(_settle, self._commit(jobs))
            if last:
                return

    def _commit(self, jobs: list[Job]) -> Settled:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            settled = [self._one(job, future) for job, future in jobs]
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is raised where the jobs are awaited
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            return [(future, None, error) for _, future in jobs]
        return settled

    def _one(
        self, job: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]
    ) -> tuple[asyncio.Future[Any], Any, Exception | None]:
        self._db.execute("SAVEPOINT job")
        try:
            value = job(self._db)
        except Exception as error:  # noqa: BLE001 - it is raised where the job is awaited
            self._db.execute("ROLLBACK TO job")
            self._db.execute("RELEASE job")
            return future, None, error
        self._db.execute("RELEASE job")
        return future, value, None


def _settle(settled: Settled) -> None:
    for future, value, error in settled:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
