"""Running a page's shell blocks as a reader would paste them, and holding the output against what the page says.

A comment `# … text …` below a command promises that the text is in the output, in that order.
"""

from __future__ import annotations

import asyncio
import re

PRINTED_URL = "http://127.0.0.1:8000"
_PROMISE = re.compile(r"^# … (.*) …$", re.MULTILINE)


async def run_as_pasted(block: str, url: str) -> str:
    """Run a block in bash against the API at `url`, and check its promises; what it printed."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-eu",
        "-c",
        block.replace(PRINTED_URL, url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await asyncio.wait_for(process.communicate(), timeout=60))[0].decode()
    assert process.returncode == 0, output
    rest = output
    for promised in _PROMISE.findall(block):
        assert promised in rest, f"{promised!r} is not in what is left of the output: {rest}\n\nThe block:\n{block}"
        rest = rest.partition(promised)[2]
    return output
