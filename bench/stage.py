"""What is measured: servers as processes of their own, on databases of their own, ended when the stage is left."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import msgspec
import psutil

from bench.workloads import SKUS, STOCK, sku
from tcc.dev.child import launcher
from tcc.dev.patience import wait_until
from tcc.dev.programs import LOOPBACK, free_port
from tcc.dev.servers import PostgresServer

ROOT = Path(__file__).parent.parent
INSTANT = "instant:"
_TEMPLATE = "bench_template"
_AT_ONCE = 8
_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Server(msgspec.Struct, frozen=True):
    """A process that listens on a port of 127.0.0.1."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


class Stage:
    """Starts what is measured, next to one PostgreSQL."""

    def __init__(self, postgres: PostgresServer, folder: Path) -> None:
        """What the processes say when something is wrong goes to files in `folder`."""
        self.postgres = postgres
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """End every process."""
        ending, self._processes = self._processes, []
        for process in ending:
            process.terminate()
        until = time.monotonic() + _STOP_SECONDS
        for process in ending:
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def drop(self, *databases: str) -> None:
        """Have databases of this stage take no more room."""
        for name in databases:
            self.query("postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def empty_database(self, name: str) -> str:
        """The URL of a new database."""
        self.drop(name)
        self.postgres.create_database(name)
        return self.postgres.url(name)

    def database(self, name: str) -> str:
        """The URL of a new database of ours, with the schema, and full shelves."""
        if not self.query("postgres", "SELECT FROM pg_database WHERE datname = $1", _TEMPLATE):
            self._make_template()
        self.drop(name)
        self.query("postgres", f'CREATE DATABASE "{name}" TEMPLATE "{_TEMPLATE}"')
        return self.postgres.url(name)

    def _make_template(self) -> None:
        """What every database of ours is a copy of."""
        with Stage(self.postgres, self._folder) as making:
            url = making.empty_database(_TEMPLATE)
            environment = self.environment(url)
            subprocess.run([_program("tcc"), "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
            _fill_shelves(making.api(url))

    def query(self, database: str, sql: str, *arguments: Any) -> list[Any]:
        """The rows of a query."""
        return list(run(_fetch(asyncpg_url(self.postgres.url(database)), sql, arguments)))

    def environment(self, url: str, gateway: str = INSTANT) -> dict[str, str]:
        """Of the API and of workers: as in production, with logs as JSON."""
        return {
            **os.environ,
            "TCC_DATABASE_URL": url,
            "TCC_GATEWAY_URL": gateway,
            "TCC_LOG_FORMAT": "json",
            "TCC_DRAIN_SECONDS": "0",
        }

    def api(self, url: str, gateway: str = INSTANT, **variables: str) -> Server:
        """An API process, with everything on."""
        environment = self.environment(url, gateway) | variables
        return self.serve([_program("tcc"), "serve", "--port"], "/readyz", environment)

    def worker(self, url: str) -> Server:
        """A worker that has begun its work; its metrics are at the port."""
        return self.serve([_program("tcc-worker"), "run", "--metrics-port"], "/metrics", self.environment(url))

    def noop(self) -> Server:
        """The endpoint that does nothing."""
        return self.serve([sys.executable, "-m", "bench.noop"], "/noop")

    def peer(self, module: str, url: str, *options: str) -> Server:
        """A service of `bench.peers`."""
        command = [sys.executable, "-m", f"bench.peers.{module}", "--skus", str(SKUS), *options, "--port"]
        return self.serve(command, "/healthz", {**os.environ, "TCC_DATABASE_URL": url})

    def sandbox(self) -> Server:
        """The sandbox gateway, with an empty ledger."""
        data = self._folder / f"sandbox-{free_port()}"
        return self.serve([_program("tcc"), "sandbox", "--data", data, "--port"], "/ledger")

    def serve(self, command: Sequence[str | Path], ready: str, environment: Mapping[str, str] | None = None) -> Server:
        """Start a server on a free port, which is its last argument; return once it answers at `ready`."""
        port = free_port()
        log = self._folder / f"{port}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                launcher([*command, str(port)], death_signal=signal.SIGKILL),
                env=os.environ if environment is None else environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self._processes.append(process)
        server = Server(port, process.pid)
        wait_until(lambda: process.poll() is not None or _answers(server.url + ready), within=_READY_SECONDS)
        if process.poll() is not None or not _answers(server.url + ready):
            said = log.read_text(errors="replace").strip() or "nothing"
            raise RuntimeError(f"{' '.join(map(str, command))} did not start. It said: {said[-2000:]}")
        return server


def asyncpg_url(url: str) -> str:
    """The same, as the driver takes it."""
    return url.replace("+asyncpg", "")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end."""
    return asyncio.run(work)


async def _fetch(url: str, sql: str, arguments: Sequence[Any]) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


def _fill_shelves(server: Server) -> None:
    """Put stock of every unit on the shelf, enough for any run."""
    body = json.dumps({"on_hand": STOCK})

    def fill(first: int) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=30)
        for number in range(first, SKUS, _AT_ONCE):
            connection.request("PUT", f"/v1/inventory/items/{sku(number)}", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"stock was not taken: {answer.status}")
        connection.close()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fill, range(_AT_ONCE)))


def get(url: str) -> Any:
    """The JSON at a URL."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def post(url: str, body: Any = None, key: str | None = None) -> Any:
    """The JSON that a POST is answered with. Raises where that is no success."""
    headers = {"idempotency-key": key} if key else {}
    if body is not None:
        headers["content-type"] = "application/json"
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def allow_many_connections() -> None:
    """Let this process, and those it starts, have as many files open as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that processes and their children have used; of children that have ended as well, which is in their
    parent's account, so that the sum never falls."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        own = process.cpu_times()
        total += own.user + own.system + own.children_user + own.children_system
        for child in process.children(recursive=True):
            try:
                spent = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += spent.user + spent.system
    return total


def memory_megabytes(server: Server) -> float:
    """The resident memory of a server's process."""
    return psutil.Process(server.pid).memory_info().rss / 1e6


def _program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 405
    except OSError:
        return False
