"""The ledger's tables, and how to open them."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS operations (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    at               INTEGER NOT NULL,              -- microseconds since 1970, like every time here
    operation        TEXT    NOT NULL CHECK (operation IN ('authorise', 'capture', 'void', 'refund')),
    authorisation_id TEXT    NOT NULL,
    reference        TEXT,
    amount           INTEGER,
    key              TEXT    NOT NULL,
    result           TEXT    NOT NULL,
    had_effect       INTEGER NOT NULL CHECK (had_effect IN (0, 1)),
    status           INTEGER NOT NULL,
    code             TEXT,
    CHECK (had_effect = 0 OR result = 'succeeded')
);
CREATE INDEX IF NOT EXISTS operations_of_an_authorisation ON operations (authorisation_id, seq);
CREATE INDEX IF NOT EXISTS operations_of_a_reference ON operations (reference, seq);
CREATE TRIGGER IF NOT EXISTS operations_are_never_changed BEFORE UPDATE ON operations
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS operations_are_never_deleted BEFORE DELETE ON operations
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;

CREATE TABLE IF NOT EXISTS authorisations (
    id              TEXT    NOT NULL PRIMARY KEY,
    reference       TEXT    NOT NULL,
    amount          INTEGER NOT NULL CHECK (amount > 0),
    currency        TEXT    NOT NULL,
    payment_method  TEXT    NOT NULL,
    state           TEXT    NOT NULL
        CHECK (state IN ('authorised', 'captured', 'voided', 'declined', 'refunded')),
    code            TEXT,
    captured_amount INTEGER NOT NULL CHECK (captured_amount BETWEEN 0 AND amount),
    refunded_amount INTEGER NOT NULL CHECK (refunded_amount BETWEEN 0 AND captured_amount),
    capture_before  INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    changed_at      INTEGER NOT NULL,
    changed_seq     INTEGER NOT NULL,               -- the operation that changed it last
    CHECK ((state IN ('captured', 'refunded')) = (captured_amount > 0)),
    CHECK ((state = 'refunded') = (refunded_amount > 0 AND refunded_amount = captured_amount))
);
CREATE INDEX IF NOT EXISTS authorisations_of_a_reference ON authorisations (reference);
CREATE UNIQUE INDEX IF NOT EXISTS authorisations_by_change ON authorisations (changed_seq);

CREATE TABLE IF NOT EXISTS replies (
    key     TEXT    NOT NULL PRIMARY KEY,
    request BLOB    NOT NULL,                       -- the Call, as JSON: the same request or not
    status  INTEGER NOT NULL,
    body    BLOB    NOT NULL
);
"""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open, and if need be make, the ledger. Transactions are begun by hand; a commit is on disk.

    The connection may be used by any one thread at a time.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(SCHEMA)
    return db


def micros(moment: datetime) -> int:
    """A moment as the tables have it."""
    return (moment - EPOCH) // MICROSECOND


def moment(micros: int) -> datetime:
    """A moment as the wire has it."""
    return EPOCH + timedelta(microseconds=micros)
