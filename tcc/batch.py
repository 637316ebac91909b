"""The batcher: many commands, one database transaction.

Whoever wants a change of state submits a `Group`: commands that are applied in their order, in one transaction, each
only if the one before it came out well. A runner takes what has queued up while the last batch was running, applies it
by one statement (`tcc.foresight`), or by one for each kind of command in it (`tcc.groups`), commits, and only then
answers, when the other runner has begun the next. No timer: under load batches grow by themselves, and one hot row is
updated once for many reservations.

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
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import DONE, MoveTransaction, Try
from tcc.db import Database, Failure, failure_of
from tcc.errors import OutcomeUnknown, Overloaded, TccError, Unavailable
from tcc.foresight import Foresight, Foretold, Surprise
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

SURPRISE: Final = 0.1
"""How much one batch counts that came out other than foreseen."""

MANY_SURPRISES: Final = 0.3
"""About this share of the last ten batches: to try the short way in vain costs more than what it saves then."""

STALL_SECONDS: Final = 1.0
BURST: Final = 3
"""How long the queue may be longer than it is to be, and how many times as long, before that is no stall any more."""

CALM_SECONDS: Final = 1.0
"""How long after it refused somebody the service still takes the crowd for one that stays."""

FOLLOW_UP: Final = 16
"""For each group that may wait before no more may be begun, so many moves: what is begun is let go on."""


class _Waiting(NamedTuple):
    """A group, what it comes to if that can be told, whoever waits for it, and since when, on the event loop's clock.

    It is told when it is queued: the database is busy then, and needn't wait for it later.
    """

    group: Group
    foretold: Foretold | None
    future: asyncio.Future[Result]
    since: float


class _Refused(NamedTuple):
    """Why a batch isn't committed. `unknown`: an attempt at it was lost, and may have been committed all the same."""

    failure: Failure
    error: Exception
    unknown: bool


