"""Waking workers up early. Nothing depends on it: whatever is lost here is found by the next sweep."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from arq.connections import ArqRedis, RedisSettings, create_pool

from tcc.settings import SettingsError

log = structlog.get_logger(__name__)

QUEUE: Final = "tcc:wakeups"
PENDING_LIMIT: Final = 1000
LATE_SECONDS: Final = 60
"""How late a wake-up may still be worth something; by then a sweep has long been there."""


def encode_job(job: dict[str, Any]) -> bytes:
    """Jobs are JSON: whoever can write to Redis must not be able to make us run code, as with pickle."""
    return msgspec.json.encode(job)


def decode_job(data: bytes) -> dict[str, Any]:
    """The inverse of `encode_job`."""
    decoded: dict[str, Any] = msgspec.json.decode(data)
    return decoded


def redis_settings(url: str) -> RedisSettings:
    """How to reach Valkey or Redis, without insisting. Raises `SettingsError` where the URL makes no sense."""
    try:
        settings = RedisSettings.from_dsn(url)
    except (RuntimeError, ValueError) as error:
        raise SettingsError("TCC_REDIS_URL can't be read: write it as redis://host:6379/0.") from error
    settings.conn_retries = 0
    settings.conn_timeout = 2
    return settings


class Wakeups:
    """Sends wake-ups in the background, and gives up on those that can't be sent."""

    def __init__(self, url: str) -> None:
        self._settings = redis_settings(url)
        self._pool: ArqRedis | None = None
        self._connecting = asyncio.Lock()
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
            pool = await self._connected()
            await pool.enqueue_job(job, *arguments, _defer_by=in_seconds, _expires=in_seconds + LATE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is: a sweep will do it
            log.debug("wakeup_lost", error=str(error)[:200])

    async def _connected(self) -> ArqRedis:
        async with self._connecting:
            if self._pool is None:
                self._pool = await create_pool(
                    self._settings,
                    job_serializer=encode_job,
                    job_deserializer=decode_job,
                    default_queue_name=QUEUE,
                )
            return self._pool

    async def close(self) -> None:
        """Forget what isn't sent."""
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        if self._pool is not None:
            await self._pool.aclose(close_connection_pool=True)
