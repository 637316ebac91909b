"""Running the sandbox as a process."""

from __future__ import annotations

import fcntl
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import uvicorn

from resources.payments.sandbox.app import create_app
from resources.payments.sandbox.behaviour import Timings
from resources.payments.sandbox.lost_reply import DroppableProtocol

GRACE_SECONDS = 2
BACKLOG = 1024
SWITCH_SECONDS = 0.0005
"""SQLite gives up the GIL at every statement, and at the usual 5 ms waits as long for the event loop to hand
it back; this made 2,600 authorisations a second of 1,800."""


class SandboxStartError(Exception):
    """Its text is one line that tells the operator what to do."""


def run_sandbox(*, host: str, port: int, data: Path, timings: Timings | None = None) -> None:
    """Serve until SIGINT or SIGTERM, with the ledger in directory `data`, which is made if missing.

    Prints its URL once it listens; port 0 takes a free one. Has the process to itself. Raises
    SandboxStartError if the port or the directory is taken.
    """
    data.mkdir(parents=True, exist_ok=True)
    sys.setswitchinterval(SWITCH_SECONDS)
    with _sole_owner(data), _listen(host, port) as listener:
        config = uvicorn.Config(
            create_app(data, timings or Timings()),
            http=DroppableProtocol,
            lifespan="on",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        click.echo(f"sandbox gateway on http://{host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _sole_owner(data: Path) -> Iterator[None]:
    """Which keys are at work is known in memory only: two processes on one ledger would not know."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SandboxStartError(
                f"another sandbox gateway uses {data}: stop it, or choose another directory"
            ) from error
        yield


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((host, port), backlog=BACKLOG)
    except OSError as error:
        raise SandboxStartError(
            f"the sandbox gateway can't listen on {host}:{port} ({error.strerror}): choose another port"
        ) from error
    with listener:
        yield listener
