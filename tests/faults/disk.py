"""A small disk of its own for one PostgreSQL, so that it can be full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def no_small_disk() -> str | None:
    """Why there can't be one here, if so."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "only root can mount a small tmpfs"
    return None


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path | None]:
    """A tmpfs mounted at `at`; None where there can't be one."""
    if no_small_disk():
        yield None
        return
    at.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0755"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tcc-faults", str(at)], check=False).returncode != 0:
        yield None
        return
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
