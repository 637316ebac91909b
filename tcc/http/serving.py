"""The API's server: uvicorn, in one process or several."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from tcc.http.draining import ENDING
from tcc.http.gathering import GatheringProtocol

ACCEPTS: Final = 8
"""How many connections are taken each time that the event loop comes round: libuv takes one from each listening socket,
and in a crowd a round takes long. All of these are the same socket."""


class Processes(Multiprocess):
    """uvicorn's supervisor, above processes that take their time to stop."""

    def terminate_all(self) -> None:
        """Have all processes end; a further signal to this one skips their draining."""
        super().terminate_all()
        for listening in self.sockets:
            listening.close()  # or connections would wait here unanswered once the processes take no more of them
        for number in ENDING:
            signal.signal(number, self._hurry)

    def _hurry(self, _number: int, _frame: FrameType | None) -> None:
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGINT)


def serve(*, host: str, port: int, processes: int) -> None:
    """Serve the API until a signal ends it."""
    application = "tcc.app:create"
    options: dict[str, Any] = {
        "factory": True,
        "host": host,
        "port": port,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "date_header": False,
        "timeout_graceful_shutdown": 20,
        "timeout_keep_alive": 75,
        "loop": "uvloop",
        "http": GatheringProtocol,
        "ws": "none",
        "proxy_headers": False,
        "lifespan": "on",
    }
    config = uvicorn.Config(application, workers=processes, **options)
    listening = config.bind_socket()
    sockets = [listening, *(listening.dup() for _ in range(ACCEPTS - 1))]
    if processes > 1:
        Processes(config, sockets).run()
        return
    server = uvicorn.Server(config)
    server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)
