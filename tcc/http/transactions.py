"""The routes of transactions: several reservations that confirm or cancel together."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath

from tcc import reads
from tcc.commands import Context, Outcome
from tcc.errors import FieldError, Rejected, Unavailable
from tcc.http.bodies import Extend, begin_type, branch_type, ttl_of
from tcc.http.direct import ONE, Handler
from tcc.http.openapi import operation
from tcc.http.replies import Replies, TransactionBody, transaction_body
from tcc.http.requests import (
    claim_of,
    context_of,
    expect_no_body,
    header,
    idempotency_key,
    invalid_field,
    parse_id,
    read_body,
    required_key,
)
from tcc.http.respond import Current, replay, respond, within
from tcc.idempotency import Claim, Held, KeyRef, Reply
from tcc.ids import new_id
from tcc.knowledge import BranchState, Transaction
from tcc.machine import RESTING, Event, Reason, State
from tcc.resource import Money, Resource
from tcc.service import Service

MAX_WAIT_SECONDS: Final = 30
POLL_SECONDS: Final = 0.1
MAX_LOG: Final = 2000
MAX_PAGE: Final = 200

_encode = msgspec.json.Encoder().encode


class TransactionPage(msgspec.Struct, frozen=True):
    """Transactions, newest first, and where the next page starts."""

    items: list[TransactionBody]
    next_cursor: str | None


class Log(msgspec.Struct, frozen=True):
    """Every transition of a transaction and its branches, and every exchange with the outside, in order of time."""

    entries: list[reads.Entry]
    truncated: bool
    """Whether there is more than is shown: it was asked very often, or a database is away."""


_decode_extend = msgspec.json.Decoder(Extend)
_NAMES_RESOURCE: Final = re.compile(r"branches\[\d+\]\.resource")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}")
_PREFER_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,9})(?:$|[,;\s])")


def wait_of(request: Request[Any, Any, Any], usual: float) -> float:
    """How long to wait: `?wait=seconds`, or `Prefer: wait=seconds` (RFC 7240), or the usual. Raises `Rejected`."""
    given = request.query_params.get("wait")
    if given is None:
        preferred = _PREFER_WAIT.search(header(request, b"prefer") or "")
        return min(float(preferred.group(1)), MAX_WAIT_SECONDS) if preferred else usual
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise invalid_field("wait", "out_of_bounds", f"Seconds, from 0 to {MAX_WAIT_SECONDS}.")
    return seconds


class TransactionRoutes:
    """The handlers."""

    def __init__(self, service: Service, replies: Replies) -> None:
        self._service = service
        self._coordinator = service.coordinator
        self._replies = replies
        self._resources = {branch_type(resource): resource for resource in service.stores.resources.values()}
        self.body = begin_type(self._resources)
        self._decoder = msgspec.json.Decoder(self.body)

    async def begin(self, request: Request[Any, Any, Any]) -> Reply:
        seconds = wait_of(request, self._service.settings.default_wait_seconds)
        body = await self._read(request)
        key = required_key(request)
        branches = [(self._resources[type(branch)], branch.claim) for branch in body.branches]
        _check(branches)
        ttl_seconds = ttl_of(body.ttl_seconds, self._service.settings)
        context = context_of(request)
        id = new_id()
        claim = claim_of(key, "transactions.begin", id, _encode(body))

        def reply(transaction: Transaction) -> Reply | None:
            return self._replies.begun(transaction, context.correlation_id)

        begun = await self._coordinator.begin(
            context,
            id=id,
            branches=[(resource.name, msgspec.Raw(_encode(asked))) for resource, asked in branches],
            confirm=body.confirm,
            ttl_seconds=ttl_seconds,
            reference=body.reference,
            claim=claim,
            reply=reply,
        )
        if begun.result.held is not None:
            return await replay(self._service, None, claim, begun.result.held, self._current(context, reply))
        if begun.transaction is None:
            raise Unavailable("outcome_unknown")
        if begun.result.reply is not None:
            return begun.result.reply
        return await self._follow(context, begun.transaction, claim, reply, seconds)

    async def _read(self, request: Request[Any, Any, Any]) -> Any:
        try:
            return await read_body(request, self._decoder)
        except Rejected as error:
            (wrong, *_) = error.errors
            if not (_NAMES_RESOURCE.fullmatch(wrong.field) and wrong.detail.startswith("Invalid value")):
                raise
            detail = f"There is: {', '.join(sorted(self._service.stores.resources))}."
            unknown = FieldError(wrong.field, "unknown_resource", detail)
            raise Rejected("unknown_resource", f"{wrong.field}: {detail}", (unknown,)) from error

    async def _follow(
        self,
        context: Context,
        transaction: Transaction,
        claim: Claim | None,
        reply: Callable[[Transaction], Reply | None],
        seconds: float,
    ) -> Reply:
        """Drive on, and answer when there is something final to say, or 202 when the time is over.

        What is sent is what the key has, which need not be ours: a sweep may have ended it, and a repeat been told so.
        """
        answers = claim.ref if claim else None
        final = reply(transaction)
        if final is None:
            transaction = await self._drive(context, transaction, answers, reply, seconds)
            if transaction.reply is not None:
                return transaction.reply
            final = reply(transaction) or self._replies.transaction(transaction, 202)
        return await self._service.answer(None, answers, final) if answers else final

    async def _drive(
        self,
        context: Context,
        transaction: Transaction,
        answers: KeyRef | None,
        reply: Callable[[Transaction], Reply | None],
        seconds: float,
    ) -> Transaction:
        """How far it has come in so many seconds; it goes on after them."""
        work = self._coordinator.drive(
            context, transaction, answers=answers, reply=reply, patience_seconds=max(seconds, 1)
        )
        try:
            driven = await within(self._service.spawn(work), seconds)
        except Unavailable:
            driven = None  # it is begun, and a sweep will go on with it: that is not the caller's trouble
        if driven is not None:
            return driven
        try:
            return await self._coordinator.load(context.tenant_id, transaction.view.id, whole=False)
        except Unavailable:
            return transaction

    def _current(self, context: Context, reply: Callable[[Transaction], Reply | None]) -> Current:
        async def current(held: Held) -> Reply | None:
            transaction = await self._coordinator.load(context.tenant_id, held.subject_id)
            accepted = held.age_seconds > self._service.settings.default_wait_seconds or transaction.view.attention
            return reply(transaction) or (self._replies.transaction(transaction, 202) if accepted else None)

        return current

    async def show(self, request: Request[Any, Any, Any], transaction_id: str) -> Reply:
        id = parse_id(transaction_id)
        until = asyncio.get_running_loop().time() + wait_of(request, 0)
        tenant_id = context_of(request).tenant_id
        transaction = await self._coordinator.load(tenant_id, id, whole=False)
        while transaction.view.state in RESTING and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(POLL_SECONDS)
            transaction = await self._coordinator.load(tenant_id, id, whole=False)
        return self._replies.transaction(transaction, 200)

    async def log(self, request: Request[Any, Any, Any], transaction_id: str) -> Reply:
        tenant_id = context_of(request).tenant_id
        transaction = await self._coordinator.load(tenant_id, parse_id(transaction_id), whole=False)
        subjects = [transaction.view.id, *(branch.plan.id for branch in transaction.branches)]
        pages = await asyncio.gather(
            *(
                reads.journal(batcher.database, tenant_id, subjects, limit=MAX_LOG)
                for batcher, _ in self._service.stores.distinct()
            ),
            return_exceptions=True,
        )
        there = [page for page in pages if not isinstance(page, BaseException)]
        entries = sorted((entry for page in there for entry in page), key=lambda entry: entry.at)
        partial = len(entries) >= MAX_LOG or len(there) < len(pages)
        return Reply(200, _encode(Log(entries[:MAX_LOG], truncated=partial)))

    async def list_(self, request: Request[Any, Any, Any]) -> Reply:
        query = request.query_params
        state, attention = query.get("state"), query.get("attention")
        if state is not None and (state not in set(State) or state == State.REFUSED):
            raise invalid_field("state", "invalid_value", "A state of transactions, such as confirming.")
        if attention not in (None, "true", "false"):
            raise invalid_field("attention", "invalid_value", "true or false.")
        limit = _limit(query.get("limit"))
        tenant_id = context_of(request).tenant_id
        views = await reads.transactions(
            self._service.stores.home.database,
            tenant_id,
            state=state,
            attention=None if attention is None else attention == "true",
            reference=query.get("reference"),
            before=_cursor(query.get("cursor")),
            limit=limit + 1,
        )
        more = views[limit - 1].id if len(views) > limit else None
        whole = await self._coordinator.complete(tenant_id, views[:limit], whole=False)
        page = TransactionPage(
            [transaction_body(transaction) for transaction in whole],
            base64.urlsafe_b64encode(more.bytes).decode().rstrip("=") if more else None,
        )
        return Reply(200, _encode(page))

    async def confirm(self, request: Request[Any, Any, Any], transaction_id: str) -> Reply:
        await expect_no_body(request)
        return await self._decide(request, transaction_id, Event.CONFIRM)

    async def cancel(self, request: Request[Any, Any, Any], transaction_id: str) -> Reply:
        await expect_no_body(request)
        return await self._decide(request, transaction_id, Event.CANCEL, Reason.REQUESTED)

    async def extend(self, request: Request[Any, Any, Any], transaction_id: str) -> Reply:
        body = await read_body(request, _decode_extend)
        ttl_seconds = ttl_of(body.ttl_seconds, self._service.settings)
        id, context = parse_id(transaction_id), context_of(request)
        claim = _claim(request, Event.EXTEND, id, ttl_seconds)

        def render(outcomes: Sequence[Outcome[Any]]) -> Reply | None:
            return None if outcomes[0].ok else self._replies.refusal(outcomes[0], context.correlation_id)

        result = await self._coordinator.decide(
            context, id, Event.EXTEND, ttl_seconds=ttl_seconds, claim=claim, render=render
        )
        if result.held is not None and claim is not None:
            current = self._current(context, self._settled)
            return await replay(self._service, None, claim, result.held, current)
        outcome: Outcome[Any] = result.outcomes[0]
        if not outcome.ok:
            return self._replies.refused(outcome, context.correlation_id)
        try:
            transaction = await self._coordinator.load(context.tenant_id, id)
            transaction = await self._coordinator.extend_branches(context, transaction, ttl_seconds)
        except Unavailable:
            final = self._unread(outcome.view)
        else:
            final = self._replies.transaction(transaction, 200)
        return await self._service.answer(None, claim.ref, final) if claim else final

    def direct(self) -> dict[tuple[str, str], Handler]:
        """Those that carry the load, by method and path; the one that begins isn't among them."""
        one = BEGIN_PATH + ONE
        return {
            ("POST", f"{one}/confirm"): self.confirm,
            ("POST", f"{one}/cancel"): self.cancel,
            ("POST", f"{one}/extend"): self.extend,
            ("GET", one): self.show,
        }

    async def _decide(
        self, request: Request[Any, Any, Any], transaction_id: str, event: Event, reason: Reason | None = None
    ) -> Reply:
        id = parse_id(transaction_id)
        seconds = wait_of(request, self._service.settings.default_wait_seconds)
        context = context_of(request)
        claim = _claim(request, event, id)
        begun = await self._coordinator.conclude(
            context,
            id,
            event,
            reason=reason,
            claim=claim,
            refused=lambda outcome: self._replies.refusal(outcome, context.correlation_id),
            reply=self._settled,
        )
        result = begun.result
        if result.held is not None and claim is not None:
            return await replay(self._service, None, claim, result.held, self._current(context, self._settled))
        outcome: Outcome[Any] = result.outcomes[0]
        if not outcome.ok:
            return self._replies.refused(outcome, context.correlation_id)
        if result.reply is not None:
            return result.reply
        transaction = begun.transaction
        if transaction is None:
            try:
                transaction = await self._coordinator.load(context.tenant_id, id)
            except Unavailable:
                final = self._unread(outcome.view)
                return await self._service.answer(None, claim.ref, final) if claim else final
        return await self._follow(context, transaction, claim, self._settled, seconds)

    def _settled(self, transaction: Transaction) -> Reply | None:
        """The reply once nothing is left to follow."""
        return None if transaction.view.state in RESTING else self._replies.transaction(transaction, 200)

    def _unread(self, view: Any) -> Reply:
        """It is decided, whatever can be read now: to say that nothing was done would be a lie."""
        transaction = Transaction(view, tuple(BranchState(plan, unknown=True) for plan in view.plans()))
        return self._replies.transaction(transaction, 202)


