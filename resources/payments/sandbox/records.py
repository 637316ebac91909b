"""Reading and writing the ledger's tables; each function is given a connection inside a transaction.

Rows are read whole, in the order of columns of `schema`.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from resources.payments.sandbox.decisions import Verdict
from resources.payments.sandbox.schema import micros, moment
from resources.payments.sandbox.wire import (
    Account,
    Authorisation,
    Call,
    Entry,
    LedgerPage,
    Listing,
    Operation,
    Result,
    State,
)

AT_MOST_PER_REFERENCE = 100


def stored_reply(db: sqlite3.Connection, key: str) -> tuple[bytes, int, bytes] | None:
    """The request a key was used for, and the status and body it was answered with."""
    row: tuple[bytes, int, bytes] | None = db.execute(
        "SELECT request, status, body FROM replies WHERE key = ?", (key,)
    ).fetchone()
    return row


def store_reply(db: sqlite3.Connection, key: str, request: bytes, status: int, body: bytes) -> None:
    """Keep a reply for good; a key used before is an error."""
    db.execute("INSERT INTO replies VALUES (?, ?, ?, ?)", (key, request, status, body))


def find_authorisation(db: sqlite3.Connection, id_: str) -> Authorisation | None:
    """One authorisation, as it stands."""
    row = db.execute("SELECT * FROM authorisations WHERE id = ?", (id_,)).fetchone()
    return _authorisation(row) if row else None


def count_failed_captures(db: sqlite3.Connection, id_: str) -> int:
    """How many captures of it were answered 503 on purpose."""
    count: int = db.execute(
        "SELECT count(*) FROM operations WHERE authorisation_id = ? AND operation = 'capture' AND result = 'failed'",
        (id_,),
    ).fetchone()[0]
    return count


def enter(db: sqlite3.Connection, call: Call, verdict: Verdict, reference: str | None, now: datetime) -> int:
    """Add a line to the ledger; returns its number."""
    seq: int = db.execute(
        "INSERT INTO operations (at, operation, authorisation_id, reference, amount, key, result, had_effect,"
        " status, code) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (
            micros(now),
            call.operation.value,
            call.authorisation_id,
            reference,
            call.amount or None,
            call.key,
            verdict.result.value,
            verdict.had_effect,
            verdict.status,
            verdict.code,
        ),
    ).fetchone()[0]
    return seq


def write_authorisation(db: sqlite3.Connection, one: Authorisation, seq: int) -> None:
    """Make it, or move it to its new state, because of line `seq`."""
    db.execute(
        "INSERT INTO authorisations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
        " SET state = excluded.state, captured_amount = excluded.captured_amount,"
        " refunded_amount = excluded.refunded_amount, changed_at = excluded.changed_at,"
        " changed_seq = excluded.changed_seq",
        (
            one.id,
            one.reference,
            one.amount,
            one.currency,
            one.payment_method,
            one.state.value,
            one.code,
            one.captured_amount,
            one.refunded_amount,
            micros(one.capture_before),
            micros(one.created_at),
            micros(one.changed_at),
            seq,
        ),
    )


def list_of_reference(db: sqlite3.Connection, reference: str) -> list[Authorisation]:
    """Every authorisation made under a reference, the latest first."""
    rows = db.execute(
        "SELECT * FROM authorisations WHERE reference = ? ORDER BY changed_seq DESC LIMIT ?",
        (reference, AT_MOST_PER_REFERENCE),
    )
    return [_authorisation(row) for row in rows]


def list_changed(db: sqlite3.Connection, since: datetime, after: int, limit: int) -> Listing:
    """A page of what changed, in the order of the ledger, which is the order of commits."""
    rows = db.execute(
        "SELECT * FROM authorisations WHERE changed_seq > ? AND changed_at >= ? ORDER BY changed_seq LIMIT ?",
        (after, micros(since), limit + 1),
    ).fetchall()
    page = rows[:limit]
    return Listing(
        authorisations=[_authorisation(row) for row in page],
        next=str(page[-1][-1]) if len(rows) > limit else None,
    )


def read_ledger(db: sqlite3.Connection, reference: str | None, after: int, limit: int) -> LedgerPage:
    """A page of the ledger, with the accounts that its lines touch."""
    rows = (
        db.execute("SELECT * FROM operations WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit + 1))
        if reference is None
        else db.execute(
            "SELECT * FROM operations WHERE reference = ? AND seq > ? ORDER BY seq LIMIT ?",
            (reference, after, limit + 1),
        )
    ).fetchall()
    entries = [_entry(row) for row in rows[:limit]]
    accounts = [_account(db, id_) for id_ in dict.fromkeys(entry.authorisation_id for entry in entries)]
    return LedgerPage(
        operations=entries,
        accounts=[account for account in accounts if account is not None],
        next=entries[-1].seq if len(rows) > limit else None,
    )


def _account(db: sqlite3.Connection, id_: str) -> Account | None:
    authorisation = find_authorisation(db, id_)
    if authorisation is None:
        return None
    effects = dict.fromkeys(Operation, 0)
    requests = dict.fromkeys(Operation, 0)
    for operation, effect, request in db.execute(
        "SELECT operation, sum(had_effect), count(*) FROM operations WHERE authorisation_id = ? GROUP BY 1",
        (id_,),
    ):
        effects[Operation(operation)] = effect
        requests[Operation(operation)] = request
    return Account(authorisation=authorisation, effects=effects, requests=requests)


def _authorisation(row: tuple[Any, ...]) -> Authorisation:
    return Authorisation(
        id=row[0],
        reference=row[1],
        amount=row[2],
        currency=row[3],
        payment_method=row[4],
        state=State(row[5]),
        code=row[6],
        captured_amount=row[7],
        refunded_amount=row[8],
        capture_before=moment(row[9]),
        created_at=moment(row[10]),
        changed_at=moment(row[11]),
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(
        seq=row[0],
        at=moment(row[1]),
        operation=Operation(row[2]),
        authorisation_id=row[3],
        reference=row[4],
        amount=row[5],
        key=row[6],
        result=Result(row[7]),
        had_effect=bool(row[8]),
        status=row[9],
        code=row[10],
    )
