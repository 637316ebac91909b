"""What is known of a transaction: its row and its branches', and how commands change what is known. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tcc import reservations, transactions
from tcc.commands import BranchPlan, Foreseen, Outcome, ReservationView, TransactionView
from tcc.idempotency import Reply
from tcc.machine import State
from tcc.protocols.tcc import MoveBranch, MoveWhole, Step, TryBranch


class BranchState(msgspec.Struct, frozen=True):
    """A branch as far as a driver knows it. `refusal` where a Try was refused and left no row."""

    plan: BranchPlan
    view: ReservationView | None = None
    unknown: bool = False
    """Its database is away, so that there is no saying; such a transaction can be shown, but not driven."""
    refusal: str | None = None
    detail: Any = None

    @property
    def state(self) -> State | None:
        """None while it was never recorded."""
        return State.REFUSED if self.refusal else (self.view.state if self.view else None)


class Transaction(msgspec.Struct, frozen=True):
    """A transaction as far as a driver knows it. `overdue`: its deadline has passed, says the database's clock.

    `reply`: to the request that it is driven for, as the driver's own commit left it under that request's key.
    """

    view: TransactionView
    branches: tuple[BranchState, ...]
    overdue: bool = False
    reply: Reply | None = None


def branch_of(
    whole: TransactionView, planned: BranchPlan, found: ReservationView | None, unknown: bool = False
) -> BranchState:
    """A branch, from the row under its id. One that somebody else has put there is not ours: as good as refused."""
    if found is not None and found.transaction_id != whole.id:
        return BranchState(planned, refusal="id_reused")
    return BranchState(planned, found, unknown)


def foreseen_of(transaction: Transaction, steps: Sequence[Step], commands: Sequence[Any]) -> Sequence[Foreseen] | None:
    """What commands leave behind if nobody else moves anything before; None where there is no saying."""
    foreseen: list[Foreseen] = []
    whole, branches = transaction.view, [branch.view for branch in transaction.branches]
    for step, command in zip(steps, commands, strict=True):
        after = None
        if type(step) is MoveWhole:
            after = transactions.foresee(whole, command)
            whole = after.view if after else whole
        elif type(step) is MoveBranch and (before := branches[step.branch.index]):
            after = reservations.foresee(before, command, external=step.branch.external)
            branches[step.branch.index] = after.view if after else before
        if after is None:
            return None
        foreseen.append(after)
    return foreseen


def learned_of(
    transaction: Transaction, steps: Sequence[Step], outcomes: Sequence[Outcome[Any]], reply: Reply | None = None
) -> Transaction:
    """What is known after commands; those behind one that failed have no outcome."""
    view, overdue, branches = transaction.view, transaction.overdue, list(transaction.branches)
    for step, outcome in zip(steps, outcomes, strict=False):
        if type(step) is MoveWhole:
            view = outcome.view or view
            if outcome.code == "expired":
                overdue = view.state in (State.TRYING, State.TRIED)
            elif outcome.code == "not_expired":
                overdue = False
        elif type(step) is TryBranch or type(step) is MoveBranch:
            branch = branches[step.branch.index]
            branches[step.branch.index] = (
                BranchState(branch.plan, refusal=outcome.code, detail=outcome.detail)
                if outcome.view is None and type(step) is TryBranch
                else branch_of(view, branch.plan, outcome.view)
            )
    return Transaction(view, tuple(branches), overdue, reply or transaction.reply)
