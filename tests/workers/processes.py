"""`tcc-worker` as its users run it: a process, what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "tcc-worker"


class Ended(msgspec.Struct, frozen=True):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """Ours, with no setting of the service but those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TCC_")}
    return {**inherited, **environment}


class Commands:
    """Runs `tcc-worker` commands to their end, each in a process of its own (see `forking`)."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.forking"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _ask(self, environment: Mapping[str, str], arguments: Sequence[str]) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        asked = {"arguments": arguments, "environment": surroundings(environment)}
        self._server.stdin.write(msgspec.json.encode(asked) + b"\n")
        self._server.stdin.flush()
        return msgspec.json.decode(self._server.stdout.readline(), type=Ended)

    async def __call__(self, environment: Mapping[str, str], *arguments: str) -> Ended:
        async with asyncio.timeout(60):
            return await asyncio.to_thread(self._ask, environment, arguments)

    def close(self) -> None:
        self._server.communicate()


async def command(environment: Mapping[str, str], *arguments: str) -> Ended:
    """Run the program itself to its end."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *arguments,
        env=surroundings(environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


class Running:
    """A worker that runs, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said += line.decode()

    async def says(self, word: str) -> bool:
        return word in self.said

    async def stop(self, *, within: float) -> int:
        """SIGTERM; its exit code. Raises TimeoutError where it takes longer."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(within):
            code = await self.process.wait()
            await self._reading
        return code


@asynccontextmanager
async def running_worker(environment: Mapping[str, str]) -> AsyncIterator[Running]:
    """A worker process, killed at the end unless it has been stopped."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "run",
        env=surroundings({**environment, "TCC_LOG_LEVEL": "info", "PYTHONUNBUFFERED": "1"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    worker = Running(process)
    try:
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await worker._reading
