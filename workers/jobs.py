"""arq's jobs: wake-ups. Each carries ids only, and does what a sweep would do a little later."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from tcc.sweeps import Sweeper


async def drive_transaction(context: dict[str, Any], tenant_id: str, id: str) -> str:
    """Take one transaction as far as it goes now; its state."""
    sweeper: Sweeper = context["sweeper"]
    return await sweeper.drive(tenant_id, UUID(id))
