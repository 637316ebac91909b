"""Stopping without losing a request: the process first says that it will go, and goes a little later.

A server that stops listening as soon as it is told leaves whoever sends it requests to find out by refused and reset
connections. So `/readyz` says 503 at once, and every reply asks for its connection to be closed, while requests are
served as ever; balancers and clients have gone elsewhere by the time that it really stops.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from types import FrameType
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


class Draining:
    """Whether the process is about to stop, and how long it goes on until then."""

    def __init__(self, seconds: float) -> None:
        self.begun = False
        self._seconds = seconds
        self._handlers: dict[signal.Signals, Any] = {}
        self._over: asyncio.TimerHandle | None = None
        # One of several processes is told twice by somebody who tells all of them (a terminal, systemd): by them, and
        # by the process above it, which says SIGINT only if it is told again (see `serving`).
        several = multiprocessing.parent_process() is not None
        self._hurrying = (signal.SIGINT,) if several else ENDING

    def watch(self) -> None:
        """Stand before the server's own handlers of the signals that end it, which hear of them once the time is over.

        In the main thread, in the server's event loop, and after it has put its handlers in place.
        """
        loop = asyncio.get_running_loop()

        def told(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._told, signal.Signals(number), loop)

        for number in ENDING:
            self._handlers[number] = signal.signal(number, told)

    def _told(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        if self._over is None:
            self.begun = True
            log.info("draining", seconds=self._seconds)
            self._over = loop.call_later(self._seconds, self._end, number)
        elif number in self._hurrying:
            self._over.cancel()
            self._end(number)

    def _end(self, number: signal.Signals) -> None:
        """Leave the rest to the server: this signal, and those that follow."""
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        signal.raise_signal(number)
