"""Stopping the API: what a balancer is told, what is served meanwhile, and that replacing processes loses nothing."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import pytest
import uvicorn

from tcc.dev.child import Child
from tcc.dev.programs import LOOPBACK, free_port
from tcc.http.app import build_app
from tcc.http.draining import ENDING, Draining
from tcc.service import Service
from tests.client import Answer, Api
from tests.http.samples import SKU
from tests.recovery.scenes import eventually
from tests.workers.processes import surroundings

CLIENTS = 4
PAUSE_SECONDS = 0.05
"""Between a client's requests: a steady load, not all that there could be."""
PROBE_SECONDS = 0.3
"""Between a balancer's probes of one replica: it hears late."""
LONG = "600"
"""A drain that no test waits for."""


class Replica:
    """One `tcc serve` on a port that stays the same, and what a balancer knows of it."""

    def __init__(self, environment: Mapping[str, str], log: Path, processes: int = 1) -> None:
        self.url = f"http://{LOOPBACK}:{(port := free_port())}"
        self.ready = False
        self.asked = 0
        """Requests that clients wait for."""
        self.held = 0
        tcc = str(Path(sys.executable).with_name("tcc"))
        self._command = [tcc, "serve", f"--port={port}", f"--processes={processes}"]
        self._environment = surroundings(environment)
        self._log = log
        self.start()

    def start(self) -> None:
        self.process = Child("api", self._command, environment=self._environment, log=self._log)

    async def ended(self) -> bool:
        return await asyncio.to_thread(self.process.wait, 30)

    def said(self) -> str:
        return self._log.read_text()

    async def probe(self, session: aiohttp.ClientSession) -> int:
        """The status of /readyz, 0 where nobody answers; a balancer goes by it."""
        status = 0
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{self.url}/readyz", timeout=aiohttp.ClientTimeout(5)) as reply:
                status = reply.status
        self.ready = status == 200
        return status


StartReplica = Callable[..., Replica]


@pytest.fixture
def start_replica(environment: dict[str, str], data: Path) -> Iterator[StartReplica]:
    """Start API processes of the test's own; whatever still runs at its end is killed."""
    started: list[Replica] = []

    def start(*, processes: int = 1, **changed: str) -> Replica:
        given = environment | {"TCC_LOG_LEVEL": "info", "PYTHONUNBUFFERED": "1"} | changed
        started.append(Replica(given, data / f"{len(started)}.log", processes))
        return started[-1]

    yield start
    for replica in started:
        replica.process.kill()


def is_clean(answer: Answer) -> bool:
    """Whether a reply says plainly that the same request should be sent again."""
    return (
        answer.status == 503
        and answer.headers["content-type"] == "application/problem+json"
        and int(answer.headers["retry-after"]) > 0
        and answer.json["retryable"]
    )


