"""What is said of reservations and transactions: bodies and statuses, as they are sent and stored. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tcc.commands import Outcome, ReservationView
from tcc.errors import Blame, TccError, Unavailable
from tcc.groups import FORGET
from tcc.http.problems import Problem, Problems
from tcc.idempotency import Reply
from tcc.knowledge import BranchState, Transaction
from tcc.machine import RESTING, Reason, State

_encode = msgspec.json.Encoder().encode


class Outgoing(Reply, frozen=True):
    """A reply with more to say than is stored: that it is a stored one, or when to ask again (0: never mind)."""

    replayed: bool = False
    retry_after_seconds: int = 0


class BranchBody(msgspec.Struct, frozen=True, kw_only=True):
    """A branch as clients see it. `state` is `untried` where it was never recorded, `unknown` where its database is
    away."""

    resource: str
    id: UUID
    state: str
    reason: str | None
    detail: Any
    attention: str | None


class TransactionBody(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction as clients see it. `status` and `message` are for people; `state` is for programs."""

    id: UUID
    state: State
    status: str
    message: str
    reason: str | None
    confirm: str
    reference: str | None
    deadline: datetime
    attention: str | None
    attention_since: datetime | None
    branches: list[BranchBody]
    created_at: datetime
    updated_at: datetime


_PEOPLE = {
    State.TRYING: ("processing", "Your request is being processed."),
    State.TRIED: ("reserved", "Everything is held for you until the deadline, and waits for your confirmation."),
    State.CONFIRMING: ("processing", "Your request is accepted and is being completed."),
    State.CONFIRMED: ("confirmed", "Everything is confirmed."),
    State.CANCELLING: ("processing", "Your request is being cancelled; whatever was held is being given back."),
    State.CANCELLED: ("cancelled", "Nothing is held or charged."),
}
_ATTENTION = "This takes longer than it should. Somebody is looking at it; there is nothing you need to do."


def transaction_body(transaction: Transaction) -> TransactionBody:
    """What is shown of a transaction while it is under way, and after."""
    view = transaction.view
    status, message = _PEOPLE[view.state]
    return TransactionBody(
        id=view.id,
        state=view.state,
        status=status,
        message=_ATTENTION if view.attention else message,
        reason=view.reason,
        confirm=view.confirm,
        reference=view.reference,
        deadline=view.deadline,
        attention=view.attention,
        attention_since=view.attention_since,
        branches=[_branch_body(branch) for branch in transaction.branches],
        created_at=view.created_at,
        updated_at=view.updated_at,
    )


def _branch_body(branch: BranchState) -> BranchBody:
    view = branch.view
    return BranchBody(
        resource=branch.plan.resource,
        id=branch.plan.id,
        state="unknown" if branch.unknown else branch.state or "untried",
        reason=branch.refusal or (view.reason if view else None),
        detail=branch.detail or (view.detail if view else None),
        attention=view.attention if view else None,
    )


def problem_reply(problem: Problem, location: str | None = None) -> Reply:
    """A problem as a reply."""
    return Reply(problem.status, _encode(problem), location)


def transaction_location(id: UUID) -> str:
    """The path of a transaction."""
    return f"/v1/transactions/{id}"


