"""arq's jobs: wake-ups. Each carries ids only, and does what a sweep would do a little later."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog

from tcc.errors import TccError
from tcc.sweeps import Sweeper

log = structlog.get_logger(__name__)


async def drive_transaction(context: dict[str, Any], tenant_id: str, id: str) -> str:
    """Take one transaction as far as it goes now; its state, or the code of what is in the way."""
    sweeper: Sweeper = context["sweeper"]
    try:
        transaction = await sweeper.drive(tenant_id, UUID(id))
    except TccError as error:  # a sweep will find it, if there is anything to find
        log.info("wakeup_came_to_nothing", transaction_id=id, code=error.code)
        return error.code
    return transaction.view.state
