"""`python -m resources.payments.sandbox --port 8099 --data .tcc/sandbox`"""

from __future__ import annotations

import argparse
from pathlib import Path

from resources.payments.sandbox.behaviour import Timings
from resources.payments.sandbox.serve import SandboxStartError, run_sandbox


def main() -> None:
    """Read the command line and serve."""
    usual = Timings()
    parser = argparse.ArgumentParser(prog="python -m resources.payments.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8099, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="directory of the ledger")
    for field in Timings.__struct_fields__:
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            type=float,
            default=getattr(usual, field),
            help="default: %(default)s",
        )
    given = parser.parse_args()
    timings = Timings(**{field: getattr(given, field) for field in Timings.__struct_fields__})
    try:
        run_sandbox(host=given.host, port=given.port, data=given.data, timings=timings)
    except SandboxStartError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
