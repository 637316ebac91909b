"""The batcher: many commands, one database transaction.

Whoever wants a change of state submits a `Group`: commands that are applied in their order, in one transaction, each
only if the one before it came out well. A lane takes what has queued up while its last batch was running, applies all
of it with as few set-based statements as there are kinds of command in it, commits, and only then answers. No timer:
under load batches grow by themselves, and one hot row is updated once for many reservations.

A batch that fails is retried in halves until the poisonous group stands alone. A caller that goes away doesn't undo
its commands: they run in the lane's own task. The idea is PostgreSQL's group commit, one level up; TigerBeetle builds
a database on it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc import idempotency, transactions
from tcc.commands import DONE, Begin, Command, Move, MoveTransaction, Outcome, Try
from tcc.db import Database, Failure, failure_of
from tcc.errors import OutcomeUnknown, Overloaded, TccError, Unavailable
from tcc.idempotency import Claim, Held, KeyRef, Reply
from tcc.machine import TERMINAL
from tcc.metrics import Metrics
from tcc.reservations import AGAIN, Moves, Tries
from tcc.resource import Resource

log = structlog.get_logger(__name__)

Render = Callable[[Sequence[Outcome[Any]]], Reply | None]
"""The reply to a request, from the outcomes of its commands; None as long as there is nothing to say."""

FORGET: Final = Reply(0, b"")
"""What `Render` returns to forget the key: nothing came of the request, and it may be mended and sent again."""

HEAVY: Final = 12
"""Commands per group of a full batch, at the most: large transactions share their commit with fewer others."""

TRY_RUNNERS: Final = 2
"""Batches of tries at a time: one is worked on here while the other waits for PostgreSQL."""

ATTEMPTS: Final = 6
"""How often a batch is tried again after conflicts or lost connections before its callers are told."""

GIVE_UP_SECONDS: Final = 10.0
"""How long after a batch was taken it is still tried again, however few the attempts: a frozen server takes all the
time that there is for each. What is halved since the server refuses it is tried once more all the same."""

WAIT_SECONDS: Final = 5.0
"""How long a group may wait to be taken. After that its caller is told that nothing was done, which is then so."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Commands that are applied in order, in one transaction; one that fails stops those behind it, other than those
    next to it that the same statement takes.

    `claim` is the idempotency key that the request came with: if somebody holds it already, nothing is applied.
    `render` makes the reply that is stored, in the same transaction, under `claim` or `answers`.
    """

    commands: Sequence[Command]
    claim: Claim | None = None
    answers: KeyRef | None = None
    render: Render | None = None

    def touches(self) -> set[Hashable]:
        """What no two groups of one batch may share, since one statement can't change a row twice."""
        touched: set[Hashable] = {(getattr(c, "resource", None), c.tenant_id, c.id) for c in self.commands}
        key = self.claim.ref if self.claim else self.answers
        return touched | {key} if key else touched

    def weight(self) -> int:
        """How much of a batch it takes: one for each command, and more for a large claim."""
        return sum(
            1 + memoryview(command.claim).nbytes // 256 for command in self.commands if isinstance(command, Try)
        ) + sum(not isinstance(command, Try) for command in self.commands)

    def tries(self) -> bool:
        return any(isinstance(command, (Try, Begin)) for command in self.commands)


class Result(msgspec.Struct, frozen=True):
    """What became of a group: outcomes of the commands that were applied, and the reply as it is stored, which is
    another's where the key had one already.

    `held` is set, and nothing was applied, where somebody holds the idempotency key.
    """

    outcomes: Sequence[Outcome[Any]]
    reply: Reply | None = None
    held: Held | None = None


class Applier(Protocol):
    """Applies commands of one kind, of one resource, in one statement."""

    async def apply(self, connection: AsyncConnection, commands: Sequence[Any]) -> list[Outcome[Any]]: ...


