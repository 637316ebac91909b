"""A worker process: sweeps on a timer of its own, and arq beside them for wake-ups.

PostgreSQL holds the schedule. arq only wakes us early, so it runs beside the sweeps and is started again whenever
Redis goes away; the sweeps never notice.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final, cast

import structlog
from arq import create_pool
from arq.worker import Worker, func
from prometheus_client import start_http_server

from tcc.service import Service
from tcc.sweeps import CONCURRENCY, Sweeper
from tcc.wakeups import QUEUE, decode_job, encode_job, redis_settings
from workers.jobs import drive_transaction

log = structlog.get_logger(__name__)

PURGE_SECONDS: Final = 60.0
PURGE_SIZE: Final = 10_000
ARQ_AGAIN_SECONDS: Final = 1.0
FINISH_SECONDS: Final = 10.0
"""How long, once told to stop, to go on with what is under way. What is cut off then is due again after its lease."""
SIDE_BY_SIDE: Final = 4
"""How many sweeps that may have to wait for somebody outside go on at once: a silent gateway must not stop the rest."""
ACTOR: Final = "worker"


class WorkerProcess:
    """Everything that one worker does until it is told to stop."""

    def __init__(
        self, service: Service, *, finish_seconds: float = FINISH_SECONDS, metrics_port: int | None = None
    ) -> None:
        """`metrics_port`: where Prometheus finds what this process counts, if anywhere."""
        self._metrics_port = metrics_port
        self._service = service
        self._settings = service.settings
        self._sweeper = Sweeper(service, ACTOR)
        self._finish_seconds = finish_seconds
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Take up nothing new; `work` returns when what is under way is finished."""
        self._stop.set()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if self._metrics_port is not None:
            start_http_server(self._metrics_port, registry=self._service.metrics.registry)
        await self.work()

    async def work(self) -> None:
        """Work until `stop`, then finish what is under way, in bounded time."""
        size = self._settings.sweep_size
        interval = self._settings.sweep_interval_seconds
        local = self._resources(external=False)
        log.info("worker_started", sweep_interval_seconds=interval, databases=self._names())
        duties = [
            asyncio.create_task(duty)
            for duty in (
                *(self._every(interval, partial(self._sweeper.reservations_of, name, size), size) for name in local),
                self._every(interval, lambda: self._sweeper.transactions(CONCURRENCY, overdue=True), CONCURRENCY),
                *(self._every(interval, sweep, CONCURRENCY) for sweep in self._asking_sweeps() * SIDE_BY_SIDE),
                self._every(PURGE_SECONDS, lambda: self._sweeper.purge(PURGE_SIZE), PURGE_SIZE),
                self._every(self._settings.reconcile_interval_seconds, self._reconcile, None),
                self._wakeups(),
            )
        ]
        told = asyncio.create_task(self._stop.wait())
        try:
            # A duty ends before it is told to only by a mistake of ours: then the process must end, and say so.
            await asyncio.wait({told, *duties}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            _, late = await asyncio.wait(duties, timeout=self._finish_seconds)
            for duty in late:
                duty.cancel()
            ended = await asyncio.gather(*duties, told, return_exceptions=True)
        if mistakes := [error for error in ended if isinstance(error, Exception)]:
            raise mistakes[0]
        log.info("worker_stopped", cut_off=len(late))

    def _asking_sweeps(self) -> list[Callable[[], Awaitable[int]]]:
        """The sweeps that may have to wait for somebody outside."""
        return [
            *(partial(self._sweeper.reservations_of, name, CONCURRENCY) for name in self._resources(external=True)),
            lambda: self._sweeper.transactions(CONCURRENCY),
        ]

    def _resources(self, *, external: bool) -> list[str]:
        resources = self._service.stores.resources.values()
        return [resource.name for resource in resources if resource.external is external]

    def _names(self) -> list[str]:
        return [batcher.database.name for batcher, _ in self._service.stores.distinct()]

    async def _every(self, seconds: float, sweep: Callable[[], Awaitable[int]], full: int | None) -> None:
        """Sweep again and again; at once where there was as much to do as one sweep takes."""
        while not self._stop.is_set():
            try:
                done = await sweep()
            except Exception as error:  # noqa: BLE001 - a database away, most likely: there is always a next time
                log.warning("sweep_failed", error=str(error)[:300], kind=type(error).__name__)
                done = 0
            if full is None or done < full:
                await self._pause(seconds * random.uniform(0.9, 1.1))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _reconcile(self) -> int:
        since = timedelta(seconds=2 * self._settings.reconcile_interval_seconds)
        return len(await self._sweeper.reconcile(tenant_id="default", since=since))

    async def _wakeups(self) -> None:
        """Listen for as long as Redis is there, and again when it comes back."""
        lost = False

        def listening() -> None:
            nonlocal lost
            if lost:
                log.info("wakeups_resumed")
            lost = False

        while not self._stop.is_set():
            try:
                await self._listen(listening)
            except Exception as error:  # noqa: BLE001 - Redis is away, or went away: sweeps go on without
                if not lost:
                    log.warning("wakeups_lost", error=str(error)[:200])
                lost = True
                await self._pause(ARQ_AGAIN_SECONDS)

    async def _listen(self, listening: Callable[[], None]) -> None:
        """Run arq until we are to stop, then let its jobs finish. Raises whatever Redis makes arq raise."""
        pool = await create_pool(
            redis_settings(self._settings.redis_url),
            job_serializer=encode_job,
            job_deserializer=decode_job,
            default_queue_name=QUEUE,
        )
        listening()
        worker: Any = Worker(
            functions=[func(cast(Any, drive_transaction), keep_result=0, max_tries=1, timeout=60)],
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
        polling = asyncio.create_task(worker.async_run())
        told = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({polling, told}, return_when=asyncio.FIRST_COMPLETED)
            worker.allow_pick_jobs = False
            if worker.tasks:  # also those that Redis has left: what they do is done in PostgreSQL
                await asyncio.wait(list(worker.tasks.values()))
        finally:
            told.cancel()
            polling.cancel()
            for job in worker.tasks.values():
                job.cancel()
            await asyncio.gather(told, *worker.tasks.values(), return_exceptions=True)
            with suppress(asyncio.CancelledError):
                await _closed(pool, polling)


async def _closed(pool: Any, polling: asyncio.Task[None]) -> None:
    """Let go of Redis, then raise what ended the polling, if anything did.

    Not by arq's own `Worker.close`, which talks to Redis: that may be what went away.
    """
    try:
        await polling
    finally:
        await pool.aclose(close_connection_pool=True)
