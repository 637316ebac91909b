"""The workers' tests run with one database, and some with three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import environment, inventory_server, layout, payments_server

__all__ = ["environment", "inventory_server", "layout", "payments_server"]


@pytest.fixture
def own_sandbox(tmp_path: Path, environment: dict[str, str]) -> Iterator[SandboxProcess]:
    """A gateway with nobody's reservations but the test's: checking and reconciling look at all of them."""
    process = SandboxProcess(tmp_path)
    process.start()
    environment["TCC_GATEWAY_URL"] = process.url
    yield process
    process.stop()
