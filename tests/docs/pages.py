"""The pages that are held against the code, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

import tcc

ROOT = Path(tcc.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """A page's code blocks in one language, in their order."""
    return [body for found, body in _FENCE.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def table(page: Path, first_heading: str) -> list[tuple[str, ...]]:
    """The rows of the table whose first column has this heading, without backticks."""
    lines = page.read_text().splitlines()
    (start,) = (number for number, line in enumerate(lines) if re.match(rf"\| {first_heading} +\|", line))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")))
    return rows
