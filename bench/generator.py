"""The process that loads run in: one for the whole run, so that none waits for an interpreter to start."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from bench import load, openloop
from bench.load import Load, Measured
from bench.openloop import OpenLoad, Sample
from bench.wire import run_in_uvloop

_STOP = "stop"
_END_SECONDS = 60.0
"""How much longer than it was meant to a load may take: the last requests may have to wait for their replies."""


class Generator:
    """Runs one load at a time."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    def closed(self, given: Load) -> Measured:
        """Run a closed loop to its end. Raises whatever went wrong there, and `TimeoutError`."""
        self._pipe.send(given)
        measured: Measured = self._receive(given.seconds + _END_SECONDS)
        return measured

    def open(self, given: OpenLoad) -> tuple[list[Sample], float]:
        """Run an open loop to its end (see `bench.openloop.drive`). Raises as `closed` does."""
        self.begin(given)
        return self._samples(sum(phase.seconds for phase in given.phases) + given.patience_seconds)

    def begin(self, given: OpenLoad) -> None:
        """Start an open loop; `end` must follow."""
        self._pipe.send(given)

    def end(self) -> tuple[list[Sample], float]:
        """Have the open loop that was begun send no more; what came of it. Raises as `closed` does."""
        self._pipe.send(_STOP)
        return self._samples(0)

    def _samples(self, within: float) -> tuple[list[Sample], float]:
        samples: tuple[list[Sample], float] = self._receive(within + _END_SECONDS)
        return samples

    def _receive(self, within: float) -> Any:
        if not self._pipe.poll(within):
            raise TimeoutError("the load did not end")
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result


def _work(pipe: Connection) -> None:
    """Run what comes through the pipe, until it is closed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()
    gc.disable()  # nothing here lives in cycles for long enough to matter, and a collection would be a pause
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        if given == _STOP:  # it came when the load had ended by itself
            continue
        try:
            result = run_in_uvloop(_run(given, pipe))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            result = error
        pipe.send(result)
        gc.collect()


async def _run(given: Load | OpenLoad, pipe: Connection) -> Any:
    if isinstance(given, Load):
        return await load.drive(given)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        pipe.recv()
        stop.set()

    loop.add_reader(pipe.fileno(), told)
    try:
        return await openloop.drive(given, stop)
    finally:
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # uvloop had it otherwise
