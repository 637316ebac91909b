"""Writes what was measured into the pages, between `<!-- generated: NAME -->` and `<!-- end -->`; all else is by hand.

`python -m bench.report` does it again from `bench/results.json`, without measuring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.table import Table

from bench import results
from bench.blocks import BLOCKS, GOAL_HEADINGS, goal_rows
from bench.plots import draw
from bench.results import Results
from bench.stage import ROOT

PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")

_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str, found: Results, blocks: Mapping[str, Callable[[Results], str]] = BLOCKS) -> str:
    """A page with its blocks made anew. Raises KeyError where it names one that there isn't."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{blocks[match[2]](found)}\n{match[3]}"

    return _BLOCK.sub(block, page)


def write(found: Results, pages: tuple[Path, ...] = PAGES) -> None:
    """Make the blocks of the pages anew, and the plots."""
    for page in pages:
        page.write_text(rendered(page.read_text(), found))
    draw(found, ROOT / "docs")


def goals_table(found: Results) -> Table:
    """The goals, for a terminal."""
    table = Table(title="Goals")
    for number, heading in enumerate(GOAL_HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in goal_rows(found):
        table.add_row(*row)
    return table


if __name__ == "__main__":
    write(results.load())
