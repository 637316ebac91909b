"""Tables: for a terminal, and for a page in Markdown. The first column is of names, the others of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

Row = Sequence[str]


def show(console: Console, title: str, headings: Row, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(headings: Row, rows: Sequence[Row]) -> str:
    """A table for a page, aligned so that it can be read as it is."""
    lines = [headings, *rows]
    widths = [max(3, *(len(line[n]) for line in lines)) for n in range(len(headings))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def written(cells: Row) -> str:
        first, *others = cells
        aligned = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    return "\n".join([written(headings), written(ruler), *map(written, rows)])