class Statements:
    """Which statement applies a command, and in which order statements come in a transaction.

    The order is the order of locks: transactions first, then resource by resource.
    """

    def __init__(self, resources: Sequence[Resource], *, lease_seconds: float) -> None:
        self._ranks: dict[str | None, int] = {None: 0}
        self._appliers: dict[tuple[type[Command], str | None], Applier] = {
            (Begin, None): transactions.Begins(),
            (MoveTransaction, None): transactions.TransactionMoves(lease_seconds=lease_seconds),
        }
        for rank, resource in enumerate(resources, start=1):
            self._ranks[resource.name] = rank
            self._appliers[Try, resource.name] = Tries(resource, lease_seconds=lease_seconds)
            self._appliers[Move, resource.name] = Moves(resource, lease_seconds=lease_seconds)

    def rank(self, command: Command) -> tuple[int, bool]:
        return self._ranks[getattr(command, "resource", None)], isinstance(command, (Move, MoveTransaction))

    async def apply(self, connection: AsyncConnection, commands: Sequence[Command]) -> list[Outcome[Any]]:
        """Apply commands of one rank."""
        first = commands[0]
        return await self._appliers[type(first), getattr(first, "resource", None)].apply(connection, commands)


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


class _Running:
    """A group on its way through a batch."""

    def __init__(self, group: Group, statements: Statements) -> None:
        self.group = group
        self.ranks = [statements.rank(command) for command in group.commands]
        self.outcomes: list[Outcome[Any]] = []
        """Of the commands that are behind us."""
        self.held: Held | None = None
        self.stopped = not group.commands
        self._run: dict[int, Outcome[Any] | None] = {}
        """Of the commands that are applied together now, those that were answered `again` without an outcome."""

    @property
    def left(self) -> Sequence[tuple[int, bool]]:
        return self.ranks[len(self.outcomes) :]

    def next(self) -> list[int]:
        """The indexes of the commands to apply now: all in a row that one statement can take."""
        if not self._run:
            start = len(self.outcomes)
            rows = set()
            for index in range(start, len(self.ranks)):
                row = self.group.commands[index].id
                if self.ranks[index] != self.ranks[start] or row in rows:
                    break
                rows.add(row)
                self._run[index] = None
        return [index for index, outcome in self._run.items() if outcome is None]

    def take(self, index: int, outcome: Outcome[Any]) -> None:
        if outcome.code == AGAIN:
            return
        self._run[index] = outcome
        done = [found for found in self._run.values() if found is not None]
        if len(done) == len(self._run):
            self.outcomes += done
            self.stopped = len(self.outcomes) == len(self.ranks) or not all(found.ok for found in done)
            self._run = {}


async def apply_groups(connection: AsyncConnection, groups: Sequence[Group], statements: Statements) -> list[Result]:
    """Apply groups in the transaction that `connection` is in; the caller commits.

    Statement after statement, each for all groups that have come to it (see `next_rank`).
    """
    running = [_Running(group, statements) for group in groups]
    claiming = [r for r in running if r.group.claim]
    if claiming:
        held = await idempotency.claim(connection, [r.group.claim for r in claiming if r.group.claim])
        for r, holder in zip(claiming, held, strict=True):
            r.held = holder
            r.stopped = r.stopped or holder is not None
    late = [c for r in running if not r.stopped for c in r.group.commands[1:] if isinstance(c, MoveTransaction)]
    if late:
        await transactions.lock(connection, [(c.tenant_id, c.id) for c in late])
    bound = 3 * sum(len(group.commands) for group in groups) + 10
    while active := [r for r in running if not r.stopped]:
        rank = next_rank([r.left for r in active])
        chosen = [(r, index) for r in active if r.left[0] == rank for index in r.next()]
        outcomes = await statements.apply(connection, [r.group.commands[index] for r, index in chosen])
        for (r, index), outcome in zip(chosen, outcomes, strict=True):
            r.take(index, outcome)
        bound -= 1
        if bound < 0:
            raise RuntimeError("a command was answered `again` without end")
    return await _answer(connection, running)


