from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from resources.payments.gateways import open_gateway
from resources.payments.gateways.contract import Gateway
from resources.payments.gateways.sandbox import SandboxGateway
from tests.gateways.process import SandboxProcess


@pytest.fixture(scope="session")
def shared_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """One sandbox for every test that does not hurt it; references keep the tests apart."""
    process = SandboxProcess(tmp_path_factory.mktemp("sandbox"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def mortal_sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    """A sandbox of the test's own, to be killed."""
    process = SandboxProcess(tmp_path)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def reference() -> str:
    return f"reservation-{uuid4()}"


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Callable[..., SandboxGateway]]:
    """Make clients that are closed when the test ends."""
    clients: list[SandboxGateway] = []

    def make(url: str, *, timeout_seconds: float = 5.0, connections: int = 64) -> SandboxGateway:
        clients.append(SandboxGateway(url, timeout_seconds=timeout_seconds, connections=connections))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest_asyncio.fixture(params=["sandbox", "instant"])
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """Every gateway there is, for the battery that all must pass."""
    process = request.getfixturevalue("shared_sandbox") if request.param == "sandbox" else None
    opened = open_gateway(process.url if process else "instant:")
    yield opened
    await opened.aclose()