class Replies:
    """Replies to requests, from what became of them."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def begun(self, transaction: Transaction, correlation_id: str) -> Reply | None:
        """To the request that began a transaction; None while it has neither ended nor come to wait for its client."""
        state = transaction.view.state
        if state is State.CONFIRMED or (state is State.TRIED and transaction.view.confirm == "manual"):
            return self.transaction(transaction, 201)
        if state is State.CANCELLED:
            return self._ended_badly(transaction, correlation_id)
        return None

    def transaction(self, transaction: Transaction, status: int) -> Reply:
        """The transaction as it stands."""
        return Reply(status, _encode(transaction_body(transaction)), transaction_location(transaction.view.id))

    def _ended_badly(self, transaction: Transaction, correlation_id: str) -> Reply:
        view = transaction.view
        location = transaction_location(view.id)
        if view.reason != Reason.REFUSED:
            code = "expired" if view.reason == Reason.EXPIRED else "already_cancelled"
            return problem_reply(self._problems.of(code, correlation_id, transaction_id=view.id), location)
        errors: list[Any] = []
        refused = []
        for index, branch in enumerate(transaction.branches):
            why = branch.refusal or (branch.view.reason if branch.view and branch.state is State.REFUSED else None)
            if why and why in self._problems.kinds:
                refused.append(f"{branch.plan.resource}: {why}")
                found = _found(branch.detail or (branch.view.detail if branch.view else None))
                errors += [{**line, "field": f"branches[{index}].claim.{line['field']}"} for line in found] or [
                    {"field": f"branches[{index}]", "code": why, "detail": self._problems.kinds[why].title}
                ]
        problem = self._problems.of(
            "transaction_refused",
            correlation_id,
            detail=f"Refused by {'; '.join(refused)}. Nothing is held or charged." if refused else None,
            errors=errors,
            transaction_id=view.id,
        )
        return problem_reply(problem, location)

    def reservation(self, view: ReservationView, status: int, location: str | None = None) -> Reply:
        """The reservation as it stands."""
        return Reply(status, _encode(view), location)

    def tried(self, correlation_id: str) -> Callable[[Outcome[ReservationView]], Reply | None]:
        """To a Try; None while the outside is being asked."""

        def reply(outcome: Outcome[ReservationView]) -> Reply | None:
            view = outcome.view
            if outcome.ok and view is not None:
                if view.state is State.TRYING:
                    return None
                if view.state is State.REFUSED:
                    return self._refused(view.reason or "", view.detail, correlation_id)
                if view.state in (State.CANCELLING, State.CANCELLED):
                    gone = "expired" if view.reason == Reason.EXPIRED else "already_cancelled"
                    return self._refused(gone, None, correlation_id)
                return self.reservation(view, 201, reservation_location(view))
            return self._forgotten(outcome) or self._refused(outcome.code, outcome.detail, correlation_id)

        return reply

    def moved(self, correlation_id: str) -> Callable[[Outcome[ReservationView]], Reply | None]:
        """To a confirm, cancel or extend; None while the outside is being asked."""

        def reply(outcome: Outcome[ReservationView]) -> Reply | None:
            if not outcome.ok or outcome.view is None:
                return self._forgotten(outcome) or self._refused(outcome.code, None, correlation_id)
            return None if outcome.view.state in RESTING else self.reservation(outcome.view, 200)

        return reply

    def refusal(self, outcome: Outcome[Any], correlation_id: str) -> Reply:
        """As `refused`, to be stored: `FORGET` where the same request may come out otherwise."""
        return self._forgotten(outcome) or self.refused(outcome, correlation_id)

    def refused(self, outcome: Outcome[Any], correlation_id: str) -> Reply:
        """To a command that came to nothing."""
        reply = self._refused(outcome.code, outcome.detail, correlation_id)
        retry_after_seconds = int(self._problems.kinds[outcome.code].retryable)
        return Outgoing(reply.status, reply.body, retry_after_seconds=retry_after_seconds)

    def of_error(self, error: TccError, correlation_id: str) -> Reply:
        """To a request that an error of ours has ended."""
        problem = self._problems.of(error.code, correlation_id, detail=error.detail, errors=error.errors)
        retry_after_seconds = error.retry_after_seconds if isinstance(error, Unavailable) else int(problem.retryable)
        return Outgoing(problem.status, _encode(problem), retry_after_seconds=retry_after_seconds)

    def _forgotten(self, outcome: Outcome[Any]) -> Reply | None:
        """`FORGET` where the same request may come out otherwise, once mended or a little later."""
        kind = self._problems.kinds[outcome.code]
        senseless = outcome.view is None and kind.blame is Blame.REQUEST
        return FORGET if senseless or kind.retryable else None

    def _refused(self, code: str, detail: Any, correlation_id: str) -> Reply:
        if code not in self._problems.kinds:
            code = "already_refused"
        return problem_reply(self._problems.of(code, correlation_id, errors=_found(detail)))


def _found(detail: Any) -> list[dict[str, Any]]:
    """What a resource said of each line when it refused, if it did."""
    found = msgspec.json.decode(detail) if detail else None
    return found if isinstance(found, list) else []


def reservation_location(view: ReservationView) -> str:
    """The path of a reservation."""
    return f"/v1/{view.resource}/reservations/{view.id}"
