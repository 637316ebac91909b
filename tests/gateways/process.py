"""The real sandbox gateway, as a process of its own that tests may kill and start again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
SHORTENED = ("--slow-seconds=0.6", "--short-validity-seconds=0.3", "--held-reply-seconds=0.1")


class SandboxProcess:
    """One directory, and the process that serves it on a port that stays the same."""

    def __init__(self, data: Path, *options: str) -> None:
        self._data = data
        self._options = options or SHORTENED
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def root(self) -> Path:
        """Where its command is to be run."""
        return ROOT

    def command(self) -> list[str]:
        module = [sys.executable, "-m", "resources.payments.sandbox"]
        return [*module, f"--port={self._port}", f"--data={self._data}", *self._options]

    def start(self) -> None:
        """Returns when it listens, which is when it says so."""
        self._process = subprocess.Popen(self.command(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("sandbox gateway on http://"), line
        self._port = int(line.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As a crash does: nothing is finished, nothing flushed."""
        assert self._process is not None
        self._process.kill()
        self._end()

    def stop(self) -> int:
        """As an operator does; returns the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._end()

    def _end(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        status = self._process.wait(timeout=10)
        self._process.stdout.close()
        return status

    def ledger(self, **query: Any) -> dict[str, Any]:
        """One page of GET /ledger."""
        with urlopen(f"{self.url}/ledger?{urlencode(query)}", timeout=10) as answer:
            page: dict[str, Any] = json.load(answer)
        return page

    def account(self, reference: str) -> dict[str, Any]:
        """What the witness says of the only authorisation under a reference."""
        (account,) = self.ledger(reference=reference)["accounts"]
        assert isinstance(account, dict)
        return account