def next_rank(left: Sequence[Sequence[tuple[int, bool]]]) -> tuple[int, bool]:
    """Which statement comes next, given the ranks of the commands that are left in each group.

    One that some group will come to later waits for that group, so that each statement is run once, and locks its
    rows in one go, in order: two processes that locked stock twice in a batch could deadlock. Where all wait for one
    another, the group that is furthest behind goes on.
    """
    heads = sorted({ranks[0] for ranks in left})
    for rank in heads:
        if not any(rank in ranks[1:] for ranks in left if ranks[0] != rank):
            return rank
    return max(left, key=len)[0]


async def _answer(connection: AsyncConnection, running: Sequence[_Running]) -> list[Result]:
    """Store the replies of those that have one now, and forget the keys of those that came to nothing."""
    stored: dict[KeyRef, Reply] = {}
    released: list[KeyRef] = []
    replies: list[tuple[KeyRef | None, Reply | None]] = []
    for r in running:
        ref = r.group.claim.ref if r.group.claim else r.group.answers
        reply = r.group.render(r.outcomes) if r.held is None and r.group.render is not None else None
        if ref and reply is FORGET:
            released.append(ref)
        elif ref and reply:
            stored[ref] = reply
        replies.append((ref, reply))
    if stored:
        stored = await idempotency.store(connection, stored)
    if released:
        await idempotency.release(connection, released)
    return [
        Result(r.outcomes, stored.get(ref, reply) if ref and reply else reply, r.held)
        for r, (ref, reply) in zip(running, replies, strict=True)
    ]


