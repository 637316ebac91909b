"""The batcher: many commands, one database transaction.

Whoever wants a change of state submits a `Group`: commands that are applied in their order, in one transaction, each
only if the one before it came out well. A runner takes what has queued up while its last batch was running, applies all
of it with as few set-based statements as there are kinds of command in it, commits, and only then answers. No timer:
under load batches grow by themselves, and one hot row is updated once for many reservations.

A batch that fails is retried in halves until the poisonous group stands alone. A caller that goes away doesn't undo
its commands: they run in the runner's own task. The idea is PostgreSQL's group commit, one level up; TigerBeetle builds
a database on it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import DONE, MoveTransaction, Try
from tcc.db import Database, Failure, failure_of
from tcc.errors import OutcomeUnknown, Overloaded, TccError, Unavailable
from tcc.foresight import Foresight, Surprise
from tcc.groups import Group, Kinds, Result, apply_groups
from tcc.machine import TERMINAL, State
from tcc.metrics import Metrics
from tcc.resource import Resource

log = structlog.get_logger(__name__)

HEAVY: Final = 12
"""Commands per group of a full batch, at the most: large transactions share their commit with fewer others."""

LONG_SECONDS: Final = 0.1
"""How long a batch may take before another is begun beside it: it waits for a lock, perhaps, and others need not."""

ATTEMPTS: Final = 6
"""How often a batch is tried again after conflicts or lost connections before its callers are told."""

GIVE_UP_SECONDS: Final = 10.0
"""How long after a batch was taken it is still tried again, however few the attempts: a frozen server takes all the
time that there is for each. What is halved since the server refuses it is tried once more all the same."""

WAIT_SECONDS: Final = 5.0
"""How long a group may wait to be taken. After that its caller is told that nothing was done, which is then so."""

AT_A_TIME: Final = 16
"""So many callers are told at once what became of their groups, in a crowd. Each has much to do then; and the event
loop takes one new connection each time that it comes round, and those are to be refused soon."""

SURPRISE: Final = 0.1
"""How much one batch counts that came out other than foreseen."""

MANY_SURPRISES: Final = 0.3
"""About this share of the last ten batches: to try the short way in vain costs more than what it saves then."""

FOLLOW_UP: Final = 16
"""For each group that may wait before no more may be begun, so many moves: what is begun is let go on."""


class _Waiting(NamedTuple):
    """A group, whoever waits for what becomes of it, and since when, on the event loop's clock."""

    group: Group
    future: asyncio.Future[Result]
    since: float


class _Refused(NamedTuple):
    """Why a batch isn't committed. `unknown`: an attempt at it was lost, and may have been committed all the same."""

    failure: Failure
    error: Exception
    unknown: bool


