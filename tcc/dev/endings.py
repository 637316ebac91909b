"""Being told to end: Ctrl-C, SIGTERM and a closed terminal alike, and then in peace."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end us as Ctrl-C does, by KeyboardInterrupt."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """From here on we are ending: asking again doesn't hurry it, since every step of it is bounded."""
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
