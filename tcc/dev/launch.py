"""Becomes another program, on terms that must be set in the process itself, between fork and exec.

Run as a script (`python -I -S launch.py '<json>' program argument…`) instead of through `preexec_fn`, which
may deadlock in a process that has threads. It stays importable by nothing but its own command line: one
argument of JSON, the program after it.

Three things are arranged here, all Linux's:

* The program dies with its parent, even a parent that is SIGKILLed (PR_SET_PDEATHSIG). It has to be set
  after the change of user, which clears it.
* Root becomes an ordinary user, because PostgreSQL refuses to run as root.
* That user keeps one capability, reading the path to its files: a checkout below a directory that only root
  may enter (`/root`, or a `mktemp -d`) works in place, and nothing has to be copied elsewhere.
"""

import ctypes
import json
import os
import sys
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2  # also lets access(2) honour the capability, which PostgreSQL asks
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


@dataclass(frozen=True)
class Terms:
    """What the launcher arranges before it becomes the program."""

    parent: int
    """Process id of whoever launches; gone before the arrangement is made means: don't start at all."""
    death_signal: int
    """What the program gets when its parent dies."""
    uid: int | None = None
    """User to become; None stays who we are."""
    gid: int | None = None
    search_anywhere: bool = False
    """Whether that user may pass through directories that are closed to it."""

    def to_json(self) -> str:
        return json.dumps(self.__dict__)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySet(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(terms: Terms, program: list[str]) -> None:
    """Arrange `terms` and exec `program`; never returns."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and terms.search_anywhere:
        _check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    if terms.uid is not None and terms.gid is not None:
        os.setgroups([])
        os.setgid(terms.gid)
        os.setuid(terms.uid)
    if libc is not None and terms.search_anywhere:
        _keep_only_search(libc)
    if libc is not None:
        _check(libc.prctl(_PR_SET_PDEATHSIG, terms.death_signal, 0, 0, 0))
    if os.getppid() != terms.parent:
        sys.exit("the launching process is gone")
    os.execv(program[0], program)  # noqa: S606 - no shell, and the program is our caller's


def _keep_only_search(libc: ctypes.CDLL) -> None:
    """Drop every capability but one that opens directories; the least of those that we have."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    held = (_CapabilitySet * 2)()
    _check(libc.capget(ctypes.byref(header), held))
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        bit = 1 << capability
        if held[0].permitted & bit:
            kept = (_CapabilitySet * 2)(_CapabilitySet(bit, bit, bit), _CapabilitySet(0, 0, 0))
            _check(libc.capset(ctypes.byref(header), kept))
            _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))
            return
    raise PermissionError("no capability to pass through closed directories")


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    become(Terms(**json.loads(sys.argv[1])), sys.argv[2:])
