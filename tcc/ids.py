"""Identifiers: UUIDv7, so that indexes stay local and no sequence is needed (RFC 9562)."""

from __future__ import annotations

from uuid import UUID

from asyncpg.pgproto import pgproto
from uuid_utils import uuid7


def new_id() -> UUID:
    """A new time-ordered id. Its time is the caller's clock, and decides nothing.

    Of the driver's own kind of `uuid.UUID`, like those that come back from the database: it is made, hashed and written
    out in C.
    """
    return pgproto.UUID(uuid7().bytes)
