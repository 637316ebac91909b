"""Asking the outside for what a resting reservation needs, and turning the answer into a command."""

from __future__ import annotations

import random
from datetime import UTC
from typing import Any

import structlog

from tcc.commands import Context, Move, ReservationView
from tcc.machine import Event
from tcc.metrics import Metrics
from tcc.resource import Answer
from tcc.settings import Settings
from tcc.stores import Stores

log = structlog.get_logger(__name__)


class Asking:
    """Asks, with a key that is the same however often, and says when to ask again."""

    def __init__(self, stores: Stores, settings: Settings, metrics: Metrics) -> None:
        self._stores = stores
        self._settings = settings
        self._metrics = metrics

    async def ask(self, context: Context, reservation: ReservationView) -> Move:
        """The command that records what the outside answered. Never raises for what the outside does."""
        attempt = reservation.attempts + 1
        try:
            answer = await self._stores.external(reservation.resource).ask(
                reservation, tenant_id=context.tenant_id, attempt=attempt
            )
            cap = answer.cap and answer.cap.astimezone(UTC)
        except Exception:  # our own mistake, or a time that no clock can hold: unknown like any other
            log.exception("asking_failed", resource=reservation.resource, reservation_id=str(reservation.id))
            answer, cap = Answer(event=None, exchanges=[]), None
        for exchange in answer.exchanges:
            self._metrics.external_calls.labels(reservation.resource, exchange.operation, exchange.outcome).inc()
        attention = answer.attention
        if answer.event is None and attention is None and attempt >= self._settings.max_attempts:
            attention = f"Asked {attempt} times without an answer."
        return Move(
            tenant_id=context.tenant_id,
            id=reservation.id,
            correlation_id=context.correlation_id,
            actor=context.actor,
            resource=reservation.resource,
            transaction_id=reservation.transaction_id,
            event=answer.event or Event.POSTPONE,
            reason=answer.refusal,
            cap=cap,
            detail=answer.detail,
            exchanges=answer.exchanges or None,
            attention=attention,
            retry_seconds=None if answer.event else self.backoff(attempt, answer.retry_seconds),
        )

    def backoff(self, attempt: int, said: float | None = None) -> float:
        """Seconds until the next attempt: doubling, no sooner than the other side said, capped, with jitter."""
        doubled: float = self._settings.retry_base_seconds * 2 ** min(attempt - 1, 16)
        return min(max(doubled, said or 0), self._settings.retry_cap_seconds) * random.uniform(0.8, 1.2)


def fields(context: Context) -> dict[str, Any]:
    """The fields of a command that say on whose behalf it is."""
    return {
        "tenant_id": context.tenant_id,
        "correlation_id": context.correlation_id,
        "actor": context.actor,
    }
