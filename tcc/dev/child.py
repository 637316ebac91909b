"""A process that we start, read, and end: it never outlives us, and it always ends in bounded time."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import psutil

from tcc.dev import launch
from tcc.dev.patience import wait_until

_KILL_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class RunAs:
    """The ordinary user that a program runs as when we are root."""

    uid: int
    gid: int
    search_anywhere: bool
    """Let it pass through directories that are closed to it (see `launch`)."""


def launcher(argv: Sequence[str | Path], *, death_signal: signal.Signals, run_as: RunAs | None = None) -> list[str]:
    """The command line that becomes `argv`, tied to this process's life."""
    terms = launch.Terms(parent=os.getpid(), death_signal=death_signal)
    if run_as is not None:
        terms = replace(terms, uid=run_as.uid, gid=run_as.gid, search_anywhere=run_as.search_anywhere)
    interpreter = [sys.executable, "-I", "-S", launch.__file__, terms.to_json()]
    return [*interpreter, *(str(part) for part in argv)]


class Child:
    """One running process.

    A thread of its own forks it and waits for it. That is not for convenience: Linux sends the
    parent-death signal when the *thread* that forked ends, and a pool's thread may end at any time.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        death_signal: signal.Signals = signal.SIGTERM,
        run_as: RunAs | None = None,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        """Start `argv`. Its output goes to the end of the file `log`, or line by line to `on_line`,
        or nowhere. `on_exit` is called from another thread when the process has ended, just before
        `running` and `wait` say so: whoever waited for the end knows that it was called."""
        self.name = name
        self._command = launcher(argv, death_signal=death_signal, run_as=run_as)
        self._environment = dict(environment)
        self._log = log
        self._on_line = on_line
        self._on_exit = on_exit
        self._started = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            self._process = self._spawn()
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        reader: threading.Thread | None = None
        if self._process.stdout is not None:
            reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            reader.start()
        self._process.wait()
        if reader is not None:
            reader.join(timeout=1.0)  # what it said last; a grandchild may hold the pipe open for longer
        try:
            if self._on_exit is not None:
                self._on_exit()
        finally:
            self._ended.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        output: int | IO[bytes] = subprocess.DEVNULL
        if self._on_line is not None:
            output = subprocess.PIPE
        elif self._log is not None:
            output = self._log.open("ab")
        try:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C at the terminal is ours to pass on, in our order
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                if self._on_line is not None:
                    self._on_line(line.decode(errors="replace").rstrip("\r\n"))

    @property
    def pid(self) -> int:
        """Process id; the program's own, since the launcher becomes it."""
        return self._running_process.pid

    @property
    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def exit_code(self) -> int | None:
        """How it ended (minus the signal's number when a signal ended it), or None while it runs."""
        return None if self.running else self._running_process.returncode

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for its end; whether it has ended."""
        return self._ended.wait(timeout)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended already."""
        self._running_process.send_signal(number)

    def stop(self, how: signal.Signals = signal.SIGTERM, *, within: float) -> bool:
        """Ask it to end with the signal `how`; kill it after `within` seconds. Whether it went by itself."""
        self.send(how)
        if self.wait(within):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL it and all that it has started, as a crash of the machine would."""
        family = self._family()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.wait(_KILL_GRACE_SECONDS)
        wait_until(lambda: all(_is_gone(member) for member in family), within=_KILL_GRACE_SECONDS)

    def _family(self) -> list[psutil.Process]:
        """The process and its descendants; it is stopped first, so that it can't start more of them."""
        try:
            process = psutil.Process(self.pid) if self.running else None
            if process is None:
                return []
            process.suspend()
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _is_gone(process: psutil.Process) -> bool:
    """Ended, or a zombie: orphans are not ours to reap, and where no init does it they stay zombies."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