class Batcher:
    """One database's queues, and one batch at a time, or two, each with a connection of its own.

    A batch is of tries (and what begins transactions), or of moves: each locks what reservations share, such as stock,
    in a statement of its own, and a transaction that locked it twice could deadlock with another.
    Nobody waits for long: a batch is given up in time, and what isn't taken in time is refused, though every runner be
    stuck with a server that doesn't answer.
    """

    def __init__(
        self,
        database: Database,
        resources: Sequence[Resource],
        metrics: Metrics,
        *,
        lease_seconds: float,
        batch: int,
        queue: int,
    ) -> None:
        self.database = database
        self._kinds = Kinds(resources, lease_seconds=lease_seconds)
        self._foresight = Foresight(resources, lease_seconds=lease_seconds)
        self._metrics = metrics
        self._batch = batch
        self._limit = queue
        self._moves: deque[_Waiting] = deque()
        self._tries: deque[_Waiting] = deque()
        """Both in the order of their arrival."""
        self._arrived = asyncio.Event()
        self._needed = asyncio.Event()
        """The second runner."""
        self._long = False
        """Whether the first runner's batch takes long."""
        self._clock = asyncio.get_running_loop().time
        self._refusing: asyncio.TimerHandle | None = None
        self._closing = False
        self._surprises = {True: 0.0, False: 0.0}
        """How much batches of tries, and of moves, came out other than foreseen of late."""
        self._connections: list[AsyncConnection | None] = [None, None]
        self._tasks = [
            asyncio.create_task(self._run(), name=f"batches of {database.name}"),
            asyncio.create_task(self._assist(), name=f"batches beside others of {database.name}"),
        ]

    async def submit(self, group: Group) -> Result:
        """Queue a group, and wait until it is committed, together with everybody else's. Cancelling the caller doesn't
        undo it.

        Raises `Overloaded` when the queue is full or doesn't move, `OutcomeUnknown` when the database went away.
        """
        tries = group.tries()
        waiting = self._tries if tries else self._moves
        full = self.crowded() if tries else len(waiting) >= self._limit * FOLLOW_UP
        if self._closing or full:
            raise Overloaded
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        now = self._clock()
        waiting.append(_Waiting(group, future, now))
        if self._refusing is None:
            self._refusing = loop.call_at(now + WAIT_SECONDS, self._refuse)
        self._arrived.set()
        if self._is_needed():
            self._needed.set()
        return await future  # whose cancellation, with its caller, is nothing to the batch that it is in

    def crowded(self) -> bool:
        """Whether more is begun than is done, so that whoever would begin more had better come back later. What is
        begun counts until it is done: it takes the same time from those who wait."""
        return len(self._tries) + len(self._moves) >= self._limit

    def _refuse(self) -> None:
        """Refuse what has waited too long, and come back when the next would have. One timer for all."""
        self._refusing = None
        late = self._clock() - WAIT_SECONDS
        refused = 0
        for waiting in (self._moves, self._tries):
            while waiting and waiting[0].since <= late:
                self._fail([waiting.popleft()], Overloaded())
                refused += 1
        if refused:
            log.warning("waited_too_long", database=self.database.name, refused=refused)
        if oldest := [waiting[0].since for waiting in (self._moves, self._tries) if waiting]:
            self._refusing = asyncio.get_running_loop().call_at(min(oldest) + WAIT_SECONDS, self._refuse)

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._closing = True
        self._arrived.set()
        self._needed.set()
        await asyncio.gather(*self._tasks)
        if self._refusing is not None:
            self._refusing.cancel()

    async def _run(self) -> None:
        """Settle whatever arrives."""
        call_later = asyncio.get_running_loop().call_later
        while True:
            if not self._moves and not self._tries:
                if self._closing:
                    break
                self._arrived.clear()
                await self._arrived.wait()
                continue
            timer = call_later(LONG_SECONDS, self._takes_long)
            await self._settle_some(0)
            timer.cancel()
            self._long = False
        await self._drop(0)

    def _takes_long(self) -> None:
        self._long = True
        if self._is_needed():
            self._needed.set()

    def _is_needed(self) -> bool:
        """Whether another batch is to be begun beside the first runner's. Two small ones cost more than one large: it
        has to be full, or the first takes long."""
        waiting = max(len(self._moves), len(self._tries))
        return waiting >= self._batch or (self._long and waiting > 0)

    async def _assist(self) -> None:
        """Settle what is not to wait for the first runner."""
        while True:
            await self._needed.wait()
            while self._is_needed():
                await self._settle_some(1)
            if self._closing:
                break
            self._needed.clear()
        await self._drop(1)

    async def _settle_some(self, runner: int) -> None:
        """Take what waits, and settle it."""
        taken = self._take()
        try:
            await self._settle(taken, runner)
        except Exception as error:  # a runner that dies would hang everybody: tell these, and go on
            log.exception("batch_failed", database=self.database.name)
            self._fail(taken, error)

    def _take(self) -> list[_Waiting]:
        """The next groups, in order, no two of which touch the same row: of the longer queue, since a large batch costs
        little more than a small one."""
        waiting = max(self._moves, self._tries, key=len)
        taken: list[_Waiting] = []
        blocked: set[Hashable] = set()
        passed: list[_Waiting] = []
        weight = 0
        while waiting and len(taken) < self._batch and len(passed) < self._batch and weight < HEAVY * self._batch:
            entry = waiting.popleft()
            weight += entry.group.weight()
            touched = entry.group.touches()
            if blocked.isdisjoint(touched):
                taken.append(entry)
            else:
                passed.append(entry)
            blocked |= touched
        waiting.extendleft(reversed(passed))
        return taken

    async def _settle(self, taken: Sequence[_Waiting], runner: int) -> None:
        """Apply and commit groups, and answer them; in halves where the server refuses the whole."""
        until = self._clock() + GIVE_UP_SECONDS
        parts = [taken]
        unknown = False
        while parts:
            part = parts.pop()
            refused = await self._try(part, runner, until)
            if refused is None:
                continue
            unknown |= refused.unknown
            if refused.failure is Failure.LOST:  # those behind would wait as long, each in turn, for the same
                for entries in (part, *parts):
                    self._fail(entries, OutcomeUnknown())
                for waiting in (self._moves, self._tries):
                    self._fail(waiting, Unavailable("database_unavailable"))
                    waiting.clear()
                return
            halves = refused.failure is Failure.POISON or self._clock() < until
            if len(part) > 1 and halves:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            else:
                self._give_up(part, refused, unknown)

    async def _try(self, part: Sequence[_Waiting], runner: int, until: float) -> _Refused | None:
        """Apply and commit groups, and answer them; again after conflicts and lost connections, as long as there is
        time. What went wrong in the end, if anything did."""
        unknown = False
        for attempt in itertools.count(1):
            started = time.perf_counter()
            try:
                results = await self._commit([entry.group for entry in part], runner)
            except Exception as error:  # noqa: BLE001 - classified, and either tried again or told
                failure = failure_of(error)
                self._metrics.batch_failures.labels(failure.name.lower()).inc()
                unknown |= failure is Failure.LOST
                if failure in (Failure.POISON, Failure.BLOCKED):
                    return _Refused(failure, error, unknown)
                log.warning(
                    "batch_retried",
                    database=self.database.name,
                    failure=failure.name,
                    attempt=attempt,
                    error=str(error)[:300],
                )
                if attempt == ATTEMPTS or self._clock() >= until:
                    return _Refused(failure, error, unknown)
                await asyncio.sleep(random.uniform(0.01, 0.05) * 2**attempt if failure is Failure.LOST else 0)
            else:
                self._metrics.batch_size.observe(len(part))
                self._metrics.batch_seconds.observe(time.perf_counter() - started)
                self._count(part, results)
                for told, (entry, result) in enumerate(zip(part, results, strict=True), start=1):
                    if not entry.future.done():
                        entry.future.set_result(result)
                    if told % AT_A_TIME == 0 and self.crowded():
                        await asyncio.sleep(0)
                return None
        raise AssertionError

    def _give_up(self, part: Sequence[_Waiting], refused: _Refused, unknown: bool) -> None:
        """Tell those whom the server won't serve, or not in time."""
        if refused.failure is Failure.POISON:
            commands = [(type(command).__name__, str(command.id)) for entry in part for command in entry.group.commands]
            log.error("poisonous_group", database=self.database.name, commands=commands, error=_kind(refused.error))
            self._fail(part, TccError("internal_error"))
        elif refused.failure is Failure.BLOCKED and not unknown:
            self._fail(part, Unavailable("database_unavailable", "It took too long; nothing was done."))
        else:
            self._fail(part, OutcomeUnknown())

    def _count(self, part: Sequence[_Waiting], results: Sequence[Result]) -> None:
        """Tell the metrics what became of tries and of transactions, now that it is committed."""
        tries: Counter[tuple[str, str]] = Counter()
        ended: Counter[State] = Counter()
        for entry, result in zip(part, results, strict=True):
            for command, outcome in zip(entry.group.commands, result.outcomes, strict=False):
                if isinstance(command, Try):
                    tries[command.resource, outcome.code] += 1
                elif isinstance(command, MoveTransaction) and outcome.code == DONE and outcome.view:
                    ended[outcome.view.state] += 1
        for labels, count in tries.items():
            self._metrics.tries.labels(*labels).inc(count)
        for state in ended.keys() & TERMINAL:
            self._metrics.ended.labels(state).inc(ended[state])

    async def _commit(self, groups: Sequence[Group], runner: int) -> list[Result]:
        connection = self._connections[runner]
        if connection is None:
            connection = self._connections[runner] = await self.database.batches.connect()
        try:
            return await self._apply(connection, groups)
        except Exception as error:
            if failure_of(error) is Failure.LOST:
                await self._drop(runner, broken=True)
            raise

    async def _apply(self, connection: AsyncConnection, groups: Sequence[Group]) -> list[Result]:
        """Apply and commit groups: in one call, if they come out as foreseen, or else in a transaction that stays open
        while their replies are written. What surprises often, since something is sold out, isn't tried in vain."""
        tries = groups[0].tries()
        if self._surprises[tries] > MANY_SURPRISES:
            self._surprises[tries] *= 1 - SURPRISE / 10
        elif self.database.at_once:
            try:
                async with self.database.alone(connection):
                    results = await self._foresight.apply(connection, groups)
            except Surprise:
                self._surprises[tries] += SURPRISE
            else:
                self._surprises[tries] *= 1 - SURPRISE
                if results is not None:
                    return results
        async with self.database.batch(connection):
            return await apply_groups(connection, groups, self._kinds)

    async def _drop(self, runner: int, *, broken: bool = False) -> None:
        connection, self._connections[runner] = self._connections[runner], None
        if connection is None:
            return
        try:
            if broken:
                await connection.invalidate()
            await connection.close()
        except Exception as error:  # noqa: BLE001 - it is gone either way
            log.info("connection_not_closed", database=self.database.name, error=str(error)[:200])

    def _fail(self, entries: Iterable[_Waiting], error: BaseException) -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(error)


def _kind(error: BaseException) -> str:
    """What an error is, without the statement and the data that its text may carry."""
    return f"{type(error).__name__} {getattr(getattr(error, 'orig', None), 'sqlstate', '') or ''}".strip()
