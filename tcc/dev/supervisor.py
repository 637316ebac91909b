"""The whole service as child processes: servers below, then the sandbox gateway, the API and a worker.

`tcc dev` and `tcc demo` run one `Stack`; tests may run several at once, each on its own ports and directory,
kill a process of one by name, and start it again.
"""

import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, assert_never

from tcc.dev.child import Child
from tcc.dev.patience import wait_until
from tcc.dev.programs import LOOPBACK, ServerError, free_port, port_is_free
from tcc.dev.servers import PostgresServer, ValkeyServer

Part = Literal["sandbox", "api", "worker"]

START_ORDER: tuple[Part, ...] = ("sandbox", "api", "worker")
STOP_ORDER: tuple[Part, ...] = ("api", "worker", "sandbox")

_MIGRATE_SECONDS = 120.0
_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_PROBE_SECONDS = 2.0


class Stack:
    """One running copy of the service, all its data under `data`.

    PostgreSQL and Valkey are embedded unless `environment` names others (TCC_DATABASE_URL, TCC_REDIS_URL).
    Ports are chosen once, so that URLs stay good when a part is killed and started again.
    """

    def __init__(
        self,
        data: Path,
        *,
        api_port: int | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str, str], None] | None = None,
        on_fall: Callable[[str], None] | None = None,
        programs: Path | None = None,
    ) -> None:
        """`environment` is ours when not given. `on_line(part, line)` gets what the parts print; without it
        that goes to files under `data/logs`. `on_fall(part)` is told of a part that ended though nobody
        stopped it. `programs` is the folder with `tcc` and `tcc-worker`, normally this interpreter's."""
        self.data = data.absolute()
        self.processes: dict[Part, Child] = {}
        self.api_port = api_port or free_port()
        self.sandbox_port = free_port()
        given = dict(os.environ if environment is None else environment)
        self.postgres = None if given.get("TCC_DATABASE_URL") else self._embed_postgres()
        self.valkey = None if given.get("TCC_REDIS_URL") else self._embed_valkey()
        self._on_line = on_line
        self._on_fall = on_fall
        self._dismissed: set[str] = set()
        self._programs = programs or Path(sys.executable).parent
        self.environment = {
            "TCC_LOG_FORMAT": "console",
            "TCC_DRAIN_SECONDS": "0",  # nobody else sends requests here
            "PYTHONUNBUFFERED": "1",
            **given,
            "TCC_GATEWAY_URL": self.sandbox_url,
        }
        if self.postgres is not None:
            self.environment["TCC_DATABASE_URL"] = self.postgres.url()
        if self.valkey is not None:
            self.environment["TCC_REDIS_URL"] = self.valkey.url

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def sandbox_url(self) -> str:
        return f"http://{LOOPBACK}:{self.sandbox_port}"

    @property
    def database_url(self) -> str:
        return self.environment["TCC_DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        return self.environment["TCC_REDIS_URL"]

    def start(self) -> None:
        """Start everything, from the ground up, and return once the API says that it is ready."""
        try:
            self.start_servers()
            self.migrate()
            for part in START_ORDER:
                if part == "worker":  # it begins its work at once, so what it speaks to must be there
                    self.wait_until_ready("sandbox")
                self.start_process(part)
            for part in START_ORDER:
                self.wait_until_ready(part)
        except BaseException:
            self.stop()
            raise

    def start_servers(self) -> None:
        """PostgreSQL with an empty database (or what it held before), and Valkey."""
        if self.postgres is not None:
            self._dismissed.discard("postgres")
            self.postgres.start()
            self.postgres.create_database()
        if self.valkey is not None:
            self._dismissed.discard("valkey")
            self.valkey.start()

    def migrate(self) -> None:
        """Bring the schema up to date."""
        migration = self._spawn("migrate", "tcc", "migrate")
        self._dismissed.add("migrate")
        if not migration.wait(_MIGRATE_SECONDS):
            migration.kill()
            raise ServerError(f"tcc migrate took longer than {_MIGRATE_SECONDS:.0f} s and was stopped")
        if migration.exit_code != 0:
            raise ServerError(f"tcc migrate failed (exit code {migration.exit_code}): {self._where('migrate')}")

    def start_process(self, part: Part) -> Child:
        """Start one part, or start it again; it may not be ready yet (`wait_until_ready`)."""
        running = self.processes.get(part)
        if running is not None and running.running:
            return running
        self._dismissed.discard(part)
        match part:
            case "sandbox":
                where = ("--port", str(self.sandbox_port), "--data", str(self.data / "sandbox"))
                process = self._spawn(part, "tcc", "sandbox", *where)
            case "api":
                process = self._spawn(part, "tcc", "serve", "--port", str(self.api_port))
            case "worker":
                process = self._spawn(part, "tcc-worker", "run")
            case _:
                assert_never(part)
        self.processes[part] = process
        return process

    def wait_until_ready(self, part: Part) -> None:
        """Return once `part` can be used; a worker can from its start."""
        process = self.processes[part]

        def ready() -> bool:
            return not process.running or self._is_ready(part)

        if not wait_until(ready, within=_READY_SECONDS, every=0.05):
            raise ServerError(f"{part} was not ready within {_READY_SECONDS:.0f} s: {self._where(part)}")
        if not process.running:
            raise ServerError(f"{part} ended while starting ({_ending(process)}): {self._where(part)}")

    def stop_process(self, part: Part) -> None:
        """Stop one part in order, as a deployment would."""
        self._dismissed.add(part)
        process = self.processes.pop(part, None)
        if process is not None:
            process.stop(signal.SIGTERM, within=_STOP_SECONDS)

    def kill_process(self, part: Part) -> None:
        """SIGKILL one part, as a crash would."""
        self._dismissed.add(part)
        process = self.processes.pop(part, None)
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Stop everything in bounded time: what accepts work first, what keeps it last."""
        for part in STOP_ORDER:
            self.stop_process(part)
        self._dismissed.update(("valkey", "postgres"))
        if self.valkey is not None:
            self.valkey.stop()
        if self.postgres is not None:
            self.postgres.stop()

    def explain_fall(self, part: str) -> str:
        """In one line, how a part that `on_fall` told of ended, and where it says why."""
        for name, process in self.processes.items():
            if name == part and process.wait(_STOP_SECONDS):
                return f"{part} ended unexpectedly ({_ending(process)}): {self._where(part)}"
        return f"{part} ended unexpectedly: see {self.data / part / 'server.log'}"

    def _is_ready(self, part: Part) -> bool:
        match part:
            case "sandbox":
                return not port_is_free(self.sandbox_port)
            case "api":
                return _answers_ok(f"{self.api_url}/readyz")
            case "worker":
                return True
            case _:
                assert_never(part)

    def _spawn(self, part: str, program: str, *arguments: str) -> Child:
        path = self._programs / program
        if not path.exists():
            raise ServerError(f"{path} is missing: run  pip install --no-deps --editable .")
        on_line = self._on_line
        self._log(part).parent.mkdir(parents=True, exist_ok=True)
        return Child(
            part,
            [path, *arguments],
            environment=self.environment,
            log=self._log(part),
            on_line=None if on_line is None else lambda line: on_line(part, line),
            on_exit=lambda: self._fell(part),
        )

    def _fell(self, part: str) -> None:
        if part not in self._dismissed and self._on_fall is not None:
            self._on_fall(part)

    def _log(self, part: str) -> Path:
        return self.data / "logs" / f"{part}.log"

    def _where(self, part: str) -> str:
        return "its lines above say why" if self._on_line is not None else f"see {self._log(part)}"

    def _embed_postgres(self) -> PostgresServer:
        return PostgresServer(self.data / "postgres", on_exit=lambda: self._fell("postgres"))

    def _embed_valkey(self) -> ValkeyServer:
        return ValkeyServer(self.data / "valkey", on_exit=lambda: self._fell("valkey"))


def _ending(process: Child) -> str:
    """How a process ended, in words."""
    code = process.exit_code
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _answers_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_SECONDS) as answer:  # noqa: S310 - http on loopback
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
