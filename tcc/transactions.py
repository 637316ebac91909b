"""Applies Begin and MoveTransaction commands to transactions, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import DONE, REPEATED, Begin, MoveTransaction, Outcome, TransactionView
from tcc.db import fetch
from tcc.machine import TRANSACTION, State
from tcc.reservations import STATES, moved
from tcc.sql import begin_sql, found_transactions_sql, move_transaction_sql

_encode = msgspec.json.Encoder().encode


def transaction_view(row: Sequence[Any]) -> TransactionView:
    """A transaction from a row whose last columns are those of `tcc.sql.TRANSACTION_VIEW`."""
    id, state, *rest = row[-14:]
    return TransactionView(id, STATES[state], *rest)


_LOCK = text(
    """
SELECT t.id FROM transactions t
WHERE (t.tenant_id, t.id) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS uuid[])))
ORDER BY t.tenant_id, t.id FOR NO KEY UPDATE"""
)


async def lock(connection: AsyncConnection, keys: Sequence[tuple[str, UUID]]) -> None:
    """Lock transactions before anything of theirs, in order, so that two drivers of the same ones can't deadlock."""
    await fetch(connection, _LOCK, {"tenants": [tenant for tenant, _ in keys], "ids": [id for _, id in keys]})


_FOUND = text(found_transactions_sql())


async def _find(connection: AsyncConnection, commands: Sequence[Any]) -> list[Any]:
    """The rows that are there under the ids of commands: (ord, the transaction's columns)."""
    return await fetch(connection, _FOUND, {"commands": _encode(commands).decode()})


class Begins:
    """Transactions recorded."""

    def __init__(self) -> None:
        self._sql = text(begin_sql())

    async def apply(self, connection: AsyncConnection, commands: Sequence[Begin]) -> list[Outcome[TransactionView]]:
        """One outcome for each command, in their order; a repeat finds the row that is there."""
        rows = await fetch(connection, self._sql, {"commands": _encode(commands).decode()})
        now = rows[0][0]
        outcomes = [Outcome(DONE, _as_asked(command, now), now) for command in commands]
        known = [row[1] - 1 for row in rows if row[1] is not None]
        if known:
            for row in await _find(connection, [commands[n] for n in known]):
                outcomes[known[row[0] - 1]] = Outcome(REPEATED, transaction_view(row), now)
        return outcomes


def _as_asked(command: Begin, now: datetime) -> TransactionView:
    """The transaction that a Begin has just recorded."""
    return TransactionView(
        command.id,
        State.TRYING,
        None,
        command.reference,
        command.confirm,
        msgspec.Raw(_encode(command.branches)),
        None,
        None,
        None,
        0,
        now + timedelta(seconds=command.ttl_seconds),
        now,
        now,
        command.correlation_id,
    )


class TransactionMoves:
    """Every event of transactions."""

    def __init__(self, *, lease_seconds: float) -> None:
        self._sql = text(move_transaction_sql())
        self._lease_seconds = lease_seconds

    async def apply(
        self, connection: AsyncConnection, commands: Sequence[MoveTransaction]
    ) -> list[Outcome[TransactionView]]:
        """One outcome for each command, in their order."""
        parameters = {"commands": _encode(commands).decode(), "lease_seconds": self._lease_seconds}
        rows = await fetch(connection, self._sql, parameters)
        return await moved(TRANSACTION, commands, rows, transaction_view, partial(_find, connection))