def _claim(request: Request[Any, Any, Any], event: Event, id: UUID, ttl_seconds: float | None = None) -> Claim | None:
    """The claim on the idempotency key of a request to move a transaction, if it has one."""
    key = idempotency_key(request)
    return claim_of(key, f"transactions.{event}", id, id.bytes, str(ttl_seconds).encode()) if key else None


def _check(branches: Sequence[tuple[Resource, Any]]) -> None:
    """What the types of claims can't say. What is charged must be what is owed, where a transaction has both."""
    errors = tuple(
        FieldError(f"branches[{index}].claim.{error.field}", error.code, error.detail)
        for index, (resource, claim) in enumerate(branches)
        for error in resource.check(claim)
    )
    if errors:
        raise Rejected("invalid_request", f"{errors[0].field}: {errors[0].detail}", errors)
    owed = [money for resource, claim in branches if (money := resource.owes(claim))]
    charged = [money for resource, claim in branches if (money := resource.charges(claim))]
    if owed and charged and _totals(owed) != _totals(charged):
        detail = f"Owed: {_said(owed)}. Charged: {_said(charged)}."
        raise Rejected("amounts_differ", detail, (FieldError("branches", "amounts_differ", detail),))


def _totals(amounts: Sequence[Money]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for money in amounts:
        totals[money.currency] = totals.get(money.currency, 0) + money.amount
    return totals


def _said(amounts: Sequence[Money]) -> str:
    return ", ".join(f"{amount} {currency}" for currency, amount in sorted(_totals(amounts).items()))


def _limit(given: str | None) -> int:
    if given is None:
        return 50
    if not _DECIMAL.fullmatch(given) or not 1 <= int(given) <= MAX_PAGE:
        raise invalid_field("limit", "out_of_bounds", f"From 1 to {MAX_PAGE}.")
    return int(given)


def _cursor(given: str | None) -> UUID | None:
    if given is None:
        return None
    try:
        return UUID(bytes=base64.b64decode(given + "==", altchars=b"-_", validate=True))
    except ValueError:
        raise invalid_field("cursor", "invalid_value", "Pass on the `next_cursor` of the page before.") from None


BEGIN_PATH: Final = "/v1/transactions"


def transaction_handlers(routes: TransactionRoutes) -> list[Any]:
    """Litestar handlers for transactions."""
    base = BEGIN_PATH
    one = f"{base}/{{transaction_id:str}}"
    tags = ["transactions"]
    wait = {"wait": ("Seconds to wait for the end, up to 30; or the header `Prefer: wait=seconds`.", float)}
    processing = {202: ("Accepted; its branches are still following. `Location` tells where to look.", TransactionBody)}
    contradicts = {409: "In contradiction with what was decided, or out of time."}

    @post(
        base,
        status_code=201,
        summary="Begin: hold several resources together",
        operation_class=operation(
            body=routes.body,
            replies={201: ("Confirmed (auto), or everything is held (manual).", TransactionBody), **processing},
            problems={409: "A branch was refused: nothing is held.", 422: "Something in a claim is wrong."},
            keyed=True,
            query=wait,
        ),
        tags=tags,
    )
    async def begin(request: Request[Any, Any, Any]) -> Response[bytes]:
        return respond(await routes.begin(request))

    @get(
        base,
        summary="List transactions, newest first",
        operation_class=operation(
            replies={200: ("A page of them.", TransactionPage)},
            query={
                "state": ("Only those in this state.", State),
                "attention": ("Only those that do (or don't) wait for a person.", bool),
                "reference": ("Only those with this reference.", str),
                "cursor": ("`next_cursor` of the page before.", str),
                "limit": ("How many, up to 200; 50 if not said.", int),
            },
        ),
        tags=tags,
    )
    async def list_(request: Request[Any, Any, Any]) -> Response[bytes]:
        return respond(await routes.list_(request))

    @get(
        one,
        summary="Show a transaction",
        operation_class=operation(replies={200: ("The transaction.", TransactionBody)}, query=wait),
        tags=tags,
    )
    async def show(request: Request[Any, Any, Any], transaction_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.show(request, transaction_id))

    @get(
        f"{one}/log",
        summary="Show everything that happened to a transaction",
        operation_class=operation(replies={200: ("Its timeline.", Log)}),
        tags=tags,
    )
    async def log(request: Request[Any, Any, Any], transaction_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.log(request, transaction_id))

    @post(
        f"{one}/confirm",
        status_code=200,
        summary="Confirm: decide for all branches",
        operation_class=operation(
            replies={200: ("Confirmed.", TransactionBody), **processing}, problems=contradicts, keyed=False, query=wait
        ),
        tags=tags,
    )
    async def confirm(request: Request[Any, Any, Any], transaction_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.confirm(request, transaction_id))

    @post(
        f"{one}/cancel",
        status_code=200,
        summary="Cancel: decide against all branches",
        operation_class=operation(
            replies={200: ("Cancelled.", TransactionBody), **processing}, problems=contradicts, keyed=False, query=wait
        ),
        tags=tags,
    )
    async def cancel(request: Request[Any, Any, Any], transaction_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.cancel(request, transaction_id))

    @post(
        f"{one}/extend",
        status_code=200,
        summary="Extend: hold all branches longer",
        operation_class=operation(
            body=Extend, replies={200: ("Extended.", TransactionBody)}, problems=contradicts, keyed=False
        ),
        tags=tags,
    )
    async def extend(request: Request[Any, Any, Any], transaction_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.extend(request, transaction_id))

    return [begin, list_, show, log, confirm, cancel, extend]
