"""Reading what is there. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from tcc.commands import ReservationView, TransactionView
from tcc.db import Database
from tcc.reservations import reservation_view
from tcc.sql import RESERVATION_VIEW, TRANSACTION_VIEW
from tcc.transactions import transaction_view

_RESERVATIONS = text(
    f"""
SELECT k.ord, r.* FROM unnest(CAST(:tenants AS text[]), CAST(:resources AS text[]), CAST(:ids AS uuid[]))
  WITH ORDINALITY AS k(tenant_id, resource, id, ord)
CROSS JOIN LATERAL (
  SELECT {RESERVATION_VIEW} FROM reservations r
  WHERE r.tenant_id = k.tenant_id AND r.resource = k.resource AND r.id = k.id OFFSET 0) r"""
)
"""Look-ups by key, one for each: what `OFFSET 0` fences off can't be turned into a scan of all that a tenant has."""

_TRANSACTION = text(
    f"""
SELECT k.ord, t.* FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS uuid[])) WITH ORDINALITY AS k(tenant_id, id, ord)
CROSS JOIN LATERAL (
  SELECT t.expires_at <= clock_timestamp() AS overdue, {TRANSACTION_VIEW} FROM transactions t
  WHERE t.tenant_id = k.tenant_id AND t.id = k.id OFFSET 0) t"""
)

_TRANSACTIONS = text(
    f"""
SELECT {TRANSACTION_VIEW} FROM transactions
WHERE tenant_id = :tenant_id AND (CAST(:state AS text) IS NULL OR state = :state)
  AND (CAST(:attention AS boolean) IS NULL OR (attention IS NOT NULL) = :attention)
  AND (CAST(:reference AS text) IS NULL OR reference = :reference)
  AND (CAST(:before AS uuid) IS NULL OR id < :before)
ORDER BY id DESC LIMIT :limit"""
)

_JOURNAL = text(
    """
SELECT t.at, t.resource, t.subject_id, t.event, t.source, t.target, t.reason, t.actor, t.correlation_id, t.attempt,
  t.exchanges, t.detail
FROM (SELECT CAST(:tenant_id AS text) AS tenant_id, unnest(CAST(:subjects AS uuid[])) AS id) s
JOIN transitions t ON t.filed_under = s.id AND t.tenant_id = s.tenant_id
ORDER BY t.at, t.filed_as, t.position LIMIT :limit"""
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the journal."""

    at: datetime
    subject: str
    """`transaction`, or the resource of the reservation."""
    id: UUID
    event: str
    source: str | None = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    reason: str | None
    actor: str
    correlation_id: str
    attempt: int | None
    exchanges: Any
    detail: Any


async def reservations(
    database: Database, tenant_id: str, keys: Sequence[tuple[str, UUID]]
) -> dict[tuple[str, UUID], ReservationView]:
    """Those of the reservations that exist, by resource and id."""
    rows = await database.look_up(_RESERVATIONS, [(tenant_id, resource, id) for resource, id in keys])
    return {(view.resource, view.id): view for view in map(reservation_view, rows)}


async def transaction(database: Database, tenant_id: str, id: UUID) -> tuple[TransactionView, bool] | None:
    """A transaction, and whether its deadline has passed."""
    rows = await database.look_up(_TRANSACTION, [(tenant_id, id)])
    return (transaction_view(rows[0]), rows[0][1]) if rows else None


async def transactions(
    database: Database,
    tenant_id: str,
    *,
    state: str | None,
    attention: bool | None,
    reference: str | None = None,
    before: UUID | None,
    limit: int,
) -> list[TransactionView]:
    """Transactions, newest first, older than `before`."""
    parameters = {
        "tenant_id": tenant_id,
        "state": state,
        "attention": attention,
        "reference": reference,
        "before": before,
        "limit": limit,
    }
    return [transaction_view(row) for row in await database.read(_TRANSACTIONS, parameters)]


async def journal(database: Database, tenant_id: str, subjects: Sequence[UUID], *, limit: int) -> list[Entry]:
    """The journal's first rows for reservations and transactions, in order of time."""
    rows = await database.read(_JOURNAL, {"tenant_id": tenant_id, "subjects": list(subjects), "limit": limit})
    return [
        Entry(
            at=row.at,
            subject=row.resource or "transaction",
            id=row.subject_id,
            event=row.event,
            source=row.source,
            target=row.target,
            reason=row.reason,
            actor=row.actor,
            correlation_id=row.correlation_id,
            attempt=row.attempt,
            exchanges=row.exchanges,
            detail=row.detail,
        )
        for row in rows
    ]
