"""Whom PostgreSQL runs as: ourselves, or, when we are root, an ordinary user that exists already."""

import os
import pwd
from pathlib import Path

from tcc.dev.child import RunAs

_CANDIDATES = ("postgres", "nobody")


def account_for(cluster: Path, *, programs: Path) -> RunAs | None:
    """The user to become, or None to stay who we are.

    Whoever owns an existing `cluster` goes on owning it, so that a directory made by an ordinary user is
    not taken from them by one run as root. `programs` is the folder of the binaries, which that user must
    reach as well.
    """
    if os.geteuid() != 0:
        return None
    owner = cluster.stat()
    if owner.st_uid != 0:
        return _run_as(owner.st_uid, owner.st_gid, cluster, programs)
    for name in _CANDIDATES:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(cluster, account.pw_uid, account.pw_gid)
        return _run_as(account.pw_uid, account.pw_gid, cluster, programs)
    raise LookupError(f"none of the users {', '.join(_CANDIDATES)} exists, and PostgreSQL won't run as root")


def _run_as(uid: int, gid: int, *paths: Path) -> RunAs:
    closed = any(not _may_enter(directory, uid, gid) for path in paths for directory in path.resolve().parents)
    return RunAs(uid, gid, search_anywhere=closed)


def _may_enter(directory: Path, uid: int, gid: int) -> bool:
    found = directory.stat()
    if found.st_uid == uid:
        return bool(found.st_mode & 0o100)
    if found.st_gid == gid:
        return bool(found.st_mode & 0o010)
    return bool(found.st_mode & 0o001)