class Batcher:
    """One database's queues, and two runners in turn, each with a connection of its own.

    A batch is of tries (and what begins transactions), or of moves: each locks what reservations share, such as stock,
    in a statement of its own, and a transaction that locked it twice could deadlock with another.
    Nobody waits for long: a batch is given up in time, and what isn't taken in time is refused, though every runner be
    stuck with a server that doesn't answer.
    """

    def __init__(
        self,
        database: Database,
        known: Sequence[Resource],
        here: Sequence[Resource],
        metrics: Metrics,
        *,
        lease_seconds: float,
        batch: int,
        queue: int,
    ) -> None:
        """`known`: all resources there are; `here`: those that live in this database."""
        self.database = database
        self._kinds = Kinds(known, lease_seconds=lease_seconds)
        self._foresight = Foresight(here, lease_seconds=lease_seconds)
        self._metrics = metrics
        self._batch = batch
        self._limit = queue
        self._full_since: float | None = None
        """Since when whoever came has found the queue full, on the event loop's clock."""
        self._strict_until = 0.0
        """Until when nobody is to make it longer than that."""
        self._moves: deque[_Waiting] = deque()
        self._tries: deque[_Waiting] = deque()
        """Both in the order of their arrival."""
        self._idle: deque[asyncio.Future[None]] = deque()
        """Runners that wait for something to do."""
        self._applying = 0
        """How many batches the database has, other than those that take it long."""
        self._taken = 0
        """How many groups were in the last one."""
        self._clock = asyncio.get_running_loop().time
        self._refusing: asyncio.TimerHandle | None = None
        self._closing = False
        self._surprises = {True: 0.0, False: 0.0}
        """How much batches of tries, and of moves, came out other than foreseen of late."""
        self._connections: list[AsyncConnection | None] = [None, None]
        self._tasks = [
            asyncio.create_task(self._run(runner), name=f"batches of {database.name} ({runner})")
            for runner in range(len(self._connections))
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
        foretold = self._foresight.foretell(group) if self._foresees(tries) else None
        waiting.append(_Waiting(group, foretold, future, now))
        if self._refusing is None:
            self._refusing = loop.call_at(now + WAIT_SECONDS, self._refuse)
        self._call()
        return await future  # whose cancellation, with its caller, is nothing to the batch that it is in

    def crowded(self) -> bool:
        """Whether more is begun than is done, so that whoever would begin more had better come back later. What is
        begun counts until it is done: it takes the same time from those who wait.

        What a stall leaves behind is served. A crowd that has been there for `STALL_SECONDS`, or is `BURST` times as
        long as the queue may be, is none: the queue is kept short then, until nobody was refused for `CALM_SECONDS`.
        """
        now = self._clock()
        waiting = len(self._tries) + len(self._moves)
        if waiting < self._limit:
            self._full_since = None
            return False
        if self._full_since is None:
            self._full_since = now
        stays = now - self._full_since >= STALL_SECONDS or waiting >= self._limit * BURST
        if not stays and now >= self._strict_until:
            return False
        self._strict_until = now + CALM_SECONDS
        return True

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
            self._strict_until = self._clock() + CALM_SECONDS
            log.warning("waited_too_long", database=self.database.name, refused=refused)
        if oldest := [waiting[0].since for waiting in (self._moves, self._tries) if waiting]:
            self._refusing = asyncio.get_running_loop().call_at(min(oldest) + WAIT_SECONDS, self._refuse)

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._closing = True
        self._dismiss()
        await asyncio.gather(*self._tasks)
        if self._refusing is not None:
            self._refusing.cancel()

    async def _run(self, runner: int) -> None:
        """Settle whatever arrives, in turn with the other runner."""
        while True:
            if self._may_begin():
                await self._settle_some(runner)
            elif self._closing and not self._moves and not self._tries:
                break
            else:
                turn = asyncio.get_running_loop().create_future()
                self._idle.append(turn)
                await turn
        self._dismiss()
        await self._drop(runner)

    def _dismiss(self) -> None:
        """Have idle runners see whether this batcher is closing, and nothing is left."""
        while self._idle:
            self._idle.popleft().set_result(None)

    def _may_begin(self) -> bool:
        """Whether the database is to be given a batch: one at a time, since two small ones cost more than one large."""
        return self._applying == 0 and bool(self._moves or self._tries)

    def _call(self) -> None:
        """Have an idle runner begin a batch, if there is to be one."""
        if self._idle and self._may_begin():
            self._idle.popleft().set_result(None)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a batch that the database has, for so long as others are to wait for it."""
        counted = True

        def discount() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._applying -= 1
                self._call()

        self._applying += 1
        timer = asyncio.get_running_loop().call_later(LONG_SECONDS, discount)
        try:
            yield
        finally:
            timer.cancel()
            discount()

    async def _settle_some(self, runner: int) -> None:
        """Take what waits, and settle it."""
        taken = self._take()
        try:
            await self._settle(taken, runner)
        except Exception as error:  # a runner that dies would hang everybody: tell these, and go on
            log.exception("batch_failed", database=self.database.name)
            self._fail(taken, error)

    def _take(self) -> list[_Waiting]:
        """The next groups, in order, no two of which touch the same row, and all foretold or none: of the queue in
        which somebody has waited longest; but no more than half of all, so that the database has something to do while
        this process sees to the others."""
        limit = min(self._batch, (len(self._moves) + len(self._tries) + self._taken + 1) // 2)
        waiting = min((queue for queue in (self._moves, self._tries) if queue), key=lambda queue: queue[0].since)
        taken: list[_Waiting] = []
        blocked: set[Hashable] = set()
        passed: list[_Waiting] = []
        weight = 0
        while waiting and len(taken) < limit and len(passed) < self._batch and weight < HEAVY * self._batch:
            entry = waiting.popleft()
            weight += entry.group.weight()
            touched = entry.group.touches()
            if blocked.isdisjoint(touched) and (not taken or bool(taken[0].foretold) == bool(entry.foretold)):
                taken.append(entry)
            else:
                passed.append(entry)
            blocked |= touched
        waiting.extendleft(reversed(passed))
        self._taken = len(taken)
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
                with self._counted():
                    results_of = await self._commit(part, runner, attempt)
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
                if self._may_begin():  # by the other runner, before the callers here have their say
                    await asyncio.sleep(0)
                results = results_of()
                self._metrics.batch_size.observe(len(part))
                self._metrics.batch_seconds.observe(time.perf_counter() - started)
                self._count(part, results)
                for entry, result in zip(part, results, strict=True):
                    if not entry.future.done():
                        entry.future.set_result(result)
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
                if type(command) is Try:
                    tries[command.resource, outcome.code] += 1
                elif type(command) is MoveTransaction and outcome.code == DONE and outcome.view:
                    ended[outcome.view.state] += 1
        for labels, count in tries.items():
            self._metrics.tries.labels(*labels).inc(count)
        for state in ended.keys() & TERMINAL:
            self._metrics.ended.labels(state).inc(ended[state])

    async def _commit(self, part: Sequence[_Waiting], runner: int, attempt: int) -> Callable[[], list[Result]]:
        connection = self._connections[runner]
        if connection is None:
            connection = self._connections[runner] = await self.database.batches.connect()
        try:
            return await self._apply(connection, part, attempt)
        except Exception as error:
            if failure_of(error) is Failure.LOST:
                await self._drop(runner, broken=True)
            raise

    def _foresees(self, tries: bool) -> bool:
        """Whether batches of tries, or of moves, come out as foreseen, by and large: what surprises often, since
        something is sold out, isn't tried in vain."""
        return self.database.at_once and self._surprises[tries] <= MANY_SURPRISES

    async def _apply(
        self, connection: AsyncConnection, part: Sequence[_Waiting], attempt: int
    ) -> Callable[[], list[Result]]:
        """Apply and commit groups: by one statement, if they come out as foreseen, or else kind by kind, in a
        transaction that stays open while their replies are written."""
        tries = part[0].group.tries()
        foretold = [entry.foretold for entry in part if entry.foretold]
        if not self._foresees(tries):
            self._surprises[tries] *= 1 - SURPRISE / 10
        elif attempt == 1 and foretold:
            try:
                async with self.database.alone(connection):
                    results_of = await self._foresight.apply(connection, foretold)
            except Exception as error:
                if failure_of(error) is not Failure.POISON:
                    raise
                if not isinstance(error, Surprise):  # whatever it is, kind by kind it concerns one group alone
                    log.warning("batch_not_foreseen", database=self.database.name, error=_kind(error))
                self._surprises[tries] += SURPRISE
            else:
                self._surprises[tries] *= 1 - SURPRISE
                return results_of
        groups = [entry.group for entry in part]
        keyed = any(group.claim or group.answers for group in groups)
        one_call = self.database.at_once and not keyed
        async with self.database.alone(connection) if one_call else self.database.batch(connection):
            results = await apply_groups(connection, groups, self._kinds)
        return lambda: results

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
