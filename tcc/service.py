"""The whole of one process: databases, batchers, outsides, coordinator. Opened and closed by a composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog

from tcc.asking import Asking
from tcc.batch import Batcher
from tcc.coordinator import Coordinator
from tcc.db import Database
from tcc.errors import Unavailable
from tcc.failpoints import DoomedBatcher, DoomedDatabase, DoomedExternal, Failpoints
from tcc.groups import Group
from tcc.idempotency import KeyRef, Reply
from tcc.metrics import Metrics
from tcc.reserver import Reserver
from tcc.resource import Resource
from tcc.settings import Settings, resource_database_url
from tcc.stores import Stores
from tcc.wakeups import Wakeups

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Service:
    """Everything that the API and the workers do, for them to call."""

    def __init__(self, settings: Settings, stores: Stores, metrics: Metrics, wakeups: Wakeups) -> None:
        self.settings = settings
        self._wakeups = wakeups
        self.stores = stores
        self.metrics = metrics
        asking = Asking(stores, settings, metrics)
        self.coordinator = Coordinator(stores, asking, settings, wakeups.transaction)
        self.reserver = Reserver(stores, asking, settings)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._batchers = [batcher for batcher, _ in stores.distinct()]

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work that goes on when its caller goes away, and that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.info("left_to_a_sweep", error=str(error)[:300], kind=type(error).__name__)

    async def answer(self, resource: str | None, key: KeyRef, reply: Reply) -> Reply:
        """Store a reply under a key unless it has one; the reply that the key has now.

        Where the database is away the reply is given all the same: what it tells of is done. Whoever asks again then is
        told how it stands.
        """
        batcher = self.stores.of(resource) if resource else self.stores.home
        try:
            result = await batcher.submit(Group(commands=[], answers=key, render=lambda _: reply))
        except Unavailable:
            return reply
        return result.reply or reply

    def crowded(self) -> bool:
        """Whether a database's queue is so long that requests for new work had better come back later."""
        return any(batcher.crowded() for batcher in self._batchers)

    async def close(self, *, patience_seconds: float = 20) -> None:
        """Let work in progress come to its end, finish what was accepted, and let go of everything."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_seconds)
        for task in list(self._tasks):
            task.cancel()
        await self._wakeups.close()
        await self.stores.close()


def open_service(
    settings: Settings,
    resources: Sequence[Resource],
    environment: Mapping[str, str],
    *,
    application: str,
) -> Service:
    """Build a service. Needs a running event loop; connects to nothing before it is used.

    Raises `SettingsError` where the environment makes no sense.
    """
    metrics = Metrics()
    failpoints = Failpoints.from_environment(environment)
    make_database: Callable[..., Database] = partial(DoomedDatabase, failpoints) if failpoints else Database
    make_elsewhere: Callable[..., Batcher] = partial(DoomedBatcher, failpoints) if failpoints else Batcher
    urls = {resource.name: resource_database_url(resource.name, settings, environment) for resource in resources}
    batchers = {
        url: (Batcher if url == settings.database_url else make_elsewhere)(
            make_database(url, application=application, pooler=settings.database_pooler),
            resources,
            [resource for resource in resources if urls[resource.name] == url],
            metrics,
            lease_seconds=settings.lease_seconds,
            batch=settings.batch_size,
            queue=settings.queue_size,
        )
        for url in dict.fromkeys([settings.database_url, *urls.values()])
    }
    externals = {resource.name: resource.connect(environment) for resource in resources if resource.connect}
    stores = Stores(
        batchers[settings.database_url],
        {name: batchers[url] for name, url in urls.items()},
        {
            name: DoomedExternal(failpoints, external) if failpoints else external
            for name, external in externals.items()
        },
        resources,
    )
    return Service(settings, stores, metrics, Wakeups(settings.redis_url))
