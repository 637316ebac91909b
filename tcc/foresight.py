"""Batches that come out as foreseen: committed by one statement, with the replies that tell of them.

A reply tells what came of a request, and is stored in the commit that it tells of. What that will be is as good as
known, but for the time: so it is written before, with `MOMENT` in the place of the time, and the statement puts that
in. If anything comes out otherwise, nothing is done at all, and the batch is applied kind by kind (`tcc.groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc import reservations, transactions
from tcc.commands import (
    DONE,
    MOMENT,
    Begin,
    Exchange,
    Foreseen,
    Move,
    MoveTransaction,
    Outcome,
    ReservationView,
    TransactionView,
    Try,
)
from tcc.db import fetch
from tcc.foreseen_sql import LOGGED, change_sql, record_sql
from tcc.groups import FORGET, Group, Result
from tcc.idempotency import Claim, KeyRef, Reply, key_columns
from tcc.machine import Event, Guard, State
from tcc.resource import Resource


class Surprise(Exception):
    """A group didn't come out as foreseen; nothing was done."""


class Change(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A row that is to be changed."""

    tenant_id: str
    id: UUID
    resource: str | None
    event: Event
    source: State
    target: State
    guard: Guard
    seen: datetime
    cap: datetime | None = None
    reason: str | None = None
    detail: Any = None

    def then(self, next: Change) -> Change:
        """This one and the next as one."""
        return msgspec.structs.replace(
            next,
            source=self.source,
            guard=self.guard if next.guard is Guard.ANY else next.guard,
            seen=self.seen,
            cap=next.cap or self.cap,
            reason=next.reason or self.reason,
            detail=self.detail if next.detail is None else next.detail,
        )


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the journal says of a command."""

    subject_id: UUID
    event: Event | Literal["begin", "try"]
    target: State
    resource: str | None = None
    source: State | None = None
    entry_id: UUID | None = None
    """Where the command could be applied once more, since nobody heard of its commit, and must not be told of twice."""
    reason: str | None = None
    attempt: int | None = None
    exchanges: list[Exchange] | None = None
    detail: Any = None


class Promise(msgspec.Struct, frozen=True):
    """What is to become of a key: it is taken, where there is a `claim`, and given a reply, where there is one.

    In the reply, `MOMENT` stands for the time of the batch, and what is `ttl_seconds` later for what is as much later
    than that.
    """

    ref: KeyRef
    claim: Claim | None
    reply: Reply | None
    ttl_seconds: float


class Foretold(msgspec.Struct, frozen=True):
    """What a group comes to if all goes well: shares of the statement's parameters, of which rows are JSON arrays."""

    group: Group
    shares: Sequence[bytes]
    logged: tuple[Any, ...]
    """Its row of the journal: see `LOGGED`."""
    promise: Promise | None


_encode: Final = msgspec.json.Encoder().encode


def _share(items: Sequence[Any]) -> bytes:
    """Items of an array, without what is around them."""
    return _encode(items)[1:-1]


class Foresight:
    """The statements, for the resources that there are."""

    def __init__(self, resources: Sequence[Resource], *, lease_seconds: float) -> None:
        self._record = text(record_sql(resources))
        self._change = text(change_sql(resources))
        self._lease_seconds = lease_seconds
        self._held = {resource.name: resource.held for resource in resources}

    def foretell(self, group: Group) -> Foretold | None:
        """What a group comes to, if it is only tries (and what begins their transaction), or moves that somebody has
        foreseen; else None."""
        if group.foreseen is None:
            begins = [command for command in group.commands if type(command) is Begin]
            tries = [command for command in group.commands if type(command) is Try]
            if not tries or len(begins) + len(tries) < len(group.commands) or (begins and group.render):
                return None  # what is begun has a deadline of its own, so that two times would have to be put in
            shares = [_share(begins), _share(tries)]
            entries = [self._recorded(command) for command in group.commands]
        elif any(type(command) is MoveTransaction for command in group.commands):
            shares = [_share(_changes(group.commands, group.foreseen))]
            entries = [_moved(*each) for each in zip(group.commands, group.foreseen, strict=True)]
        else:
            return None  # a reservation is moved behind its transaction, which keeps apart whoever moves them
        logged = _logged(group.commands[0], entries)
        ref = group.claim.ref if group.claim else group.answers
        if ref is None:
            return Foretold(group, shares, logged, None)
        reply = group.render(self._outcomes(group, MOMENT)) if group.render else None
        if reply is FORGET:
            return None
        first = group.commands[0]
        ttl_seconds = first.ttl_seconds if type(first) is Try else 0.0
        promise = Promise(ref, group.claim, reply, ttl_seconds) if group.claim or reply else None
        return Foretold(group, shares, logged, promise)

    async def apply(self, connection: AsyncConnection, foretold: Sequence[Foretold]) -> Callable[[], list[Result]]:
        """Apply groups that are all of tries or all of moves, store their replies, and commit, in one statement. The
        results are made when they are asked for.

        Raises `Surprise`, when nothing was done.
        """
        promises = [(n, one.promise) for n, one in enumerate(foretold) if one.promise]
        promises.sort(key=lambda promise: promise[1].ref)  # as the rows of keys are locked
        moves = foretold[0].group.foreseen is not None
        names = ("changes",) if moves else ("begins", "tries")
        rows = await fetch(
            connection,
            self._change if moves else self._record,
            {
                name: f"[{b','.join(filter(None, shares)).decode()}]"
                for name, shares in zip(names, zip(*(one.shares for one in foretold), strict=True), strict=True)
            }
            | {"lease_seconds": self._lease_seconds, "mark": _MARK}
            | dict(zip(LOGGED, zip(*(one.logged for one in foretold), strict=True), strict=True))
            | _columns([promise for _, promise in promises]),
        )
        if not rows[0].ok:
            raise Surprise
        return partial(self._results, foretold, promises, rows)

    def _results(
        self, foretold: Sequence[Foretold], promises: Sequence[tuple[int, Promise]], rows: Sequence[Any]
    ) -> list[Result]:
        now = rows[0].now
        replies: dict[int, Reply] = {}
        for _, _, ord, body in rows:
            if ord is not None:
                n, promise = promises[ord - 1]
                if promise.reply:
                    replies[n] = Reply(promise.reply.status, bytes(body), promise.reply.location)
        return [Result(self._outcomes(one.group, now), replies.get(n)) for n, one in enumerate(foretold)]

    def _outcomes(self, group: Group, now: datetime) -> list[Outcome[Any]]:
        views: Iterable[Any]
        if group.foreseen is None:
            views = [self._as_asked(command, now) for command in group.commands]
        else:
            views = [msgspec.structs.replace(foreseen.view, updated_at=now) for foreseen in group.foreseen]
        return [Outcome(DONE, view, now) for view in views]

    def _recorded(self, command: Any) -> Entry:
        if type(command) is Begin:
            return Entry(subject_id=command.id, event="begin", target=State.TRYING)
        return Entry(subject_id=command.id, event="try", target=self._held[command.resource], resource=command.resource)

    def _as_asked(self, command: Any, now: datetime) -> ReservationView | TransactionView:
        if type(command) is Try:
            return reservations.as_asked(command, now, self._held[command.resource])
        return transactions.as_asked(command, now)


def _changes(commands: Sequence[Any], foreseen: Sequence[Foreseen]) -> list[Change]:
    """The rows that moves change, each of them once."""
    changes: dict[tuple[str | None, UUID], Change] = {}
    for command, (after, before, guard) in zip(commands, foreseen, strict=True):
        resource = command.resource if type(command) is Move else None
        change = Change(
            tenant_id=command.tenant_id,
            id=command.id,
            resource=resource,
            event=command.event,
            source=before.state,
            target=after.state,
            guard=guard,
            seen=before.updated_at,
            cap=command.cap,
            reason=command.reason,
            detail=command.detail,
        )
        earlier = changes.get((resource, command.id))
        changes[resource, command.id] = earlier.then(change) if earlier else change
    return list(changes.values())


def _moved(command: Any, foreseen: Foreseen) -> Entry:
    after, before, _ = foreseen
    branch = type(command) is Move
    exchanges = command.exchanges if branch else None
    return Entry(
        subject_id=command.id,
        event=command.event,
        target=after.state,
        resource=command.resource if branch else None,
        source=before.state,
        entry_id=command.entry_id if exchanges else None,
        reason=command.reason,
        attempt=before.attempts,
        exchanges=exchanges,
        detail=command.detail,
    )


def _logged(first: Any, entries: Sequence[Entry]) -> tuple[Any, ...]:
    """A row of the journal, for a group whose first command is this."""
    transaction_id = first.id if type(first) in (Begin, MoveTransaction) else first.transaction_id
    return (
        first.tenant_id,
        transaction_id or first.id,
        first.entry_id,
        transaction_id,
        first.correlation_id,
        first.actor,
        _encode(entries).decode(),
    )


def _columns(promises: Sequence[Promise]) -> dict[str, Any]:
    claims = [promise.claim for promise in promises]
    replies = [promise.reply for promise in promises]
    return key_columns([promise.ref for promise in promises]) | {
        "tokens": [claim and claim.token for claim in claims],
        "fingerprints": [claim and claim.fingerprint for claim in claims],
        "subjects": [claim and claim.subject_id for claim in claims],
        "statuses": [reply and reply.status for reply in replies],
        "bodies": [reply and reply.body.decode() for reply in replies],
        "locations": [reply and reply.location for reply in replies],
        "laters": [_written(promise.ttl_seconds) for promise in promises],
        "ttls": [promise.ttl_seconds for promise in promises],
    }


def _written(seconds: float) -> str:
    """How a reply has the time so many seconds after `MOMENT`."""
    return _encode(MOMENT + timedelta(seconds=seconds)).decode().strip('"')


_MARK: Final = _written(0)
