"""Applies Begin and MoveTransaction commands to transactions, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.commands import Begin, BranchPlan, MoveTransaction, Outcome, TransactionView
from tcc.db import fetch
from tcc.machine import TRANSACTION, State
from tcc.reservations import moved
from tcc.sql import begin_sql, move_transaction_sql

_encode = msgspec.json.Encoder().encode
_decode_branches = msgspec.json.Decoder(list[BranchPlan]).decode


def transaction_view(row: Any) -> TransactionView:
    """A transaction from a row that has the columns of `tcc.sql.TRANSACTION_VIEW`."""
    return TransactionView(
        id=row.id,
        state=State(row.state),
        reason=row.reason,
        reference=row.reference,
        confirm=row.confirm,
        branches=_decode_branches(row.branches),
        detail=row.detail,
        attention=row.attention,
        attention_since=row.attention_since,
        attempts=row.attempts,
        deadline=row.expires_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
        correlation_id=row.correlation_id,
    )


_LOCK = text(
    """
SELECT t.id FROM transactions t
WHERE (t.tenant_id, t.id) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS uuid[])))
ORDER BY t.tenant_id, t.id FOR NO KEY UPDATE"""
)


async def lock(connection: AsyncConnection, keys: Sequence[tuple[str, UUID]]) -> None:
    """Lock transactions before anything of theirs, in order, so that two drivers of the same ones can't deadlock."""
    await fetch(connection, _LOCK, {"tenants": [tenant for tenant, _ in keys], "ids": [id for _, id in keys]})


class Begins:
    """Transactions recorded."""

    def __init__(self) -> None:
        self._sql = text(begin_sql())

    async def apply(self, connection: AsyncConnection, commands: Sequence[Begin]) -> list[Outcome[TransactionView]]:
        """One outcome for each command, in their order."""
        rows = await fetch(connection, self._sql, {"commands": _encode(commands).decode()})
        found = {row.ord: Outcome(row.how, transaction_view(row), row.now) for row in rows}
        return [found[n] for n in range(1, len(commands) + 1)]


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
        missing = ["not_found"] * len(commands)
        return moved(TRANSACTION, [command.event for command in commands], rows, transaction_view, missing)
