"""Waiting for something that can't tell us by itself, and never for longer than was agreed."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, within: float, every: float = 0.02) -> bool:
    """Ask `condition` again and again until it holds, for at most `within` seconds; whether it came to."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True
