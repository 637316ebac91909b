"""The durable ledger: effect, ledger line, key and reply in one transaction, committed before the answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from resources.payments.sandbox import records
from resources.payments.sandbox.behaviour import Behaviour, Delivery
from resources.payments.sandbox.decisions import Verdict, authorise, follow_up
from resources.payments.sandbox.group_commit import GroupCommit
from resources.payments.sandbox.schema import open_ledger
from resources.payments.sandbox.wire import (
    AnswerBody,
    Authorisation,
    Call,
    LedgerPage,
    Listing,
    Operation,
    Result,
    encode,
)

T = TypeVar("T")

NO_SUCH_METHOD = Behaviour(validity_seconds=0)
"""How a follow-up treats an authorisation whose method was never known: its state refuses everything."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and how."""

    status: int
    body: bytes
    replayed: bool = False
    delivery: Delivery = Delivery.PROMPT
    retry_after_seconds: int | None = None


class Ledger:
    """The file `ledger.sqlite3`; made inside the running loop. Reads have a connection and thread of their
    own, and see every answer that was given."""

    def __init__(self, path: Path, methods: Mapping[str, Behaviour]) -> None:
        self._methods = methods
        self._writer_db = open_ledger(path)
        self._reader_db = open_ledger(path)
        self._writer = GroupCommit(self._writer_db)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger-reader")

    async def perform(self, call: Call) -> Answer:
        """Do what is asked, or replay what was answered before."""
        return await self._writer.run(lambda db: self._perform(db, call))

    async def note_in_flight(self, call: Call) -> Answer:
        """Write down a request whose key is at work, and turn it away."""
        verdict = Verdict(
            status=409,
            result=Result.IN_FLIGHT,
            code="request_in_flight",
            message="a request with this key is still running",
        )

        def note(db: sqlite3.Connection) -> None:
            records.enter(db, call, verdict, self._reference(db, call), datetime.now(UTC))

        await self._writer.run(note)
        return _answer(verdict, retry_after_seconds=1)

    async def knows(self, key: str) -> bool:
        """Whether a reply is stored under a key."""
        return await self._read(lambda db: records.stored_reply(db, key) is not None)

    async def list_of_reference(self, reference: str) -> list[Authorisation]:
        return await self._read(lambda db: records.list_of_reference(db, reference))

    async def list_changed(self, since: datetime, after: int, limit: int) -> Listing:
        return await self._read(lambda db: records.list_changed(db, since, after, limit))

    async def read(self, reference: str | None, after: int, limit: int) -> LedgerPage:
        return await self._read(lambda db: records.read_ledger(db, reference, after, limit))

    async def aclose(self) -> None:
        """Finish what was accepted and close the file."""
        await self._writer.aclose()
        self._reader.shutdown(wait=True)
        self._reader_db.close()
        self._writer_db.close()

    def _perform(self, db: sqlite3.Connection, call: Call) -> Answer:
        now = datetime.now(UTC)
        request = encode(call)
        stored = records.stored_reply(db, call.key)
        if stored is not None:
            return self._repeat(db, call, request, stored, now)
        if call.operation is Operation.AUTHORISE:
            behaviour = self._methods.get(call.payment_method)
            verdict = authorise(call, behaviour, now)
        else:
            current = records.find_authorisation(db, call.authorisation_id)
            behaviour = self._methods.get(current.payment_method) if current else None
            failed = (
                records.count_failed_captures(db, call.authorisation_id)
                if behaviour and behaviour.captures_that_fail
                else 0
            )
            verdict = follow_up(call, current, behaviour or NO_SUCH_METHOD, failed, now)
        reference = verdict.authorisation.reference if verdict.authorisation else None
        seq = records.enter(db, call, verdict, reference, now)
        if verdict.authorisation and (verdict.had_effect or call.operation is Operation.AUTHORISE):
            records.write_authorisation(db, verdict.authorisation, seq)
        delivery = behaviour.delivery if behaviour and verdict.had_effect else Delivery.PROMPT
        answer = _answer(verdict, delivery=delivery)
        if verdict.kept:
            records.store_reply(db, call.key, request, answer.status, answer.body)
        return answer

    def _repeat(
        self,
        db: sqlite3.Connection,
        call: Call,
        request: bytes,
        stored: tuple[bytes, int, bytes],
        now: datetime,
    ) -> Answer:
        first_request, status, body = stored
        same = first_request == request
        verdict = (
            Verdict(status=status, result=Result.REPLAYED)
            if same
            else Verdict(
                status=409,
                result=Result.KEY_REUSED,
                code="idempotency_key_reused",
                message="this key was used before, for another request",
                permanent=True,
            )
        )
        records.enter(db, call, verdict, self._reference(db, call), now)
        return Answer(status=status, body=body, replayed=True) if same else _answer(verdict)

    def _reference(self, db: sqlite3.Connection, call: Call) -> str | None:
        if call.operation is Operation.AUTHORISE:
            return call.reference
        authorisation = records.find_authorisation(db, call.authorisation_id)
        return authorisation.reference if authorisation else None

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._snapshot, query)

    def _snapshot(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self._reader_db.execute("BEGIN")
        try:
            return query(self._reader_db)
        finally:
            self._reader_db.execute("COMMIT")


def _answer(
    verdict: Verdict, *, delivery: Delivery = Delivery.PROMPT, retry_after_seconds: int | None = None
) -> Answer:
    return Answer(
        status=verdict.status,
        body=encode(
            AnswerBody(
                authorisation=verdict.authorisation,
                code=verdict.code,
                message=verdict.message,
                permanent=verdict.permanent,
            )
        ),
        delivery=delivery,
        retry_after_seconds=retry_after_seconds,
    )
