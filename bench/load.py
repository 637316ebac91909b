"""Closed-loop load over HTTP/1.1: so many clients, each with one request under way, for so many seconds.

Deliberately bare, since it shares the machine with what it measures: kept-alive connections, requests built from a
template, replies read just far enough to know their status. Runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop


class Load(msgspec.Struct, frozen=True):
    """What to send. In `body`, `{sku}` becomes one of `skus` stock-keeping units, at random."""

    path: str
    body: str
    skus: int = 1
    clients: int = 64
    seconds: float = 3.0


class Measured(msgspec.Struct, frozen=True):
    """Replies by status, requests per second of the good ones, and their latencies in milliseconds."""

    statuses: dict[int, int]
    per_second: float
    p50_ms: float
    p99_ms: float


class _Connection(asyncio.Protocol):
    """One client: sends the next request as soon as the last is answered."""

    def __init__(self, request: Callable[[], bytes], until: float, done: Callable[[], None]) -> None:
        self._request = request
        self._until = until
        self._done = done
        self._transport: Any = None
        self._buffer = b""
        self._started = 0.0
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._started = time.perf_counter()
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.find(b"content-length: ", 0, head)
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        status = int(self._buffer[9:12])
        self._buffer = b""
        now = time.perf_counter()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies.append(now - self._started)
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()


async def _drive(host: str, port: int, load: Load) -> Measured:
    numbers = itertools.count()
    run = f"{os.getpid()}-{time.time_ns()}"
    left = load.clients
    finished = asyncio.Event()

    def done() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            finished.set()

    def request() -> bytes:
        body = load.body.replace("{sku}", f"SKU-{random.randrange(load.skus)}")
        return (
            f"POST {load.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"idempotency-key: {run}-{next(numbers)}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    connections: list[_Connection] = []
    for _ in range(load.clients):
        _, connection = await loop.create_connection(
            lambda: _Connection(request, started + load.seconds, done), host, port
        )
        connections.append(connection)
    await finished.wait()
    elapsed = time.perf_counter() - started
    statuses: dict[int, int] = {}
    for connection in connections:
        for status, count in connection.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    latencies = sorted(latency for connection in connections for latency in connection.latencies)
    good = sum(count for status, count in statuses.items() if status < 300)
    return Measured(
        statuses,
        good / elapsed,
        latencies[len(latencies) // 2] * 1000,
        latencies[int(len(latencies) * 0.99)] * 1000,
    )


def _child(host: str, port: int, load: Load, pipe: Any) -> None:
    pipe.send(uvloop.run(_drive(host, port, load)))


def measure(host: str, port: int, load: Load) -> Measured:
    """Run a load in a process of its own, and wait for what it measured."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(host, port, load, theirs))
    process.start()
    if not ours.poll(load.seconds + 30):
        process.kill()
        raise TimeoutError("the load did not end")
    measured: Measured = ours.recv()
    process.join()
    return measured
