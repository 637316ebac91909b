"""Tables: for a terminal, and for a page in Markdown. The first column is of names, the others of numbers mostly."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

Row = Sequence[str]


LEFT, RIGHT = "l", "r"


def show(console: Console, title: str, headings: Row, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(headings: Row, rows: Sequence[Row], sides: str = "") -> str:
    """A table for a page, aligned so that it can be read as it is. `sides` says for each column which: `l` or `r`."""
    lines = [headings, *rows]
    widths = [max(3, *(len(line[n]) for line in lines)) for n in range(len(headings))]
    sides = sides or LEFT + RIGHT * (len(headings) - 1)
    ruler = [
        "-" * width if side == LEFT else "-" * (width - 1) + ":" for width, side in zip(widths, sides, strict=True)
    ]

    def written(cells: Row) -> str:
        columns = zip(cells, widths, sides, strict=True)
        aligned = [cell.ljust(width) if side == LEFT else cell.rjust(width) for cell, width, side in columns]
        return f"| {' | '.join(aligned)} |"

    return "\n".join([written(headings), written(ruler), *map(written, rows)])
