"""HTTP/1.1 as cheaply as can be, since the load shares the machine with what it measures.

Requests are byte strings with at most two holes, made before the clock starts; which comes next is drawn in advance.
A reply is read just far enough to know its status.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from bench.workloads import Step, Workload

DRAWN = 1 << 14
"""So many picks are drawn in advance, and then used over and over."""
LOST = 0
"""The status of a request whose connection was lost, or that was never answered."""

_ID = b'"id":"'
_ID_LENGTH = 36


class Requests:
    """The requests of a workload, ready to be filled in."""

    def __init__(self, workload: Workload, host: str, *, run: str, seed: int = 0) -> None:
        """`run` makes the idempotency keys of this load differ from those of any other."""
        cycles = [tuple(_template(step, pick, host, run) for step in workload.steps) for pick in workload.picks.values]
        exponent = workload.picks.exponent
        weights = [1 / (rank + 1) ** exponent for rank in range(len(cycles))]
        self._drawn = random.Random(seed).choices(cycles, weights, k=DRAWN)
        self._fill = [_filler(step) for step in workload.steps]
        self._last = 0

    def next_cycle(self) -> int:
        """The number of a new cycle."""
        self._last += 1
        return self._last

    def of(self, cycle: int, step: int, id: bytes = b"") -> bytes:
        """The bytes of one step of a cycle; `id` is what the reply before named."""
        return self._fill[step](self._drawn[cycle % DRAWN][step], cycle, id)


def _template(step: Step, pick: str, host: str, run: str) -> bytes:
    """The request with `%b` for an id and `%d` for the number of the key, in this order."""

    def filled(text: str) -> str:
        return text.replace("%", "%%").replace("{pick}", pick)

    body = filled(step.body)
    length = len(body.replace("%%", "%").encode())
    lines = [f"{step.method} {filled(step.path).replace('{id}', '%b')} HTTP/1.1", f"host: {host}"]
    if body:
        lines.append("content-type: application/json")
    if step.keyed:
        lines.append(f"idempotency-key: {run}-%d")
    if step.method != "GET":
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def _filler(step: Step) -> Callable[[bytes, int, bytes], bytes]:
    follows = "{id}" in step.path
    if follows and step.keyed:
        return lambda template, cycle, named: template % (named, cycle)
    if follows:
        return lambda template, _, named: template % named
    if step.keyed:
        return lambda template, cycle, _: template % cycle
    return lambda template, _, __: template % ()


def id_in(reply: bytes) -> bytes:
    """The first `id` of a reply's JSON."""
    at = reply.find(_ID) + len(_ID)
    return reply[at : at + _ID_LENGTH]


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request under way at most. Subclasses say what to do with a reply."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        head = data.find(b"\r\n\r\n")
        if head < 0 or len(data) < head + 4 + _length(data, head):
            self._rest = data
            return
        self._rest = b""
        self.replied(int(data[9:12]), data)

    def replied(self, status: int, reply: bytes) -> None:
        """A whole reply has come; it may be followed by the next request."""
        raise NotImplementedError


def _length(data: bytes, head: int) -> int:
    at = data.find(b"content-length: ", 0, head)
    if at < 0:
        headers = data[:head].lower()
        if b"transfer-encoding" in headers:
            raise ValueError("A reply in chunks: whatever is measured must send a Content-Length.")
        at = headers.find(b"content-length: ")
        if at < 0:
            return 0
    return int(data[at + 16 : data.find(b"\r\n", at)])


def run_in_uvloop(work: Any) -> Any:
    """Run a coroutine on the loop that loads are made for, and give back what it returns."""
    return uvloop.run(work)


def percentile(ordered: Sequence[float], share: float) -> float:
    """A percentile of ascending values; 0.0 where there are none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
