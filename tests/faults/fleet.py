"""The real thing, to be broken: two APIs, two workers, two PostgreSQL servers, Valkey and the sandbox gateway.

Inventory, orders and the transactions live in one database; payments have a server of their own, so that a whole
order crosses databases. Proxies stand before both, and before the gateway; whoever judges goes around them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tcc.dev.child import Child
from tcc.dev.programs import LOOPBACK, free_port, port_is_free
from tcc.dev.servers import PostgresServer, ValkeyServer
from tests.faults.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
APIS = ("api-1", "api-2")
WORKERS = ("worker-1", "worker-2")
SPARE_API, SPARE_WORKER = "api-spare", "worker-spare"
"""Not there by themselves: they are started to die."""
READY_SECONDS = 60.0

LEASE_SECONDS = 3.0
SETTINGS = {
    "TCC_LEASE_SECONDS": f"{LEASE_SECONDS}",
    "TCC_GRACE_SECONDS": "2",
    "TCC_RETRY_BASE_SECONDS": "0.1",
    "TCC_RETRY_CAP_SECONDS": "2",
    "TCC_DEFAULT_WAIT_SECONDS": "4",
    "TCC_SWEEP_INTERVAL_SECONDS": "0.3",
    "TCC_RECONCILE_INTERVAL_SECONDS": "5",
    "TCC_DRAIN_SECONDS": "1",
    "TCC_LOG_LEVEL": "warning",
    "TCC_LOG_FORMAT": "json",
    "PYTHONUNBUFFERED": "1",
}
"""As an operator in a hurry would set it, so that minutes show what days would."""

POSTGRES = {"max_connections": "100", "max_wal_size": "128MB", "min_wal_size": "32MB", "shared_buffers": "64MB"}
SANDBOX = ("--slow-seconds=1", "--short-validity-seconds=2.5", "--held-reply-seconds=1")


class CannotRun(Exception):
    """Why the fleet can't start, in one line."""


class Fleet:
    """Every process by its name. Whatever it keeps is under `data`; PostgreSQL for payments under `payments_data`."""

    def __init__(self, data: Path, *, payments_data: Path | None = None) -> None:
        self.data = data.absolute()
        self.home = PostgresServer(self.data / "home", settings=POSTGRES)
        self.payments = PostgresServer(payments_data or self.data / "payments", settings=POSTGRES)
        self.valkey = ValkeyServer(self.data / "valkey")
        self.sandbox_port = free_port()
        self.to_home = Proxy(self.home.port)
        self.to_payments = Proxy(self.payments.port)
        self.to_gateway = Proxy(self.sandbox_port)
        self.processes: dict[str, Child] = {}
        self.ports = {name: free_port() for name in (*APIS, SPARE_API)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TCC_")}
        self.environment = {
            **inherited,
            **SETTINGS,
            "TCC_DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{self.to_home.port}/tcc",
            "TCC_PAYMENTS_DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{self.to_payments.port}/tcc",
            "TCC_GATEWAY_URL": f"http://{LOOPBACK}:{self.to_gateway.port}",
            "TCC_REDIS_URL": self.valkey.url,
        }

    @property
    def sandbox_url(self) -> str:
        return f"http://{LOOPBACK}:{self.sandbox_port}"

    def api_url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"

    @property
    def direct(self) -> dict[str, str]:
        """The environment of a process that goes around the proxies."""
        return self.environment | {
            "TCC_DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{self.home.port}/tcc",
            "TCC_PAYMENTS_DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{self.payments.port}/tcc",
            "TCC_GATEWAY_URL": self.sandbox_url,
        }

    async def start(self) -> None:
        """Start everything, and return once both APIs are ready."""
        try:
            for proxy in (self.to_home, self.to_payments, self.to_gateway):
                await proxy.start()
            await asyncio.gather(
                asyncio.to_thread(self._start_postgres, self.home),
                asyncio.to_thread(self._start_postgres, self.payments),
                asyncio.to_thread(self.valkey.start),
            )
            await self._migrate()
            await self.start_process("sandbox")
            await asyncio.gather(*(self.start_process(name) for name in (*APIS, *WORKERS)))
        except BaseException:
            await self.stop()
            raise

    def _start_postgres(self, server: PostgresServer) -> None:
        server.start()
        server.create_database()

    async def _migrate(self) -> None:
        child = self._spawn("migrate", [_program("tcc"), "migrate"], {})
        if not await asyncio.to_thread(child.wait, READY_SECONDS) or child.exit_code != 0:
            raise CannotRun(f"tcc migrate failed: see {self.log('migrate')}")

    def log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    def _spawn(self, name: str, command: list[str | Path], extra: dict[str, str]) -> Child:
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        child = Child(name, command, environment=self.environment | extra, log=self.log(name))
        self.processes[name] = child
        return child

    async def start_process(self, name: str, **extra: str) -> Child:
        """Start a process, and return once it can be used; again, where it has ended."""
        if name == "sandbox":
            where = (f"--port={self.sandbox_port}", f"--data={self.data / 'sandbox'}")
            child = self._spawn(name, [sys.executable, "-m", "resources.payments.sandbox", *where, *SANDBOX], extra)
        elif name in self.ports:
            child = self._spawn(name, [_program("tcc"), "serve", "--port", str(self.ports[name])], extra)
        else:
            child = self._spawn(name, [_program("tcc-worker"), "run"], extra)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_SECONDS
        while child.running and not await asyncio.to_thread(self._is_up, name):
            if loop.time() > deadline:
                raise CannotRun(f"{name} didn't start within {READY_SECONDS:.0f} s: see {self.log(name)}")
            await asyncio.sleep(0.1)
        return child

    def _is_up(self, name: str) -> bool:
        if name == "sandbox":
            return not port_is_free(self.sandbox_port)
        return name not in self.ports or is_ready(self.api_url(name))

    async def kill(self, name: str) -> None:
        """SIGKILL a process."""
        await asyncio.to_thread(self.processes[name].kill)

    async def end(self, name: str) -> None:
        """SIGTERM a process, and wait until it has ended as a deployment would."""
        await asyncio.to_thread(self.processes[name].stop, signal.SIGTERM, within=30)

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send(number)

    async def ensure_running(self) -> None:
        """Start whatever has ended, servers first."""
        for server in (self.home, self.payments, self.valkey):
            if not server.running:
                await asyncio.to_thread(server.restart)
        fallen = [name for name in ("sandbox", *APIS, *WORKERS) if not self.processes[name].running]
        await asyncio.gather(*(self.start_process(name) for name in fallen))

    def run(self, *command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A command of ours to its end, around the proxies."""
        return subprocess.run(
            [_program(command[0]), *command[1:]],
            env=self.direct, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    async def stop(self) -> None:
        """End everything, in bounded time."""
        for proxy in (self.to_home, self.to_payments, self.to_gateway):
            await proxy.stop()
        for child in self.processes.values():
            await asyncio.to_thread(child.kill)
        for server in (self.valkey, self.home, self.payments):
            await asyncio.to_thread(server.stop)


def _program(name: str) -> Path:
    return Path(sys.executable).parent / name


def is_ready(url: str) -> bool:
    """What a load balancer asks."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
