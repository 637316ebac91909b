"""Drives transactions: asks the planner what may be done, submits commands, asks the outside, records what came back.

No SQL and no HTTP in here. Whoever drives (the request that began it, or a worker after a crash) starts from what is
known, and every step is safe to take twice: rows move only from the states the machine allows, and the outside is
asked under keys that never change. Two drivers at once get in each other's way, but do no harm.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from tcc import reads
from tcc.asking import Asking, fields
from tcc.batch import Batcher
from tcc.commands import (
    DONE,
    Begin,
    BranchPlan,
    Command,
    Context,
    Move,
    MoveTransaction,
    Outcome,
    ReservationView,
    TransactionView,
    Try,
)
from tcc.errors import Rejected, Unavailable
from tcc.groups import Group, Result
from tcc.idempotency import Claim, KeyRef, Reply
from tcc.ids import new_id
from tcc.knowledge import BranchState, Transaction, branch_of, foreseen_of, learned_of
from tcc.machine import TERMINAL, TRANSACTION, Event, Reason, State
from tcc.protocols.tcc import (
    AskBranch,
    Branch,
    Known,
    MoveBranch,
    MoveWhole,
    Park,
    Step,
    TryBranch,
    assume,
    plan,
)
from tcc.settings import Settings
from tcc.stores import Stores

log = structlog.get_logger(__name__)

MAX_ROUNDS: Final = 64
"""More rounds than any transaction needs between two waits; a driver that has taken them calls a person."""


TransactionReply = Callable[[Transaction], Reply | None]
"""The reply to the request that began a transaction, or None while there is nothing final to say."""


Wake = Callable[[str, UUID, float], None]
"""Have a transaction (its tenant and id) driven in so many seconds; may come to nothing."""


class Begun(msgspec.Struct, frozen=True):
    """What became of a request, and the transaction to drive on, if there is one: see `begin` and `conclude`."""

    transaction: Transaction | None
    result: Result


class Part(msgspec.Struct, frozen=True):
    """The steps of a round that one database takes, in one group. `last`: see `_is_last`."""

    place: Batcher
    steps: tuple[Step, ...]
    last: bool


class Round(msgspec.Struct, frozen=True):
    """What can be done at once: parts for the databases, branches whose outside is to be asked; or why to stop."""

    parts: tuple[Part, ...] = ()
    asking: tuple[int, ...] = ()
    park: str | None = None


class Coordinator:
    """Begins, decides and drives transactions."""

    def __init__(self, stores: Stores, asking: Asking, settings: Settings, wake: Wake) -> None:
        self._stores = stores
        self._asking = asking
        self._settings = settings
        self._wake = wake
        self._order = {name: index for index, name in enumerate(stores.resources)}
        self._external = {name: resource.external for name, resource in stores.resources.items()}
        # Pure, and asked for every round of every transaction: there are few answers, and each takes long to find.
        self._stretch = lru_cache(maxsize=4096)(self._find_stretch)
        self._round = lru_cache(maxsize=4096)(self._find_round)

    async def begin(
        self,
        context: Context,
        *,
        id: UUID,
        branches: Sequence[tuple[str, msgspec.Raw]],
        confirm: str,
        ttl_seconds: float,
        reference: str | None,
        claim: Claim,
        reply: TransactionReply,
    ) -> Begun:
        """Record a transaction, with as many of its first steps as the same commit can take.

        What is returned is to be driven on. `reply` is stored under `claim` as soon as it gives one.
        """
        plans = [BranchPlan(resource, new_id(), raw) for resource, raw in branches]
        begin = Begin(
            **fields(context),
            id=id,
            branches=plans,
            confirm=confirm,
            ttl_seconds=ttl_seconds,
            retry_seconds=self._settings.lease_seconds,
            reference=reference,
        )
        nothing = tuple(BranchState(branch) for branch in plans)
        known = self._known(State.TRYING, confirm == "auto", False, nothing)
        steps = self._stretch(known, (), self._stores.home)
        commands = [self._command(context, step, id, plans, ttl_seconds, reference) for step in steps]

        def learned(outcomes: Sequence[Outcome[Any]]) -> Transaction:
            begun: Any = outcomes[0].view
            return learned_of(Transaction(begun, nothing), steps, outcomes[1:])

        render = (lambda outcomes: reply(learned(outcomes))) if _is_last(steps) else None
        group = Group(commands=[begin, *commands], claim=claim, render=render)
        result = await self._stores.home.submit(group)
        return Begun(None if result.held else learned(result.outcomes), result)

    async def load(self, tenant_id: str, id: UUID, *, whole: bool = True) -> Transaction:
        """Read a transaction and its branches.

        Raises `Rejected` (`not_found`), and `Unavailable` when the coordinator's database is away, or, unless
        `whole` is False, a branch's.
        """
        found = await reads.transaction(self._stores.home.database, tenant_id, id)
        if found is None:
            raise Rejected("not_found", "There is no transaction under this id.")
        view, overdue = found
        (transaction,) = await self.complete(tenant_id, [view], whole=whole)
        return msgspec.structs.replace(transaction, overdue=overdue)

    async def complete(
        self, tenant_id: str, views: Sequence[TransactionView], *, whole: bool = True
    ) -> list[Transaction]:
        """Add the branches, read from wherever they are. Raises `Unavailable` unless `whole` is False."""
        by_place: dict[Batcher, list[tuple[str, UUID]]] = {}
        plans = [view.plans() for view in views]
        for branch in itertools.chain.from_iterable(plans):
            by_place.setdefault(self._stores.of(branch.resource), []).append((branch.resource, branch.id))
        pages = await asyncio.gather(
            *(reads.reservations(place.database, tenant_id, keys) for place, keys in by_place.items()),
            return_exceptions=True,
        )
        found: dict[tuple[str, UUID], ReservationView] = {}
        away: set[Batcher] = set()
        for place, page in zip(by_place, pages, strict=True):
            if isinstance(page, dict):
                found |= page
            elif isinstance(page, Unavailable) and not whole:
                away.add(place)
            else:
                raise page

        def state_of(view: TransactionView, plan: BranchPlan) -> BranchState:
            there = found.get((plan.resource, plan.id))
            return branch_of(view, plan, there, unknown=self._stores.of(plan.resource) in away)

        return [
            Transaction(view, tuple([state_of(view, plan) for plan in of_view]))
            for view, of_view in zip(views, plans, strict=True)
        ]

    async def decide(
        self,
        context: Context,
        id: UUID,
        event: Event,
        *,
        reason: Reason | None = None,
        ttl_seconds: float | None = None,
        claim: Claim | None = None,
        render: Callable[[Sequence[Outcome[Any]]], Reply | None] | None = None,
    ) -> Result:
        """Confirm, cancel, extend or retry a transaction: one guarded update, which is a decision's commit point."""
        command = MoveTransaction(**fields(context), id=id, event=event, reason=reason, ttl_seconds=ttl_seconds)
        return await self._stores.home.submit(Group(commands=[command], claim=claim, render=render))

    async def conclude(
        self,
        context: Context,
        id: UUID,
        event: Event,
        *,
        reason: Reason | None,
        claim: Claim | None,
        refused: Callable[[Outcome[Any]], Reply],
        reply: TransactionReply,
    ) -> Begun:
        """Confirm or cancel a transaction, with as many steps of its branches as the same commit can take.

        What is returned is to be driven on; there is no transaction where this did not decide, or could not read it.
        `refused`, or `reply` as soon as it gives one, is stored under `claim`.
        """
        known = await self._at_home(context.tenant_id, id)
        decided = TRANSACTION.target(event, known.view.state) if known else None
        if known is None or decided is None:  # to be decided all the same, as it may have moved; branches follow later
            render = lambda outcomes: None if outcomes[0].ok else refused(outcomes[0])  # noqa: E731
            return Begun(None, await self.decide(context, id, event, reason=reason, claim=claim, render=render))
        view = known.view
        of = self._known(decided, view.confirm == "auto", False, known.branches)
        steps: tuple[Step, ...] = (MoveWhole(event, reason), *self._stretch(of, (), self._stores.home))
        plans = [branch.plan for branch in known.branches]
        commands = [self._command(context, step, id, plans, 0, view.reference) for step in steps]

        def learned(outcomes: Sequence[Outcome[Any]]) -> Transaction | None:
            # Where somebody else has decided since it was read, what was read of its branches is out of date as well.
            return learned_of(known, steps, outcomes) if outcomes[0].code == DONE else None

        def render_all(outcomes: Sequence[Outcome[Any]]) -> Reply | None:
            if not outcomes[0].ok:
                return refused(outcomes[0])
            transaction = learned(outcomes)
            return reply(transaction) if transaction else None

        foreseen = foreseen_of(known, steps, commands)
        group = Group(commands=commands, claim=claim, render=render_all, foreseen=foreseen)
        result = await self._stores.home.submit(group)
        return Begun(None if result.held else learned(result.outcomes), result)

    async def _at_home(self, tenant_id: str, id: UUID) -> Transaction | None:
        """A transaction all of whose branches are in the coordinator's own database, as it is read there. None where
        that isn't so: a decision waits for no other database."""
        try:
            found = await reads.transaction(self._stores.home.database, tenant_id, id)
            if found and all(self._stores.of(plan.resource) is self._stores.home for plan in found[0].plans()):
                return (await self.complete(tenant_id, [found[0]]))[0]
        except Unavailable:
            pass
        return None

    async def retry(self, context: Context, id: UUID) -> Result:
        """Take up again what waited for a person, its branches first. Raises `Rejected` (`not_found`)."""
        transaction = await self.load(context.tenant_id, id)
        moves = [
            Move(**fields(context), id=b.plan.id, resource=b.plan.resource, transaction_id=id, event=Event.RETRY)
            for b in transaction.branches
            if _attention(b)
        ]
        await asyncio.gather(*(self._stores.of(move.resource).submit(Group(commands=[move])) for move in moves))
        return await self.decide(context, id, Event.RETRY)

    async def extend_branches(self, context: Context, transaction: Transaction, ttl_seconds: float) -> Transaction:
        """Hold the branches as long as their transaction, which has just been extended, and the grace."""
        steps = [
            MoveBranch(branch, Event.EXTEND)
            for branch in self._known(State.TRIED, False, False, transaction.branches).branches
            if branch.state is State.TRIED
        ]
        seconds = ttl_seconds + self._settings.grace_seconds
        prepared = {
            step.branch.index: Move(
                **fields(context),
                id=transaction.branches[step.branch.index].plan.id,
                resource=step.branch.resource,
                transaction_id=transaction.view.id,
                event=Event.EXTEND,
                ttl_seconds=seconds,
            )
            for step in steps
        }
        transaction, _ = await self._take(context, transaction, self._parts(steps), prepared, [], None, None)
        return transaction

    async def drive(
        self,
        context: Context,
        transaction: Transaction,
        *,
        answers: KeyRef | None = None,
        reply: TransactionReply | None = None,
        patience_seconds: float = 0,
    ) -> Transaction:
        """Take a transaction as far as it goes now; safe at any time, from anywhere, however often.

        Where the outside must be asked again shortly, waits for it, `patience_seconds` in all. Whatever is left is
        for a sweep. Raises `Unavailable` when a database is away.
        """
        until = asyncio.get_running_loop().time() + patience_seconds
        prepared: dict[int, Move] = {}
        blocked: dict[int, Move] = {}
        rounds = 0
        while rounds < MAX_ROUNDS:
            rounds += 1
            known = self._known(
                transaction.view.state,
                transaction.view.confirm == "auto",
                transaction.overdue,
                transaction.branches,
            )
            due = tuple([MoveBranch(known.branches[index], move.event) for index, move in prepared.items()])
            now = self._round(known, due)
            if now.park:
                return await self._postpone(context, transaction, attention=now.park, seconds=0)
            # One that waits for a person isn't asked again before that person has said so (`retry`).
            stuck = {index: why for index in now.asking if (why := _attention(transaction.branches[index]))}
            asks = [index for index in now.asking if index not in blocked and index not in stuck]
            if not asks and not now.parts:
                if not now.asking:
                    return await self._final(context.tenant_id, transaction)
                # Those that wait for a person must not keep the others from their end.
                attention = next(iter(stuck.values())) if len(stuck) == len(now.asking) else None
                seconds = min((m.retry_seconds or 0 for m in blocked.values() if not m.attention), default=0)
                patient = not attention and asyncio.get_running_loop().time() + seconds < until
                # One that we shall ask again ourselves isn't due to anybody else before we had our turn.
                lease = self._settings.lease_seconds if patient else 0
                transaction = await self._postpone(context, transaction, attention=attention, seconds=seconds + lease)
                if not patient:
                    if not attention:
                        self._wake(context.tenant_id, transaction.view.id, seconds)
                    return transaction
                await asyncio.sleep(seconds)
                blocked.clear()
                rounds = 0
                continue
            transaction, prepared = await self._take(context, transaction, now.parts, prepared, asks, answers, reply)
            blocked |= {index: move for index, move in prepared.items() if move.event is Event.POSTPONE}
        log.error("drive_gave_up", transaction_id=str(transaction.view.id), state=transaction.view.state)
        return await self._postpone(context, transaction, attention="It doesn't come to its end.", seconds=0)

    async def _final(self, tenant_id: str, transaction: Transaction) -> Transaction:
        """The transaction to show at the end: read again where somebody else came first, and knows more than we do."""
        state = transaction.view.state
        if state not in TERMINAL or all(b.state in (state, State.REFUSED) for b in transaction.branches):
            return transaction
        loaded = await self.load(tenant_id, transaction.view.id, whole=False)
        return msgspec.structs.replace(loaded, reply=transaction.reply)

    async def _take(
        self,
        context: Context,
        transaction: Transaction,
        parts: Sequence[Part],
        prepared: Mapping[int, Move],
        asks: Sequence[int],
        answers: KeyRef | None,
        reply: TransactionReply | None,
    ) -> tuple[Transaction, dict[int, Move]]:
        """Take a round: everything in it at once. What is known then, and what the outside answered, as commands."""
        view, branches = transaction.view, transaction.branches
        plans = [branch.plan for branch in branches]
        ttl_seconds = (view.deadline - view.created_at).total_seconds()
        caps = [b.view.extendable_until for b in branches if b.view] + [move.cap for move in prepared.values()]
        cap = min(filter(None, caps), default=None)

        async def submit(part: Part) -> Result:
            commands = [
                _answer_to(step, prepared)
                or self._command(context, step, view.id, plans, ttl_seconds, view.reference, cap)
                for step in part.steps
            ]
            foreseen = foreseen_of(transaction, part.steps, commands)
            if not part.last or reply is None:
                return await part.place.submit(Group(commands=commands, foreseen=foreseen))
            render = lambda outcomes: reply(learned_of(transaction, part.steps, outcomes))  # noqa: E731
            group = Group(commands=commands, answers=answers, render=render, foreseen=foreseen)
            return await part.place.submit(group)

        questions = [self._asking.ask(context, there) for index in asks if (there := branches[index].view)]
        tasks = [*(submit(part) for part in parts), *questions]
        # Most rounds are one thing, which needs no task of its own.
        done: list[Any] = [await tasks[0]] if len(tasks) == 1 else await asyncio.gather(*tasks)
        for part, result in zip(parts, done, strict=False):
            transaction = learned_of(transaction, part.steps, result.outcomes, result.reply)
        return transaction, dict(zip(asks, done[len(parts) :], strict=True))

    async def _postpone(
        self, context: Context, transaction: Transaction, *, attention: str | None, seconds: float
    ) -> Transaction:
        command = MoveTransaction(
            **fields(context),
            id=transaction.view.id,
            event=Event.POSTPONE,
            attention=attention,
            retry_seconds=seconds,
        )
        result = await self._stores.home.submit(Group(commands=[command]))
        if attention:
            log.warning("attention", transaction_id=str(transaction.view.id), why=attention)
        return learned_of(transaction, [MoveWhole(Event.POSTPONE)], result.outcomes)

    def _find_round(self, known: Known, due: tuple[Step, ...]) -> Round:
        """What can be done at once: what is due, or else what the plan says."""
        steps = self._stretch(known, due, None)
        return Round(
            self._parts([step for step in steps if not isinstance(step, (AskBranch, Park))]),
            tuple([step.branch.index for step in steps if isinstance(step, AskBranch)]),
            next((step.why for step in steps if isinstance(step, Park)), None),
        )

    def _parts(self, steps: Sequence[Step]) -> tuple[Part, ...]:
        """Steps, by the database that takes them."""
        by_place: dict[Batcher, list[Step]] = {}
        for step in steps:
            by_place.setdefault(self._place(step), []).append(step)
        return tuple(Part(place, tuple(these), _is_last(these)) for place, these in by_place.items())

    def _find_stretch(self, known: Known, due: tuple[Step, ...], place: Batcher | None) -> tuple[Step, ...]:
        """As many steps as one round can take: those that are due, then those that will be once they have come out
        well, as long as all belong to one database and nobody outside must be asked in between."""
        run: list[Step] = []
        steps: Sequence[Step] = due or plan(known)
        while steps:
            if any(isinstance(step, (AskBranch, Park)) for step in steps):
                return tuple(run or ([] if place else steps))
            steps = sorted(steps, key=self._rank)
            places = {self._place(step) for step in steps}
            if place is not None and places != {place}:
                break
            run += steps
            if len(places) > 1:
                break
            (place,) = places
            for step in steps:
                known = assume(known, step)
            steps = plan(known)
        return tuple(run)

    def _known(self, state: State, auto: bool, overdue: bool, branches: Sequence[BranchState]) -> Known:
        external = self._external
        of = [Branch(i, b.plan.resource, external[b.plan.resource], b.state) for i, b in enumerate(branches)]
        return Known(state, auto, overdue, tuple(of))

    def _rank(self, step: Step) -> int:
        """Where a step stands in the order of locks, so that the same statement takes those of one resource."""
        return self._order[step.branch.resource] if isinstance(step, (TryBranch, MoveBranch)) else -1

    def _place(self, step: Step) -> Batcher:
        """The batcher of the database whose rows a step changes."""
        if isinstance(step, (TryBranch, MoveBranch)):
            return self._stores.of(step.branch.resource)
        return self._stores.home

    def _command(
        self,
        context: Context,
        step: Step,
        transaction_id: UUID,
        plans: Sequence[BranchPlan],
        ttl_seconds: float,
        reference: str | None,
        cap: datetime | None = None,
    ) -> Command:
        match step:
            case TryBranch(branch):
                return Try(
                    **fields(context),
                    id=plans[branch.index].id,
                    resource=branch.resource,
                    claim=plans[branch.index].claim,
                    ttl_seconds=ttl_seconds + self._settings.grace_seconds,
                    reference=reference,
                    transaction_id=transaction_id,
                )
            case MoveBranch(branch, event, reason):
                return Move(
                    **fields(context),
                    id=plans[branch.index].id,
                    resource=branch.resource,
                    event=event,
                    reason=reason,
                    transaction_id=transaction_id,
                )
            case MoveWhole(event, reason):
                return MoveTransaction(**fields(context), id=transaction_id, event=event, reason=reason, cap=cap)
            case _:
                raise AssertionError(f"{step} is not a command")


_LAST: Final = frozenset({Event.TRY_SUCCEEDED, Event.CONFIRM_SUCCEEDED, Event.CANCEL_SUCCEEDED})


def _is_last(steps: Sequence[Step]) -> bool:
    """Whether the transaction comes to its end, or to wait for its client, by these steps: only then can there be a
    reply to store with them."""
    return any(type(step) is MoveWhole and step.event in _LAST for step in steps)


def _attention(branch: BranchState) -> str | None:
    """Why a branch waits for a person, if it does."""
    return branch.view.attention if branch.view else None


def _answer_to(step: Step, prepared: Mapping[int, Move]) -> Move | None:
    """The command that an answer from outside has already been turned into, if it is this step's."""
    move = prepared.get(step.branch.index) if type(step) is MoveBranch else None
    return move if move and type(step) is MoveBranch and move.event is step.event else None
