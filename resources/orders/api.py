"""Looking at orders."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tcc.http.records import record_handler
from tcc.service import Service


class Order(msgspec.Struct, frozen=True):
    """An order: pending, confirmed or cancelled. `total` is in minor units."""

    id: UUID
    number: str
    state: str
    customer: str
    currency: str
    total: int
    lines: Any
    created_at: datetime
    updated_at: datetime


def handlers(service: Service) -> list[Any]:
    """Litestar handlers for orders."""
    return [record_handler(service, "orders", Order)]
