"""A worker process: sweeps on a timer of its own, and arq beside them for wake-ups.

PostgreSQL holds the schedule. arq only wakes us early, so it runs beside the sweeps and is started again whenever
Redis goes away; the sweeps never notice.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

import structlog
from arq import create_pool
from arq.worker import Worker, func

from tcc.service import Service
from tcc.sweeps import Sweeper
from tcc.wakeups import QUEUE, decode_job, encode_job, redis_settings
from workers.jobs import drive_transaction

log = structlog.get_logger(__name__)

PURGE_SECONDS: Final = 60.0
PURGE_SIZE: Final = 10_000
ARQ_AGAIN_SECONDS: Final = 2.0
ACTOR: Final = "worker"


class WorkerProcess:
    """Everything that one worker does until it is told to stop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._sweeper = Sweeper(service, ACTOR)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then finish what is under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        size = self._settings.sweep_size
        interval = self._settings.sweep_interval_seconds
        log.info("worker_started", sweep_interval_seconds=interval, databases=self._names())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(interval, lambda: self._sweeper.reservations(size), size))
            group.create_task(self._every(interval, lambda: self._sweeper.transactions(size), size))
            group.create_task(self._every(PURGE_SECONDS, lambda: self._sweeper.purge(PURGE_SIZE), PURGE_SIZE))
            group.create_task(self._every(self._settings.reconcile_interval_seconds, self._reconcile, 1 << 30))
            group.create_task(self._wakeups())
        await self._service.close()
        log.info("worker_stopped")

    def _names(self) -> list[str]:
        return [batcher.database.name for batcher, _ in self._service.stores.distinct()]

    async def _every(self, seconds: float, sweep: Callable[[], Awaitable[int]], full: int) -> None:
        """Sweep again and again; at once where there was as much to do as one sweep takes."""
        while not self._stop.is_set():
            try:
                done = await sweep()
            except Exception as error:  # a database away, most likely: there is always a next time
                log.warning("sweep_failed", error=str(error)[:300], kind=type(error).__name__)
                done = 0
            if done < full:
                await self._pause(seconds * random.uniform(0.9, 1.1))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _reconcile(self) -> int:
        since = timedelta(seconds=2 * self._settings.reconcile_interval_seconds)
        return len(await self._sweeper.reconcile(tenant_id="default", since=since))

    async def _wakeups(self) -> None:
        """Run arq for as long as Redis is there, and again when it comes back."""
        lost = False
        while not self._stop.is_set():
            try:
                await self._listen()
            except Exception as error:  # Redis is away, or went away: sweeps go on without
                if not lost:
                    log.warning("wakeups_lost", error=str(error)[:200])
                lost = True
                await self._pause(ARQ_AGAIN_SECONDS)
            else:
                lost = False

    async def _listen(self) -> None:
        pool = await create_pool(
            redis_settings(self._settings.redis_url),
            job_serializer=encode_job,
            job_deserializer=decode_job,
            default_queue_name=QUEUE,
        )
        worker: Any = Worker(
            functions=[func(drive_transaction, keep_result=0, max_tries=1, timeout=60)],
            redis_pool=pool,
            queue_name=QUEUE,
            ctx={"sweeper": self._sweeper},
            handle_signals=False,
            poll_delay=0.2,
            max_jobs=32,
            job_serializer=encode_job,
            job_deserializer=decode_job,
            log_results=False,
        )
        listening = asyncio.create_task(worker.async_run())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
        finally:
            stopping.cancel()
            listening.cancel()
            await asyncio.gather(listening, stopping, return_exceptions=True)
            await worker.close()
