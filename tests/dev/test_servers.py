"""The embedded servers, as real processes on real directories."""

import asyncio
import os
import pwd
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

import tcc
from tcc.dev.patience import wait_until
from tcc.dev.programs import ServerError
from tcc.dev.servers import PostgresServer, ServerInUseError, ValkeyServer

PROJECT = Path(tcc.__file__).parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that nobody but us may enter, as pytest makes them: the hard case for root."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[PostgresServer]:
    with PostgresServer(home / "shared") as server:
        server.create_database()
        yield server


@pytest.fixture
def postgres(shared: PostgresServer) -> PostgresServer:
    """The module's server, running whatever the test before did to it."""
    shared.start()
    return shared


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path) as server:
        yield server


async def _ask(server: PostgresServer, sql: str) -> object:
    connection = await asyncpg.connect(server.url().replace("+asyncpg", ""), timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def _make_notes(server: PostgresServer, text: str) -> None:
    await _ask(server, "CREATE TABLE IF NOT EXISTS notes (text text)")
    await _ask(server, f"INSERT INTO notes VALUES ('{text}')")


async def test_postgres_answers_with_durable_settings(postgres: PostgresServer) -> None:
    assert str(await _ask(postgres, "SHOW server_version")).startswith("18.")
    assert await _ask(postgres, "SHOW fsync") == "on"
    assert await _ask(postgres, "SHOW synchronous_commit") == "on"
    assert await _ask(postgres, "SHOW max_connections") == "200"
    assert await _ask(postgres, "SHOW autovacuum") == "on"


async def test_postgres_listens_on_loopback_only(postgres: PostgresServer) -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(postgres.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


async def test_extra_settings_override_ours(tmp_path: Path) -> None:
    with PostgresServer(tmp_path, settings={"max_connections": "17"}) as server:
        server.create_database()
        assert await _ask(server, "SHOW max_connections") == "17"


async def test_data_is_there_on_the_second_start(postgres: PostgresServer) -> None:
    await _make_notes(postgres, "kept over a stop")
    url = postgres.url()
    postgres.stop()
    assert not postgres.running

    postgres.start()

    assert postgres.url() == url
    assert await _ask(postgres, "SELECT count(*) FROM notes WHERE text = 'kept over a stop'") == 1


async def test_creating_a_database_again_changes_nothing(postgres: PostgresServer) -> None:
    postgres.create_database('an "odd" name')
    postgres.create_database('an "odd" name')
    assert await _ask(postgres, "SELECT count(*) FROM pg_database WHERE datname LIKE 'an%'") == 1


async def test_a_killed_server_recovers_what_was_committed(postgres: PostgresServer) -> None:
    await _make_notes(postgres, "kept over a kill")

    postgres.kill()
    assert (postgres.data / "cluster" / "postmaster.pid").exists()
    postgres.start()

    assert await _ask(postgres, "SELECT count(*) FROM notes WHERE text = 'kept over a kill'") == 1


async def test_a_kill_ends_every_backend_at_once(postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres.url().replace("+asyncpg", ""))
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))

    postgres.kill()

    assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    connection.terminate()


async def test_an_immediate_stop_leaves_a_cluster_that_starts(postgres: PostgresServer) -> None:
    await _make_notes(postgres, "kept over an immediate stop")
    postgres.stop("immediate")
    postgres.restart()
    assert await _ask(postgres, "SELECT count(*) FROM notes WHERE text LIKE '%immediate stop'") == 1


async def test_a_fast_stop_does_not_wait_for_clients(postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres.url().replace("+asyncpg", ""))
    transaction = connection.transaction()
    await transaction.start()
    began = asyncio.get_running_loop().time()

    await asyncio.to_thread(postgres.stop)

    assert asyncio.get_running_loop().time() - began < 5
    connection.terminate()


async def test_a_pid_file_that_names_another_program_is_no_obstacle(postgres: PostgresServer) -> None:
    postgres.kill()
    pid_file = postgres.data / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    postgres.start()

    assert await _ask(postgres, "SELECT 1") == 1


async def test_a_second_instance_on_the_same_data_is_refused(postgres: PostgresServer) -> None:
    second = PostgresServer(postgres.data)
    with pytest.raises(ServerInUseError, match="is in use by another tcc that is running: stop that one"):
        second.start()
    assert await _ask(postgres, "SELECT 1") == 1


async def test_data_of_another_major_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match="is of PostgreSQL 9 and this is 18: remove it"):
        PostgresServer(tmp_path).start()


async def test_a_set_up_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "cluster" / "base").mkdir(parents=True)
    with PostgresServer(tmp_path) as server:
        server.create_database()
        assert await _ask(server, "SELECT 1") == 1


async def test_servers_end_when_the_process_that_started_them_is_killed(home: Path) -> None:
    script = """
        import sys, threading
        from pathlib import Path
        from tcc.dev.servers import PostgresServer, ValkeyServer
        data = Path(sys.argv[1])
        postgres, valkey = PostgresServer(data / "postgres"), ValkeyServer(data / "valkey")
        # From a thread that ends: the servers must outlive it, and nothing but the process.
        thread = threading.Thread(target=lambda: (postgres.start(), valkey.start()))
        thread.start()
        thread.join()
        print(postgres.pid, valkey.pid, flush=True)
        threading.Event().wait()
    """
    data = home / "orphaned"
    parent = _run_python(script, str(data))
    assert parent.stdout is not None
    servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert [server.is_running() for server in servers] == [True, True]

    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    # A second start waits for the first server's shutdown by itself, so nothing has to be cleaned up.
    with PostgresServer(data / "postgres") as again:
        assert again.running
    assert wait_until(lambda: not any(_is_alive(server) for server in servers), within=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_servers_run_as_an_ordinary_user() -> None:
    account = pwd.getpwnam("nobody")
    script = """
        import sys, tempfile
        from pathlib import Path
        from tcc.dev.servers import PostgresServer, ValkeyServer
        with tempfile.TemporaryDirectory() as name:
            data = Path(name)
            with PostgresServer(data / "postgres") as postgres, ValkeyServer(data / "valkey"):
                postgres.create_database()
                print("up as", data.stat().st_uid)
    """
    # Code and interpreter may lie where `nobody` can't go, so the process keeps root's way in and no more.
    user = ("setpriv", "--reuid", "nobody", "--regid", str(account.pw_gid), "--clear-groups")
    search = (
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--securebits=+no_setuid_fixup",
    )
    process = _run_python(script, before=(*user, *search))
    output, _ = process.communicate(timeout=60)
    assert output == f"up as {account.pw_uid}\n"


def test_valkey_answers_and_listens_on_loopback_only(valkey: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(valkey.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_valkey_comes_back_empty_on_the_same_port(valkey: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("wake", "up")
    url = valkey.url

    valkey.kill()
    assert not valkey.running
    valkey.start()

    assert valkey.url == url
    with redis.Redis.from_url(valkey.url) as client:
        assert client.get("wake") is None


def test_a_taken_port_is_said_in_one_line(valkey: ValkeyServer, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^Valkey did not start: .*on port.*$"):
        ValkeyServer(tmp_path / "second", port=valkey.port).start()
    with pytest.raises(ServerError, match=r"^PostgreSQL ended while starting: .*FATAL.*$"):
        PostgresServer(tmp_path / "third", port=valkey.port).start()


def _run_python(script: str, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
