"""Groups of commands, and how a database transaction applies many of them: statement after statement, each for all.

What a request asks for is a `Group`. Those that share a transaction are applied side by side, by as few set-based
statements as there are kinds of command in them (`tcc.batch` decides who shares one).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Final, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc import idempotency, transactions
from tcc.commands import Begin, Command, Move, MoveTransaction, Outcome, Try
from tcc.idempotency import Claim, Held, KeyRef, Reply
from tcc.reservations import AGAIN, Moves, Tries
from tcc.resource import Resource

Render = Callable[[Sequence[Outcome[Any]]], Reply | None]
"""The reply to a request, from the outcomes of its commands; None as long as there is nothing to say."""

FORGET: Final = Reply(0, b"")
"""What `Render` returns to forget the key: nothing came of the request, and it may be mended and sent again."""

Rank = tuple[int, bool]
"""Which statement applies a command, in the order of locks: transactions first, then resource by resource; tries
before moves."""


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
    """Which statement applies a command, and in which order statements come in a transaction."""

    def __init__(self, resources: Sequence[Resource], *, lease_seconds: float) -> None:
        self._appliers: dict[Rank, Applier] = {
            (0, False): transactions.Begins(),
            (0, True): transactions.TransactionMoves(lease_seconds=lease_seconds),
        }
        self._ranks: dict[tuple[type[Command], str | None], Rank] = {
            (Begin, None): (0, False),
            (MoveTransaction, None): (0, True),
        }
        for number, resource in enumerate(resources, start=1):
            self._appliers[number, False] = Tries(resource, lease_seconds=lease_seconds)
            self._appliers[number, True] = Moves(resource, lease_seconds=lease_seconds)
            self._ranks[Try, resource.name] = (number, False)
            self._ranks[Move, resource.name] = (number, True)

    def ranks(self, commands: Sequence[Command]) -> tuple[Rank, ...]:
        return tuple([self._ranks[type(command), getattr(command, "resource", None)] for command in commands])

    async def apply(self, connection: AsyncConnection, rank: Rank, commands: Sequence[Command]) -> list[Outcome[Any]]:
        """Apply commands of one rank."""
        return await self._appliers[rank].apply(connection, commands)


class _Running:
    """A group on its way through a batch."""

    def __init__(self, group: Group, ranks: tuple[Rank, ...]) -> None:
        self.group = group
        self.left = ranks
        """Of the commands that are ahead of us."""
        self.outcomes: list[Outcome[Any]] = []
        """Of the commands that are behind us."""
        self.held: Held | None = None
        self.known = group.claim is None
        """Whether the key that the reply goes under, if any, has its row already."""
        self._run: list[Outcome[Any] | None] = []
        """Of the commands that are applied together now; None for those that are yet to be, for the first time or
        since they were answered `again`."""

    def next(self) -> list[Command]:
        """The commands to apply now: all in a row that one statement can take."""
        start, commands = len(self.outcomes), self.group.commands
        if not self._run:
            length, rank = 1, self.left[0]
            while length < len(self.left) and self.left[length] == rank:
                if any(commands[start + length].id == commands[start + n].id for n in range(length)):
                    break
                length += 1
            self._run = [None] * length
        return [commands[start + n] for n, outcome in enumerate(self._run) if outcome is None]

    def take(self, outcomes: Sequence[Outcome[Any]]) -> None:
        """What became of the commands that `next` gave."""
        due = iter(outcomes)
        run = [outcome or next(due) for outcome in self._run]
        if any(outcome.code == AGAIN for outcome in run):
            self._run = [None if outcome.code == AGAIN else outcome for outcome in run]
            return
        self.outcomes += run
        self.left = self.left[len(run) :] if all(outcome.ok for outcome in run) else ()
        self._run = []


async def apply_groups(connection: AsyncConnection, groups: Sequence[Group], statements: Statements) -> list[Result]:
    """Apply groups in the transaction that `connection` is in; the caller commits.

    Statement after statement, each for all groups that have come to it (see `next_rank`).
    """
    running = [_Running(group, statements.ranks(group.commands)) for group in groups]
    await _look_up(connection, running)
    late = [c for r in running for c in r.group.commands[1:] if isinstance(c, MoveTransaction) and r.left]
    if late:
        await transactions.lock(connection, [(c.tenant_id, c.id) for c in late])
    bound = 3 * sum(len(group.commands) for group in groups) + 10
    while active := [r for r in running if r.left]:
        rank = next_rank({r.left for r in active})
        chosen = [(r, r.next()) for r in active if r.left[0] == rank]
        outcomes = iter(await statements.apply(connection, rank, [c for _, commands in chosen for c in commands]))
        for r, commands in chosen:
            r.take([next(outcomes) for _ in commands])
        bound -= 1
        if bound < 0:
            raise RuntimeError("a command was answered `again` without end")
    return await _answer(connection, running)


async def _look_up(connection: AsyncConnection, running: Sequence[_Running]) -> None:
    """Stop the groups whose idempotency key somebody holds.

    A key that our own first run of this batch has taken (the connection was lost in its COMMIT) is ours.
    """
    claims = [(r, r.group.claim) for r in running if r.group.claim]
    if not claims:
        return
    for (r, claim), held in zip(
        claims, await idempotency.look(connection, [claim.ref for _, claim in claims]), strict=True
    ):
        if held is None:
            continue
        r.known = True
        if held.reply is not None or held.token != claim.token:
            r.held = held
            r.left = ()


def next_rank(left: Collection[Sequence[Rank]]) -> Rank:
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
    """Take the keys of those that came with new ones, store the replies of those that have one now, and forget the
    keys of those that came to nothing."""
    taken: list[tuple[Claim, Reply | None]] = []
    stored: dict[KeyRef, Reply] = {}
    released: list[KeyRef] = []
    replies: list[tuple[KeyRef | None, Reply | None]] = []
    for r in running:
        claim = r.group.claim
        ref = claim.ref if claim else r.group.answers
        reply = r.group.render(r.outcomes) if r.held is None and r.group.render is not None else None
        replies.append((ref, reply))
        if claim and not r.known:
            if reply is not FORGET:
                taken.append((claim, reply))
        elif ref and reply is FORGET:
            released.append(ref)
        elif ref and reply:
            stored[ref] = reply
    if taken:
        await idempotency.keep(connection, taken)
    if stored:
        stored = await idempotency.store(connection, stored)
    if released:
        await idempotency.release(connection, released)
    return [
        Result(r.outcomes, stored.get(ref, reply) if ref else reply, r.held)
        for r, (ref, reply) in zip(running, replies, strict=True)
    ]
