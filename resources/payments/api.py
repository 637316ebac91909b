"""Looking at payments."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tcc.http.records import record_handler
from tcc.service import Service


class Payment(msgspec.Struct, frozen=True):
    """A payment, under the id of its reservation. `amount` is in minor units."""

    id: UUID
    state: str
    amount: int
    currency: str
    payment_method: str
    authorisation_id: str | None
    capture_before: datetime | None
    decline_code: str | None
    created_at: datetime
    updated_at: datetime


def handlers(service: Service) -> list[Any]:
    """Litestar handlers for payments."""
    return [record_handler(service, "payments", Payment)]
