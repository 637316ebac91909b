"""Groups of commands, and how a database transaction applies many of them: statement after statement, each for all.

What a request asks for is a `Group`. Those that share a transaction are applied side by side, by as few set-based
statements as there are kinds of command in them (`tcc.batch` decides who shares one).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc import idempotency, reservations, transactions
from tcc.commands import Begin, Command, Foreseen, Move, MoveTransaction, Outcome, Try
from tcc.db import Conflict
from tcc.idempotency import Claim, Held, KeyRef, Reply
from tcc.procedure import BEGIN, LOCK, MOVE_TRANSACTION, Procedure, Step, move_kind, try_kind
from tcc.reservations import ORD
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
    `render` makes the reply that is stored, in the same transaction, under `claim` or `answers`; without either, there
    is none.
    """

    commands: Sequence[Command]
    claim: Claim | None = None
    answers: KeyRef | None = None
    render: Render | None = None
    foreseen: Sequence[Foreseen] | None = None
    """What each command leaves behind if all goes well; None where that can't be known before."""

    def touches(self) -> set[Hashable]:
        """What no two groups of one batch may share, since one statement can't change a row twice."""
        touched: set[Hashable] = {(getattr(c, "resource", None), c.tenant_id, c.id) for c in self.commands}
        key = self.claim.ref if self.claim else self.answers
        return touched | {key} if key else touched

    def weight(self) -> int:
        """How much of a batch it takes: one for each command, and more for a large claim."""
        claims = [command.claim for command in self.commands if type(command) is Try]
        return len(self.commands) + sum([memoryview(claim).nbytes // 256 for claim in claims])

    def tries(self) -> bool:
        return self.foreseen is None and any(type(command) in (Try, Begin) for command in self.commands)


class Result(msgspec.Struct, frozen=True):
    """What became of a group: outcomes of the commands that were applied, and the reply as it is stored, which is
    another's where the key had one already.

    `held` is set, and nothing was applied, where somebody holds the idempotency key.
    """

    outcomes: Sequence[Outcome[Any]]
    reply: Reply | None = None
    held: Held | None = None


Read = Callable[[Sequence[Any], Sequence[Any]], Sequence[Outcome[Any]]]
"""The outcomes of a step's commands, in their order, from its rows; of no meaning for a command that was left out."""


class Kind(NamedTuple):
    """How commands of one rank are applied, by the procedure's name for them, and what became of them is read."""

    name: str
    read: Read


class Kinds:
    """Which kind a command is, and in which order kinds come in a transaction."""

    def __init__(self, resources: Sequence[Resource], *, lease_seconds: float) -> None:
        self.procedure = Procedure(resources)
        self.lease_seconds = lease_seconds
        self.by_rank: dict[Rank, Kind] = {
            (0, False): Kind(BEGIN, transactions.begun),
            (0, True): Kind(MOVE_TRANSACTION, transactions.moved_transactions),
        }
        self._ranks: dict[tuple[type[Command], str | None], Rank] = {
            (Begin, None): (0, False),
            (MoveTransaction, None): (0, True),
        }
        for number, resource in enumerate(resources, start=1):
            self.by_rank[number, False] = Kind(try_kind(resource.name), partial(reservations.tried, held=resource.held))
            self.by_rank[number, True] = Kind(move_kind(resource.name), reservations.moved_reservations)
            self._ranks[Try, resource.name] = (number, False)
            self._ranks[Move, resource.name] = (number, True)

    def ranks(self, commands: Sequence[Command]) -> tuple[Rank, ...]:
        return tuple([self._ranks[type(command), getattr(command, "resource", None)] for command in commands])


class _Running:
    """A group on its way through a batch."""

    def __init__(self, group: Group, ranks: tuple[Rank, ...]) -> None:
        self.group = group
        self.left = ranks
        """Of the commands that aren't in a step yet."""
        self.outcomes: list[Outcome[Any]] = []
        self.held: Held | None = None
        self.known = group.claim is None
        """Whether the key that the reply goes under, if any, has its row already."""
        self.stopped = False

    def next(self) -> Sequence[Command]:
        """The commands of the next step: all in a row that one statement can take."""
        commands = self.group.commands[-len(self.left) :]
        length, rank = 1, self.left[0]
        while length < len(self.left) and self.left[length] == rank:
            if any(commands[length].id == commands[n].id for n in range(length)):
                break
            length += 1
        self.left = self.left[length:]
        return commands[:length]

    def take(self, outcomes: Sequence[Outcome[Any]]) -> None:
        """What became of its commands in one step. One that failed stops those of later steps."""
        if not self.stopped:
            self.outcomes += outcomes
            self.stopped = not all(outcome.ok for outcome in outcomes)


class _Stage(NamedTuple):
    """A step and its number, and whose commands are in it, how many of each."""

    number: int
    step: Step
    read: Read
    members: Sequence[tuple[_Running, int]]


async def apply_groups(connection: AsyncConnection, groups: Sequence[Group], kinds: Kinds) -> list[Result]:
    """Apply groups in the transaction that `connection` is in; the caller commits.

    Statement after statement, each for all groups that have come to it (see `next_rank`).
    """
    running, steps, stages = _planned(groups, kinds)
    claims = {n: claim for n, group in enumerate(groups) if (claim := group.claim)}
    rows = []
    if steps or claims:
        rows = await kinds.procedure.apply(connection, steps, claims, lease_seconds=kinds.lease_seconds)
    of_keys, of_stages = _split(stages, rows)
    if of_keys:
        await _look_up(connection, running, [list(claims)[row[ORD] - 1] for row in of_keys])
    _take(of_stages)
    return await _answer(connection, running)


def _planned(groups: Sequence[Group], kinds: Kinds) -> tuple[list[_Running], list[Step], list[_Stage]]:
    """The steps that apply groups, the stages that those of them are which have outcomes: the last ones."""
    running = [_Running(group, kinds.ranks(group.commands)) for group in groups]
    late = [
        (n, {"tenant_id": command.tenant_id, "id": command.id})
        for n, group in enumerate(groups)
        for command in group.commands[1:]
        if type(command) is MoveTransaction
    ]
    steps = [Step(LOCK, [key for _, key in late], [n for n, _ in late])] if late else []
    stages: list[_Stage] = []
    left = list(enumerate(running))
    while left := [(n, r) for n, r in left if r.left]:
        rank = next_rank({r.left for _, r in left})
        kind = kinds.by_rank[rank]
        number = len(steps) + 1
        members: list[tuple[_Running, int]] = []
        commands: list[Command] = []
        of: list[int] = []
        for n, r in left:
            if r.left[0] == rank:
                these = r.next()
                members.append((r, len(these)))
                commands += these
                of += [n] * len(these)
        steps.append(Step(kind.name, commands, of))
        stages.append(_Stage(number, steps[-1], kind.read, members))
    return running, steps, stages


def _split(stages: Sequence[_Stage], rows: Sequence[Any]) -> tuple[Sequence[Any], list[tuple[_Stage, Sequence[Any]]]]:
    """The rows about keys, and those of each stage."""
    rows_of = {number: list(of_step) for number, of_step in groupby(rows, itemgetter(0))}
    return rows_of.get(0, ()), [(stage, rows_of.get(stage.number, ())) for stage in stages]


def _take(of_stages: Sequence[tuple[_Stage, Sequence[Any]]]) -> None:
    """Give groups their outcomes."""
    for stage, rows in of_stages:
        outcomes = iter(stage.read(stage.step.commands, rows))
        for r, count in stage.members:
            r.take([next(outcomes) for _ in range(count)])


async def _look_up(connection: AsyncConnection, running: Sequence[_Running], found: Sequence[int]) -> None:
    """Look at the keys of groups whose keys have rows. Those that somebody holds have stopped their groups.

    A key that our own first run of this batch has taken (the connection was lost in its COMMIT) is ours.
    """
    claims = [(running[n], claim) for n in found if (claim := running[n].group.claim)]
    there = await idempotency.look(connection, [claim.ref for _, claim in claims])
    for (r, claim), held in zip(claims, there, strict=True):
        if held is None:
            raise Conflict("A key was forgotten while it was looked at.")
        r.known = True
        if held.reply is not None or held.token != claim.token:
            r.held = held
            r.stopped = True


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
        reply = r.group.render(r.outcomes) if ref and r.held is None and r.group.render is not None else None
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
