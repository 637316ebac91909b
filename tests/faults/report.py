"""The table at the end, as Markdown, which reads well enough as it is."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.nemesis import Row

HEADER = ("Fault", "Injected", "In flight", "Acknowledged", "Unknown", "Violations", "Longest recovery")


def table(rows: Sequence[Row]) -> str:
    """A line for each fault."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEADER))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def written(cells: Sequence[str]) -> str:
        first, *others = cells
        aligned = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    return "\n".join([written(HEADER), written(ruler), *(written(line) for line in lines[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    if row.impossible:
        return (f"{row.fault} (not played: {row.impossible})", "0", *("",) * 5)
    numbers = (row.injected, row.in_flight, row.acknowledged, row.unknown, row.violations)
    return (row.fault, *map(str, numbers), f"{row.recovery_seconds:.1f} s")