class Lane:
    """One queue, and as many batches at a time as it has runners, each with a connection of its own.

    Nobody waits for long: a batch is given up in time, and what isn't taken in time is refused, though every runner be
    stuck with a server that doesn't answer.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        statements: Statements,
        metrics: Metrics,
        *,
        batch: int,
        queue: int,
        runners: int,
    ) -> None:
        self._name = name
        self._database = database
        self._statements = statements
        self._metrics = metrics
        self._batch = batch
        self._limit = queue
        self._waiting: deque[_Waiting] = deque()
        """In the order of their arrival."""
        self._arrived = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._refusing: asyncio.TimerHandle | None = None
        self._closing = False
        self._connections: list[AsyncConnection | None] = [None] * runners
        self._tasks = [asyncio.create_task(self._run(n), name=f"{name} {n} of {database.name}") for n in range(runners)]

    async def submit(self, group: Group) -> Result:
        """Queue a group, and wait until it is committed. Cancelling the caller doesn't undo it."""
        if self._closing or len(self._waiting) >= self._limit:
            raise Overloaded
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        now = self._clock()
        self._waiting.append(_Waiting(group, future, now))
        if self._refusing is None:
            self._refusing = loop.call_at(now + WAIT_SECONDS, self._refuse)
        self._arrived.set()
        return await asyncio.shield(future)

    def _refuse(self) -> None:
        """Refuse what has waited too long, and come back when the next would have. One timer for the whole queue."""
        self._refusing = None
        late = self._clock() - WAIT_SECONDS
        refused = 0
        while self._waiting and self._waiting[0].since <= late:
            self._fail([self._waiting.popleft()], Overloaded())
            refused += 1
        if refused:
            log.warning("waited_too_long", lane=self._name, database=self._database.name, refused=refused)
        if self._waiting:
            next_late = self._waiting[0].since + WAIT_SECONDS
            self._refusing = asyncio.get_running_loop().call_at(next_late, self._refuse)

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._tasks)
        if self._refusing is not None:
            self._refusing.cancel()

    async def _run(self, runner: int) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    break
                self._arrived.clear()
                await self._arrived.wait()
                continue
            taken = self._take()
            try:
                await self._settle(taken, runner)
            except Exception as error:  # a lane that dies would hang everybody: tell these, and go on
                log.exception("batch_failed", lane=self._name, database=self._database.name)
                self._fail(taken, error)
        await self._drop(runner)

    def _take(self) -> list[_Waiting]:
        """The next groups, in order, no two of which touch the same row."""
        taken: list[_Waiting] = []
        blocked: set[Hashable] = set()
        passed: list[_Waiting] = []
        weight = 0
        while self._waiting and len(taken) < self._batch and len(passed) < self._batch and weight < HEAVY * self._batch:
            entry = self._waiting.popleft()
            weight += entry.group.weight()
            touched = entry.group.touches()
            if blocked.isdisjoint(touched):
                taken.append(entry)
            else:
                passed.append(entry)
            blocked |= touched
        self._waiting.extendleft(reversed(passed))
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
                self._fail(self._waiting, Unavailable("database_unavailable"))
                self._waiting.clear()
                return
            halves = refused.failure is Failure.POISON or (refused.failure is Failure.BLOCKED and self._clock() < until)
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
                    lane=self._name,
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
                for entry, result in zip(part, results, strict=True):
                    self._count(entry.group, result)
                    if not entry.future.done():
                        entry.future.set_result(result)
                return None
        raise AssertionError

    def _give_up(self, part: Sequence[_Waiting], refused: _Refused, unknown: bool) -> None:
        """Tell those whom the server won't serve, or not in time."""
        if refused.failure is Failure.POISON:
            commands = [(type(command).__name__, str(command.id)) for entry in part for command in entry.group.commands]
            log.error("poisonous_group", lane=self._name, commands=commands, error=_kind(refused.error))
            self._fail(part, TccError("internal_error"))
        elif refused.failure is Failure.BLOCKED and not unknown:
            self._fail(part, Unavailable("database_unavailable", "It took too long; nothing was done."))
        else:
            self._fail(part, OutcomeUnknown())

    def _count(self, group: Group, result: Result) -> None:
        """Tell the metrics what became of tries and of transactions, now that it is committed."""
        for command, outcome in zip(group.commands, result.outcomes, strict=False):
            if isinstance(command, Try):
                self._metrics.tries.labels(command.resource, outcome.code).inc()
            elif (
                isinstance(command, MoveTransaction)
                and outcome.code == DONE
                and outcome.view
                and outcome.view.state in TERMINAL
            ):
                self._metrics.ended.labels(outcome.view.state).inc()

    async def _commit(self, groups: Sequence[Group], runner: int) -> list[Result]:
        connection = self._connections[runner]
        if connection is None:
            connection = self._connections[runner] = await self._database.batches.connect()
        try:
            async with self._database.batch(connection):
                return await apply_groups(connection, groups, self._statements)
        except Exception as error:
            if failure_of(error) is Failure.LOST:
                await self._drop(runner, broken=True)
            raise

    async def _drop(self, runner: int, *, broken: bool = False) -> None:
        connection, self._connections[runner] = self._connections[runner], None
        if connection is None:
            return
        try:
            if broken:
                await connection.invalidate()
            await connection.close()
        except Exception as error:  # noqa: BLE001 - it is gone either way
            log.info("connection_not_closed", database=self._database.name, error=str(error)[:200])

    def _fail(self, entries: Iterable[_Waiting], error: BaseException) -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(error)


def _kind(error: BaseException) -> str:
    """What an error is, without the statement and the data that its text may carry."""
    return f"{type(error).__name__} {getattr(getattr(error, 'orig', None), 'sqlstate', '') or ''}".strip()


class Batcher:
    """The lanes of one database. Tries have one of their own, so that decisions don't queue behind them."""

    def __init__(
        self,
        database: Database,
        resources: Sequence[Resource],
        metrics: Metrics,
        *,
        lease_seconds: float,
        batch: int = 32,
        queue: int = 4096,
    ) -> None:
        statements = Statements(resources, lease_seconds=lease_seconds)
        self.database = database
        self._lanes: Mapping[bool, Lane] = {
            tries: Lane(
                "try" if tries else "move",
                database,
                statements,
                metrics,
                batch=batch,
                queue=queue,
                runners=TRY_RUNNERS if tries else 1,
            )
            for tries in (True, False)
        }

    async def submit(self, group: Group) -> Result:
        """Apply a group of commands, together with everybody else's.

        Raises `Overloaded` when the queue is full or doesn't move, `OutcomeUnknown` when the database went away.
        """
        return await self._lanes[group.tries()].submit(group)

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        for lane in self._lanes.values():
            await lane.close()
