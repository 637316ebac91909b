"""Batches that come out as foreseen: committed by one statement, with the replies that tell of them.

A reply tells what came of a request, and is stored in the commit that it tells of. What that will be is as good as
known, but for the time: so it is written before, with `MOMENT` in the place of the time, and the statement puts that
in. If anything comes out otherwise, nothing is done at all, and the batch is applied kind by kind (`tcc.groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc import reservations, transactions
from tcc.commands import DONE, MOMENT, Begin, Command, Exchange, Foreseen, Move, MoveTransaction, Outcome, Try
from tcc.db import fetch
from tcc.foreseen_sql import PROMISE, change_sql, record_sql
from tcc.groups import FORGET, Group, Result
from tcc.idempotency import Claim, KeyRef, Reply, key_columns
from tcc.machine import Event, Guard, State
from tcc.resource import Resource


class Surprise(Exception):
    """A group didn't come out as foreseen; nothing was done."""


class Change(msgspec.Struct, omit_defaults=True):
    """A row that is to be changed, by one command or several: from the first one's source to the last one's target."""

    tenant_id: str
    id: UUID
    resource: str | None
    event: Event
    source: State
    target: State
    guard: Guard
    seen: datetime
    reason: str | None = None
    cap: datetime | None = None
    detail: Any = None


class Entry(Command, frozen=True, omit_defaults=True, kw_only=True):
    """A row of the journal. `id` is that of what is changed."""

    event: Event
    source: State
    target: State
    attempt: int
    transaction_id: UUID | None
    resource: str | None = None
    reason: str | None = None
    exchanges: list[Exchange] | None = None
    detail: Any = None


class Promise(msgspec.Struct, frozen=True):
    """What is to become of a key: it is taken, where there is a `claim`, and given a reply, where there is one.

    In the reply, `MOMENT` stands for the time of the batch, and what is `ttl_seconds` later for what is as much later
    than that.
    """

    ref: KeyRef
    claim: Claim | None
    group: int
    reply: Reply | None
    ttl_seconds: float


_encode: Final = msgspec.json.Encoder().encode


class Foresight:
    """The statements, for the resources that there are."""

    def __init__(self, resources: Sequence[Resource], *, lease_seconds: float) -> None:
        self._record = text(record_sql(resources))
        self._change = text(change_sql(resources))
        self._lease_seconds = lease_seconds
        self._held = {resource.name: State.TRYING if resource.external else State.TRIED for resource in resources}

    async def apply(self, connection: AsyncConnection, groups: Sequence[Group]) -> list[Result] | None:
        """Apply groups that are all of tries or all of moves, store their replies, and commit, in one statement.

        None where what they come to can't be foreseen; raises `Surprise`. Nothing is done then.
        """
        foreseen: list[Sequence[Outcome[Any]]] = []
        promises: list[Promise] = []
        for n, group in enumerate(groups):
            outcomes = self._foresee(group, MOMENT)
            if outcomes is None:
                return None
            foreseen.append(outcomes)
            if (ref := group.claim.ref if group.claim else group.answers) is None:
                continue
            reply = group.render(outcomes) if group.render else None
            first = group.commands[0]
            if reply is not None and (reply is FORGET or isinstance(first, Begin)):
                return None  # what is begun has a deadline of its own
            if group.claim or reply:
                promises.append(Promise(ref, group.claim, n, reply, first.ttl_seconds if isinstance(first, Try) else 0))
        promises.sort(key=attrgetter("ref"))  # in which their rows are locked
        given = self._given(groups) | {"lease_seconds": self._lease_seconds, "mark": _MARK} | _columns(promises)
        rows = await fetch(connection, self._record if "tries" in given else self._change, given)
        now, ok, *_ = rows[0]
        if not ok:
            raise Surprise
        replies: dict[int, Reply] = {}
        for _, _, ord, body in rows:
            if ord is not None:
                promise = promises[ord - 1]
                replies[promise.group] = msgspec.structs.replace(promise.reply, body=bytes(body))
        return [Result(self._at(group, outcomes, now), replies.get(n)) for n, (group, outcomes) in enumerate(zip(groups, foreseen))]

    def _foresee(self, group: Group, now: datetime) -> Sequence[Outcome[Any]] | None:
        if group.foreseen is not None:
            # Reservations are moved behind their transaction, which keeps apart whoever moves them.
            if not any(isinstance(command, MoveTransaction) for command in group.commands):
                return None
            return [Outcome(DONE, foreseen.view, now) for foreseen in group.foreseen]
        outcomes: list[Outcome[Any]] = []
        for command in group.commands:
            if isinstance(command, Try):
                outcomes.append(Outcome(DONE, reservations.as_asked(command, now, self._held[command.resource]), now))
            elif isinstance(command, Begin):
                outcomes.append(Outcome(DONE, transactions.as_asked(command, now), now))
            else:
                return None
        return outcomes

    def _at(self, group: Group, outcomes: Sequence[Outcome[Any]], now: datetime) -> Sequence[Outcome[Any]]:
        if group.foreseen is None:
            return self._foresee(group, now) or []
        return [Outcome(DONE, msgspec.structs.replace(outcome.view, updated_at=now), now) for outcome in outcomes]

    def _given(self, groups: Sequence[Group]) -> dict[str, Any]:
        commands = [command for group in groups for command in group.commands]
        if groups[0].foreseen is None:
            begins = [command for command in commands if isinstance(command, Begin)]
            tries = [command for command in commands if isinstance(command, Try)]
            return {"begins": _encode(begins).decode(), "tries": _encode(tries).decode()}
        changes: dict[Any, Change] = {}
        entries: list[Entry] = []
        for command, (after, before, guard) in (
            (command, (foreseen.view, foreseen.before, foreseen.guard))
            for group in groups
            for command, foreseen in zip(group.commands, group.foreseen or (), strict=True)
        ):
            resource = getattr(command, "resource", None)
            key = (resource, command.id)
            entries.append(
                Entry(
                    tenant_id=command.tenant_id,
                    id=command.id,
                    correlation_id=command.correlation_id,
                    actor=command.actor,
                    entry_id=command.entry_id,
                    event=command.event,
                    source=before.state,
                    target=after.state,
                    attempt=before.attempts,
                    transaction_id=command.transaction_id if resource else command.id,
                    resource=resource,
                    reason=command.reason,
                    exchanges=command.exchanges if resource else None,
                    detail=command.detail,
                )
            )
            change = changes.get(key)
            if change is None:
                changes[key] = Change(
                    command.tenant_id,
                    command.id,
                    resource,
                    command.event,
                    before.state,
                    after.state,
                    guard,
                    before.updated_at,
                    command.reason,
                    command.cap,
                    command.detail,
                )
                continue
            change.event, change.target = command.event, after.state
            change.guard = change.guard if guard is Guard.ANY else guard
            change.reason = command.reason or change.reason
            change.cap = command.cap or change.cap
            change.detail = change.detail if command.detail is None else command.detail
        return {"changes": _encode(list(changes.values())).decode(), "entries": _encode(entries).decode()}


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
