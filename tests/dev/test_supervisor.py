"""The supervisor, with small programs in the place of `tcc` and `tcc-worker`: it only starts and ends them.

The servers below are real. The service's own processes have their own tests; what counts here is order,
readiness, crashes and endings.
"""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

import tcc
from tcc.dev.programs import ServerError
from tcc.dev.supervisor import Stack

PROJECT = Path(tcc.__file__).parent.parent

TCC = """
    import sys
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Ok(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        do_PUT = do_GET

    print("running", *sys.argv[1:])
    if sys.argv[1] in ("serve", "sandbox"):
        HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ok).serve_forever()
"""
WORKER = """
    import os, threading
    print("working on", os.environ["TCC_DATABASE_URL"], os.environ["TCC_REDIS_URL"])
    threading.Event().wait()
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    _write_program(folder / "tcc", TCC)
    _write_program(folder / "tcc-worker", WORKER)
    return folder


@pytest.fixture
def fallen() -> SimpleQueue[str]:
    return SimpleQueue()


@pytest.fixture
def stack(tmp_path: Path, programs: Path, fallen: SimpleQueue[str]) -> Iterator[Stack]:
    with Stack(tmp_path / "data", environment={}, programs=programs, on_fall=fallen.put) as stack:
        yield stack


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)


def test_a_stack_starts_each_part_with_the_addresses_it_needs(stack: Stack) -> None:
    assert set(stack.processes) == {"sandbox", "api", "worker"}
    worker = psutil.Process(stack.processes["worker"].pid).environ()
    assert worker["TCC_DATABASE_URL"] == stack.database_url
    assert worker["TCC_REDIS_URL"] == stack.redis_url
    assert worker["TCC_GATEWAY_URL"] == stack.sandbox_url
    assert worker["TCC_LOG_FORMAT"] == "console"
    assert worker["TCC_DRAIN_SECONDS"] == "0"
    assert (stack.data / "logs" / "migrate.log").read_text() == "running migrate\n"


def test_a_part_can_be_killed_and_started_again(stack: Stack, fallen: SimpleQueue[str]) -> None:
    pid = stack.processes["api"].pid
    url = stack.api_url

    stack.kill_process("api")
    assert not psutil.pid_exists(pid)
    stack.start_process("api")
    stack.wait_until_ready("api")

    assert stack.api_url == url
    assert fallen.empty()


def test_a_part_that_ends_by_itself_is_told(stack: Stack, fallen: SimpleQueue[str]) -> None:
    os.kill(stack.processes["worker"].pid, signal.SIGKILL)
    assert fallen.get(timeout=10) == "worker"


def test_stopping_ends_everything_and_is_no_fall(stack: Stack, fallen: SimpleQueue[str]) -> None:
    processes = [psutil.Process(child.pid) for child in stack.processes.values()]
    stack.stop()
    assert not any(process.is_running() for process in processes)
    assert stack.postgres is not None
    assert not stack.postgres.running
    assert fallen.empty()


def test_servers_named_in_the_environment_replace_ours(tmp_path: Path, programs: Path) -> None:
    given = {"TCC_DATABASE_URL": "postgresql+asyncpg://elsewhere/tcc", "TCC_REDIS_URL": "redis://elsewhere/0"}
    with Stack(tmp_path / "data", environment=given, programs=programs) as stack:
        assert stack.postgres is None
        assert stack.valkey is None
        assert stack.environment.items() >= given.items()


def test_a_failed_migration_stops_everything(tmp_path: Path, programs: Path) -> None:
    _write_program(programs / "tcc", "raise SystemExit(3)")
    stack = Stack(tmp_path / "data", environment={}, programs=programs)
    with pytest.raises(ServerError, match=r"tcc migrate failed \(exit code 3\): see .*migrate\.log"):
        stack.start()
    assert stack.postgres is not None
    assert not stack.postgres.running


def test_a_part_that_ends_while_starting_stops_everything(tmp_path: Path, programs: Path) -> None:
    _write_program(programs / "tcc", "import sys; sys.exit(5 if sys.argv[1] == 'serve' else 0)")
    stack = Stack(tmp_path / "data", environment={}, programs=programs)
    with pytest.raises(ServerError, match=r"(sandbox|api) ended while starting \(exit code \d\)"):
        stack.start()
    assert stack.processes == {}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_tcc_dev_ends_cleanly_on_a_signal(tmp_path: Path, programs: Path, ending: signal.Signals) -> None:
    process = _run_dev(tmp_path, programs)
    output = _read_until(process, "tcc-worker check")
    assert "tcc is up." in output
    assert "TCC_GATEWAY_URL=http://127.0.0.1:" in output.splitlines()[-1], "or the gateway would not be checked"
    process.send_signal(ending)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.rstrip().endswith("stopped")
    assert "Traceback" not in output + rest


def test_tcc_dev_ends_with_an_error_when_a_part_does(tmp_path: Path, programs: Path) -> None:
    process = _run_dev(tmp_path, programs)
    _read_until(process, "tcc is up.")
    children = psutil.Process(process.pid).children()
    (worker,) = [child for child in children if str(programs / "tcc-worker") in child.cmdline()]

    worker.kill()

    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker ended unexpectedly (killed by SIGKILL)" in output
    assert output.rstrip().endswith("stopped")
    assert not any(child.is_running() for child in children)


def test_tcc_dev_says_what_to_do_about_a_taken_port(stack: Stack, tmp_path: Path, programs: Path) -> None:
    process = _run_dev(tmp_path, programs, port=stack.api_port)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {stack.api_port} is taken" in output
    assert f"tcc dev --port {stack.api_port + 1}" in output


def _run_dev(tmp_path: Path, programs: Path, port: int | None = None) -> subprocess.Popen[str]:
    """`tcc dev` as its own process, with the stand-ins for the parts that it starts."""
    script = """
        import functools, sys
        from pathlib import Path
        from tcc.dev import command
        from tcc.dev.programs import free_port
        command.Stack = functools.partial(command.Stack, programs=Path(sys.argv[1]))
        sys.exit(command.run_dev(port=int(sys.argv[3]) or free_port(), data=Path(sys.argv[2])))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), programs, tmp_path / "dev", str(port or 0)],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if not name.startswith("TCC_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read_until(process: subprocess.Popen[str], wanted: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if wanted in line:
            return seen
    raise AssertionError(f"{wanted!r} was never printed:\n{seen}")
