"""What tests stand on: real servers for the session, and databases, services and an API of each test's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc.db import Database
from tcc.dev.servers import PostgresServer, ValkeyServer
from tcc.schema import migrate
from tcc.service import Service, open_service
from tcc.settings import Settings
from tests.client import Api, serving
from tests.gateways.process import SandboxProcess

TEMPLATE = "tcc_template"
_numbers = itertools.count(1)

OpenService = Callable[..., Service]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """PostgreSQL for the session, with a migrated template that every test's database is a copy of."""
    with PostgresServer(tmp_path_factory.mktemp("postgres"), settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Valkey for the session."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """The sandbox gateway for the session, in a process of its own; reservations' ids keep tests apart."""
    process = SandboxProcess(tmp_path_factory.mktemp("sandbox"))
    process.start()
    yield process
    process.stop()


async def new_database(server: PostgresServer) -> str:
    """The URL of a database of one test's own, migrated."""
    admin = Database(server.url("postgres"), application="tests")
    try:
        connection = await admin.reads.connect()
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        names = {row.datname for row in await connection.execute(text("SELECT datname FROM pg_database"))}
        if TEMPLATE not in names:
            await connection.execute(text(f"CREATE DATABASE {TEMPLATE}"))
            template = Database(server.url(TEMPLATE), application="tests")
            await migrate(template, RESOURCES, RESOURCES)
            await template.close()
        name = f"tcc_{os.getpid()}_{next(_numbers)}"
        await connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
        await connection.close()
    finally:
        await admin.close()
    return server.url(name)


@pytest_asyncio.fixture
async def database_url(postgres: PostgresServer) -> str:
    """The URL of a migrated database of the test's own."""
    return await new_database(postgres)


@pytest.fixture
def environment(database_url: str, valkey: ValkeyServer, sandbox: SandboxProcess) -> dict[str, str]:
    """Environment variables for a service of the test's own. Short leases, so that crashes heal at once."""
    return {
        "TCC_DATABASE_URL": database_url,
        "TCC_REDIS_URL": valkey.url,
        "TCC_GATEWAY_URL": sandbox.url,
        "TCC_LEASE_SECONDS": "0.5",
        "TCC_RETRY_BASE_SECONDS": "0.05",
        "TCC_GRACE_SECONDS": "1",
        "TCC_SWEEP_INTERVAL_SECONDS": "0.1",
        "TCC_LOG_FORMAT": "console",
        "TCC_LOG_LEVEL": "warning",
    }


@pytest_asyncio.fixture
async def start_service(environment: dict[str, str]) -> AsyncIterator[OpenService]:
    """Open services (several, as several processes would be) that are closed when the test ends."""
    opened: list[Service] = []

    def start(**changed: str) -> Service:
        given = environment | changed
        opened.append(open_service(Settings.from_environment(given), RESOURCES, given, application="tcc-test"))
        return opened[-1]

    yield start
    for service in opened:
        await service.close(patience_seconds=5)


@pytest_asyncio.fixture
async def service(start_service: OpenService) -> Service:
    """A service of the test's own."""
    return start_service()


@pytest_asyncio.fixture
async def api(service: Service) -> AsyncIterator[Api]:
    """The API of the test's own service, over HTTP."""
    async with serving(service) as running:
        yield running


StartApi = Callable[..., Awaitable[Api]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory for processes of the test's own."""
    return tmp_path
