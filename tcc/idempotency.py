"""Idempotency keys: taken, and their replies stored, in the batch that has the effect.

A batch looks its keys up before it does anything, and records them when it is done: with the reply, where there is one
by then. That somebody else has taken one in between is told by the primary key, and the whole batch is done again.

A key belongs to a tenant, a caller and an operation. Its row keeps a fingerprint of the request, so that another
request under the same key is told so; and the reply, byte for byte, for whoever asks again. A key whose reply is not
stored yet is in flight: its request is still running, or crashed and is being finished by a worker.

Reference: draft-ietf-httpapi-idempotency-key-header, and Stripe's practice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.db import fetch
from tcc.ids import new_id

MAX_KEY_LENGTH: Final = 255


class KeyRef(msgspec.Struct, frozen=True, order=True):
    """Whose key, for what."""

    tenant_id: str
    caller: str
    operation: str
    key: str


class Claim(msgspec.Struct, frozen=True):
    """A key that a request comes with. `subject_id` is what the request is about to create or change; `token` is this
    very request's."""

    ref: KeyRef
    fingerprint: bytes
    subject_id: UUID
    token: UUID = msgspec.field(default_factory=new_id)


class Reply(msgspec.Struct, frozen=True):
    """A reply as it is sent, and stored."""

    status: int
    body: bytes
    location: str | None = None


class Held(msgspec.Struct, frozen=True):
    """A key that somebody claimed before. `reply` is None while the first request is still running."""

    fingerprint: bytes
    subject_id: UUID
    token: UUID
    reply: Reply | None
    age_seconds: float
    """Since it was claimed, on the database's clock."""


def fingerprint(*parts: bytes) -> bytes:
    """A digest of a request: 32 bytes, the same for requests that mean the same."""
    return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=32).digest()


_KEEP = text(
    """
INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, token, status, body, location,
  created_at)
SELECT c.*, clock_timestamp()
FROM unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]), CAST(:keys AS text[]),
  CAST(:fingerprints AS bytea[]), CAST(:subjects AS uuid[]), CAST(:tokens AS uuid[]), CAST(:statuses AS int[]),
  CAST(:bodies AS bytea[]), CAST(:locations AS text[])) AS c(tenant_id, caller, operation, key)
ORDER BY c.tenant_id, c.caller, c.operation, c.key"""
)

_LOOK = text(
    """
SELECT c.ord, k.fingerprint, k.subject_id, k.token, k.status, k.body, k.location,
  EXTRACT(epoch FROM clock_timestamp() - k.created_at)::float8 AS age_seconds
FROM unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]), CAST(:keys AS text[]))
  WITH ORDINALITY AS c(tenant_id, caller, operation, key, ord)
JOIN idempotency_keys k USING (tenant_id, caller, operation, key)"""
)


_STORE = text(
    """
UPDATE idempotency_keys k SET status = c.status, body = c.body, location = c.location
FROM unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]), CAST(:keys AS text[]),
    CAST(:statuses AS int[]), CAST(:bodies AS bytea[]), CAST(:locations AS text[]))
  WITH ORDINALITY AS c(tenant_id, caller, operation, key, status, body, location, ord)
WHERE k.tenant_id = c.tenant_id AND k.caller = c.caller AND k.operation = c.operation AND k.key = c.key
  AND k.status IS NULL
RETURNING c.ord"""
)

_RELEASE = text(
    """
DELETE FROM idempotency_keys k
USING unnest(CAST(:tenants AS text[]), CAST(:callers AS text[]), CAST(:operations AS text[]), CAST(:keys AS text[]))
  AS c(tenant_id, caller, operation, key)
WHERE k.tenant_id = c.tenant_id AND k.caller = c.caller AND k.operation = c.operation AND k.key = c.key
  AND k.status IS NULL"""
)

_PURGE = text(
    """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM idempotency_keys
  WHERE created_at < clock_timestamp() - make_interval(secs => :retention_seconds)
  ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED))"""
)


def key_columns(refs: Sequence[KeyRef]) -> dict[str, Any]:
    """Keys as arrays, one for each column."""
    return {
        "tenants": [ref.tenant_id for ref in refs],
        "callers": [ref.caller for ref in refs],
        "operations": [ref.operation for ref in refs],
        "keys": [ref.key for ref in refs],
    }


async def look(connection: AsyncConnection, refs: Sequence[KeyRef]) -> list[Held | None]:
    """What is stored under keys; None for a key that nobody holds."""
    found: list[Held | None] = [None] * len(refs)
    for row in await fetch(connection, _LOOK, key_columns(refs)):
        reply = None if row.status is None else Reply(row.status, bytes(row.body), row.location)
        found[row.ord - 1] = Held(bytes(row.fingerprint), row.subject_id, row.token, reply, row.age_seconds)
    return found


async def keep(connection: AsyncConnection, claims: Sequence[tuple[Claim, Reply | None]]) -> None:
    """Take keys that nobody held when they were looked up, with the replies that there are by now.

    Where somebody has taken one since, the server refuses, which is a conflict: another transaction came first.
    """
    columns = key_columns([claim.ref for claim, _ in claims])
    columns["fingerprints"] = [claim.fingerprint for claim, _ in claims]
    columns["subjects"] = [claim.subject_id for claim, _ in claims]
    columns["tokens"] = [claim.token for claim, _ in claims]
    await fetch(connection, _KEEP, columns | _replies([reply for _, reply in claims]))


def _replies(replies: Sequence[Reply | None]) -> dict[str, Any]:
    return {
        "statuses": [reply and reply.status for reply in replies],
        "bodies": [reply and reply.body for reply in replies],
        "locations": [reply and reply.location for reply in replies],
    }


async def store(connection: AsyncConnection, replies: Mapping[KeyRef, Reply]) -> dict[KeyRef, Reply]:
    """Store replies; what the keys have now. A key that has a reply keeps it; only then is it looked at."""
    refs = sorted(replies)
    columns = key_columns(refs) | _replies([replies[ref] for ref in refs])
    stored = {refs[row.ord - 1] for row in await fetch(connection, _STORE, columns)}
    others = [ref for ref in refs if ref not in stored]
    found = await look(connection, others) if others else []
    kept = {ref: held.reply for ref, held in zip(others, found, strict=True) if held and held.reply}
    return {**replies, **kept}


async def release(connection: AsyncConnection, refs: Sequence[KeyRef]) -> None:
    """Forget keys whose request came to nothing, so that it can be mended and sent again."""
    await fetch(connection, _RELEASE, key_columns(refs))


async def purge(connection: AsyncConnection, *, retention_seconds: float, limit: int) -> int:
    """Delete up to `limit` keys older than the retention; how many went."""
    return (await connection.execute(_PURGE, {"retention_seconds": retention_seconds, "limit": limit})).rowcount
