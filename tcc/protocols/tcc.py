"""Try, Confirm, Cancel as a plan: what may be done next for a transaction, from what is known of it. Pure.

Local branches are tried before anybody outside is asked, so that sold-out stock never costs an authorisation. A
branch of an external resource is recorded (the intent) before its gateway is asked: where there is no row, nobody was
ever asked.
"""

from __future__ import annotations

import msgspec

from tcc.machine import RESERVATION, TRANSACTION, Event, Reason, State

_LOCAL = RESERVATION.local()


class Branch(msgspec.Struct, frozen=True):
    """What is known of a branch. `state` is None while it has never been recorded."""

    index: int
    resource: str
    external: bool
    state: State | None


class Known(msgspec.Struct, frozen=True):
    """What is known of a transaction."""

    state: State
    auto: bool
    overdue: bool
    """Its deadline has passed, as the database's clock says."""
    branches: tuple[Branch, ...]


class TryBranch(msgspec.Struct, frozen=True):
    """Record the branch: hold what is local, or note the intent to ask outside."""

    branch: Branch


class AskBranch(msgspec.Struct, frozen=True):
    """Ask the outside for what the branch's resting state needs."""

    branch: Branch


class MoveBranch(msgspec.Struct, frozen=True):
    """An event for a branch."""

    branch: Branch
    event: Event
    reason: Reason | None = None


class MoveWhole(msgspec.Struct, frozen=True):
    """An event for the transaction itself; COMMIT, CANCEL and EXPIRE are its decision."""

    event: Event
    reason: Reason | None = None


class Park(msgspec.Struct, frozen=True):
    """What must never be: stop, and call a person."""

    why: str


Step = TryBranch | AskBranch | MoveBranch | MoveWhole | Park


def plan(known: Known) -> list[Step]:
    """All steps that may be taken now, in any order or at once. Empty: nothing to do until something happens."""
    match known.state:
        case State.TRYING:
            return _trying(known)
        case State.TRIED:
            return [MoveWhole(Event.EXPIRE, Reason.EXPIRED)] if known.overdue else []
        case State.CONFIRMING:
            return _following(known, Event.CONFIRM, State.CONFIRMED)
        case State.CANCELLING:
            return _following(known, Event.CANCEL, State.CANCELLED)
        case _:
            return []


def _trying(known: Known) -> list[Step]:
    if any(b.state in (State.REFUSED, State.CANCELLED, State.CANCELLING) for b in known.branches):
        return [MoveWhole(Event.CANCEL, Reason.REFUSED)]
    if known.overdue:
        return [MoveWhole(Event.EXPIRE, Reason.EXPIRED)]
    for external in (False, True):
        if untried := [b for b in known.branches if b.external is external and b.state is None]:
            return [TryBranch(b) for b in untried]
    if trying := [b for b in known.branches if b.state is State.TRYING]:
        return [AskBranch(b) for b in trying]
    return [MoveWhole(Event.COMMIT if known.auto else Event.TRY_SUCCEEDED)]


def _following(known: Known, event: Event, end: State) -> list[Step]:
    """What the branches still have to do to follow the decision."""
    steps: list[Step] = []
    for b in known.branches:
        if b.state is end or (end is State.CANCELLED and b.state is State.REFUSED):
            continue
        if b.state is known.state:
            steps.append(AskBranch(b))
        elif (b.state is None and event is Event.CANCEL) or (b.state and RESERVATION.target(event, b.state)):
            steps.append(MoveBranch(b, event, Reason.TRANSACTION if event is Event.CANCEL else None))
        else:
            return [Park(f"Branch {b.index} is {b.state or 'not there'}, though the transaction is {known.state}.")]
    if steps:
        return steps
    return [MoveWhole(Event.CONFIRM_SUCCEEDED if event is Event.CONFIRM else Event.CANCEL_SUCCEEDED)]


def assume(known: Known, step: Step) -> Known:
    """What will be known once a step has come out well; for an answer from outside there is nothing to assume."""
    match step:
        case TryBranch(branch):
            return _with(known, branch, State.TRYING if branch.external else State.TRIED)
        case MoveBranch(branch, event):
            machine = RESERVATION if branch.external else _LOCAL
            state = known.branches[branch.index].state
            after = State.CANCELLED if state is None else machine.target(event, state)
            return _with(known, branch, after or state)
        case MoveWhole(event):
            return msgspec.structs.replace(known, state=TRANSACTION.target(event, known.state) or known.state)
        case _:
            return known


def _with(known: Known, branch: Branch, state: State | None) -> Known:
    branches = tuple(msgspec.structs.replace(b, state=state) if b.index == branch.index else b for b in known.branches)
    return msgspec.structs.replace(known, branches=branches)