class Clients:
    """Clients that hold stock at whichever replica a balancer would choose, over connections that they keep."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.acknowledged: list[str] = []
        self.failures: list[str] = []
        self._replicas = replicas
        self._stopped = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for replica in self._replicas:
                group.create_task(self._watch(replica))
            for number in range(CLIENTS):
                group.create_task(self._hold(number))

    def stop(self) -> None:
        self._stopped = True

    async def _watch(self, replica: Replica) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._stopped:
                await replica.probe(session)
                await asyncio.sleep(PROBE_SECONDS)

    async def _hold(self, turn: int) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._stopped:
                turn += 1
                chosen = [replica for replica in self._replicas if replica.ready]
                if not chosen:
                    self.failures.append("nobody is ready")
                    return
                replica = chosen[turn % len(chosen)]
                replica.asked += 1
                try:
                    answer = await Api(session, replica.url).hold(SKU)
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.failures.append(repr(error))
                else:
                    self._take(replica, answer)
                finally:
                    replica.asked -= 1
                await asyncio.sleep(PAUSE_SECONDS)

    def _take(self, replica: Replica, answer: Answer) -> None:
        if answer.status == 201:
            replica.held += 1
            self.acknowledged.append(answer.json["id"])
        elif not is_clean(answer):
            self.failures.append(f"{answer.status} {answer.body.decode()}")


async def test_replacing_processes_under_load_fails_no_request_and_loses_none(start_replica: StartReplica) -> None:
    replicas = [start_replica(TCC_DRAIN_SECONDS=LONG) for _ in range(2)]
    async with aiohttp.ClientSession() as session:
        for replica in replicas:
            await eventually(partial(_is_ready, replica, session), within=30)
        await Api(session, replicas[0].url).stock(SKU, 1_000_000)
    clients = Clients(replicas)
    running = asyncio.create_task(clients.run())
    for replica in replicas:
        await eventually(partial(_has_held, replica))
        replica.process.send(signal.SIGTERM)
        await eventually(partial(_is_left_alone, replica), within=30)
        replica.process.send(signal.SIGTERM)  # its time is over, without a race against a clock
        assert await replica.ended()
        replica.held = 0
        replica.start()
        await eventually(partial(_has_held, replica), within=30)
    clients.stop()
    await running

    assert clients.failures == []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16)) as session:
        api = Api(session, replicas[0].url)
        shown = await asyncio.gather(*(api.get(f"/v1/inventory/reservations/{id}") for id in clients.acknowledged))
    assert {answer.status for answer in shown} == {200}
    assert {answer.json["state"] for answer in shown} == {"tried"}
    assert not any("Traceback" in replica.said() for replica in replicas)


async def _is_ready(replica: Replica, session: aiohttp.ClientSession) -> bool:
    return await replica.probe(session) == 200


async def _is_left_alone(replica: Replica) -> bool:
    """Whether the balancer has heard that it will stop, and nobody waits for it."""
    return not replica.ready and not replica.asked


async def _has_held(replica: Replica) -> bool:
    return replica.held > 0


@pytest.mark.parametrize("processes", [1, 2])
async def test_whoever_is_told_to_stop_says_so_and_serves_on_until_told_again(
    start_replica: StartReplica, processes: int
) -> None:
    replica = start_replica(TCC_DRAIN_SECONDS=LONG, processes=processes)

    async def all_say(word: str) -> bool:
        return replica.said().count(word) == processes

    async with aiohttp.ClientSession() as session:
        api = Api(session, replica.url)
        await eventually(partial(all_say, "api_started"), within=30)
        await eventually(partial(_is_ready, replica, session))
        stocked = await api.stock(SKU, 5)
        assert "connection" not in stocked.headers

        replica.process.send(signal.SIGTERM)
        await eventually(partial(all_say, "draining"))
        for _ in range(4):  # over connections of their own, and so to any of the processes
            ready = await api.get("/readyz")
            assert (ready.status, ready.json) == (503, {"ready": False, "databases": {}, "draining": True})
            held = await api.hold(SKU)
            shown = await api.get(f"/v1/inventory/reservations/{held.json['id']}")
            assert (held.status, shown.status) == (201, 200)
            assert [answer.headers["connection"] for answer in (ready, held, shown)] == ["close"] * 3
        assert (await api.get("/healthz")).status == 200

        replica.process.send(signal.SIGTERM)
        assert await replica.ended()
    assert "Traceback" not in replica.said()


async def test_a_request_that_outlasts_all_patience_is_told_to_ask_again(service: Service) -> None:
    draining = Draining(0)
    draining.begun = True
    app = build_app(service, "test", service.settings.max_body_bytes, draining=draining, owns_service=False)
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="error", access_log=False, ws="none", timeout_graceful_shutdown=0)
    )

    async def started() -> bool:
        return server.started

    async def asked() -> bool:
        return bool(server.server_state.tasks)

    serving = asyncio.create_task(server.serve())
    await eventually(started)
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(b"POST /v1/inventory/reservations HTTP/1.1\r\nHost: tcc\r\nContent-Length: 100\r\n\r\n{")
    await eventually(asked)
    server.should_exit = True
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await serving

    status, *lines = head.decode().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines)
    answer = Answer(int(status.split()[1]), headers, body)
    assert is_clean(answer)
    assert answer.code == "outcome_unknown"
    assert msgspec.json.decode(body)["correlation_id"] == headers["x-correlation-id"]


async def test_the_server_hears_of_a_signal_when_the_time_is_over() -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in ENDING}
    draining = Draining(0.1)
    try:
        draining.watch()
        signal.raise_signal(signal.SIGTERM)

        async def begun() -> bool:
            return draining.begun

        async def over() -> bool:
            return bool(heard)

        await eventually(begun)
        await eventually(over)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM, signal.SIGINT], "those that follow are the server's own"
