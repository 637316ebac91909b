"""Waking workers up early. Nothing depends on it: whatever is lost here is found by the next sweep."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from arq.connections import ArqRedis, RedisSettings, create_pool

log = structlog.get_logger(__name__)

QUEUE: Final = "tcc:wakeups"
PENDING_LIMIT: Final = 1000


def encode_job(job: dict[str, Any]) -> bytes:
    """Jobs are JSON: whoever can write to Redis must not be able to make us run code, as with pickle."""
    return msgspec.json.encode(job)


def decode_job(data: bytes) -> dict[str, Any]:
    """The inverse of `encode_job`."""
    decoded: dict[str, Any] = msgspec.json.decode(data)
    return decoded


def redis_settings(url: str) -> RedisSettings:
    """How to reach Valkey or Redis, without insisting."""
    settings = RedisSettings.from_dsn(url)
    settings.conn_retries = 0
    settings.conn_timeout = 2
    return settings


class Wakeups:
    """Sends wake-ups in the background, and gives up on those that can't be sent."""

    def __init__(self, url: str) -> None:
        self._settings = redis_settings(url)
        self._pool: ArqRedis | None = None
        self._pending: set[asyncio.Task[None]] = set()

    def transaction(self, tenant_id: str, id: UUID, in_seconds: float) -> None:
        """Have a transaction driven at about that time."""
        self._send("drive_transaction", [tenant_id, str(id)], in_seconds)

    def _send(self, job: str, arguments: list[str], in_seconds: float) -> None:
        if len(self._pending) < PENDING_LIMIT:
            task = asyncio.create_task(self._enqueue(job, arguments, in_seconds))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _enqueue(self, job: str, arguments: list[str], in_seconds: float) -> None:
        try:
            if self._pool is None:
                self._pool = await create_pool(
                    self._settings,
                    job_serializer=encode_job,
                    job_deserializer=decode_job,
                    default_queue_name=QUEUE,
                )
            await self._pool.enqueue_job(job, *arguments, _defer_by=in_seconds, _expires=60)
        except Exception as error:  # noqa: BLE001 - whatever it is: a sweep will do it
            log.debug("wakeup_lost", error=str(error)[:200])

    async def close(self) -> None:
        """Forget what isn't sent."""
        for task in list(self._pending):
            task.cancel()
        if self._pool is not None:
            await self._pool.aclose(close_connection_pool=True)
