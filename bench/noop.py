"""The framework's ceiling: a Litestar endpoint that takes a Try's body and answers as a Try is answered, doing nothing.

Served the same way as the API: uvicorn, uvloop, httptools, one process, no access log.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from uuid import UUID

from litestar import Litestar, post

from bench.peers.serving import serve
from resources.inventory.claims import InventoryClaim
from tcc.commands import ReservationView
from tcc.machine import State

_NOW = datetime.now(UTC)


@post("/noop")
async def noop(data: InventoryClaim) -> ReservationView:
    """Answer at once."""
    return ReservationView(
        resource="inventory",
        id=UUID(int=0),
        state=State.TRIED,
        reason=None,
        reference=None,
        transaction_id=None,
        claim=data,
        detail=None,
        attention=None,
        attention_since=None,
        attempts=0,
        expires_at=_NOW,
        extendable_until=None,
        created_at=_NOW,
        updated_at=_NOW,
    )


def create() -> Litestar:
    """The application."""
    return Litestar([noop], openapi_config=None, logging_config=None)


if __name__ == "__main__":
    serve(create(), int(sys.argv[1]))
