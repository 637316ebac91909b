"""Identifiers: UUIDv7, so that indexes stay local and no sequence is needed (RFC 9562)."""

from __future__ import annotations

from uuid import UUID

import uuid_utils


def new_id() -> UUID:
    """A new time-ordered id. Its time is the caller's clock, and decides nothing."""
    return UUID(int=uuid_utils.uuid7().int)
