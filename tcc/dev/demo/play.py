"""Running the demo: a stack of its own in a temporary directory, the scenes one after the other, and the end of it."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tcc.dev.demo.scenes import SCENES, Scene
from tcc.dev.demo.shop import Shop
from tcc.dev.demo.telling import CannotGoOn, Telling
from tcc.dev.endings import ignore_signals, signals_interrupt
from tcc.dev.programs import ServerError
from tcc.dev.seed import seed_stock
from tcc.dev.supervisor import Stack

_HURRY = {
    "TCC_LEASE_SECONDS": "1.5",
    "TCC_SWEEP_INTERVAL_SECONDS": "0.2",
    "TCC_RETRY_BASE_SECONDS": "0.1",
    "TCC_GRACE_SECONDS": "1",
    "TCC_DEFAULT_WAIT_SECONDS": "3",
}
"""What heals within a minute in production heals within seconds here."""
_INTERRUPTED = 130


def run_demo(scenes: Sequence[Scene] = SCENES) -> int:
    """Play the scenes; the exit code: 0 only if everything came out right.

    It stands on its own servers, whatever TCC_… variables say, so that it never touches anybody's data. What it
    leaves is removed, unless something went wrong: then its logs are kept, and it says where.
    """
    tell = Telling()
    data = Path(tempfile.mkdtemp(prefix="tcc-demo-"))
    exit_code = 1
    with signals_interrupt():
        stack = None
        try:
            stack = Stack(data, environment=_environment())
            tell.title("tcc demo: orders, mishaps and a crash, on PostgreSQL, Valkey and a payment gateway")
            tell.say("Starting all of it, in a temporary directory …")
            stack.start()
            seed_stock(stack.api_url)
            _play(scenes, Shop(stack), tell)
            exit_code = 0 if tell.end() else 1
        except KeyboardInterrupt:
            tell.say("Interrupted.")
            exit_code = _INTERRUPTED
        except ServerError as error:
            tell.fail(str(error))
        finally:
            ignore_signals()
            if stack is not None:
                stack.stop()
    if exit_code == 1:
        tell.say(f"The logs of this run are kept in {data / 'logs'}.")
    else:
        shutil.rmtree(data, ignore_errors=True)
    return exit_code


def _play(scenes: Sequence[Scene], shop: Shop, tell: Telling) -> None:
    for number, scene in enumerate(scenes, start=1):
        tell.title(f"{number} of {len(scenes)}  {scene.title}")
        try:
            scene.play(shop, tell)
        except (CannotGoOn, OSError, LookupError) as error:
            tell.fail(f"The scene broke off: {str(error) or type(error).__name__}")


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TCC_")}
    return ours | _HURRY
