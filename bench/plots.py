"""The two plots of docs/performance.md. matplotlib is only installed for `make bench`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.compare import CLIENTS, CURVES, PROCESSES, line
from bench.results import Line, Results, spread
from bench.workloads import HOT, SPREAD

THROUGHPUT = "throughput.svg"
LATENCY = "latency.svg"


def draw(found: Results, folder: Path) -> None:
    """Draw what there is."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tcc", "svg.fonttype": "none", "font.size": 10})
    if found.clients and found.peers:
        _save(_throughput(found), folder / THROUGHPUT)
    if found.openloop:
        _save(_latency(found), folder / LATENCY)


def _figure(title: str, across: str, up: str) -> tuple[Any, Any]:
    figure, axes = import_module("matplotlib.pyplot").subplots(figsize=(8, 4.5), layout="constrained")
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
    import_module("matplotlib.pyplot").close(figure)


def _throughput(found: Results) -> Any:
    assert found.clients
    assert found.peers
    figure, axes = _figure("Whole orders a second: median and range", "clients", "orders a second")
    for processes in PROCESSES:
        for picks in (HOT, SPREAD):
            lines = [found.clients.lines[line("order", picks, number, processes)] for number in CLIENTS]
            name = f"ours, {picks.name}, {processes} process{'es' if processes > 1 else ''}"
            _curve(axes, name, lines, "-" if picks is SPREAD else "--")
    for peer in CURVES:
        _curve(axes, peer, [found.peers.lines[line(peer, SPREAD, number)] for number in CLIENTS], "-")
    axes.set_xscale("log", base=2)
    axes.set_xticks(CLIENTS, [str(number) for number in CLIENTS])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def _curve(axes: Any, name: str, lines: Sequence[Line], style: str) -> None:
    rates = [spread(one.per_second) for one in lines]
    (drawn,) = axes.plot(CLIENTS, [rate.median for rate in rates], style, marker="o", markersize=4, label=name)
    axes.fill_between(
        CLIENTS, [r.low for r in rates], [r.high for r in rates], color=drawn.get_color(), alpha=0.15, linewidth=0
    )


def _latency(found: Results) -> Any:
    assert found.openloop
    points = found.openloop.points
    figure, axes = _figure(
        "Latency of an order from when it was due, open-loop", "orders offered a second (share of sustainable)", "ms"
    )
    rates = [point.rate for point in points]
    for name, values in (
        ("p50", [point.came.p50_ms for point in points]),
        ("p90", [point.came.p90_ms for point in points]),
        ("p99", [point.came.p99_ms for point in points]),
        ("p99.9", [point.came.p999_ms for point in points]),
    ):
        axes.plot(rates, values, marker="o", markersize=4, label=name)
    axes.set_yscale("log")
    for of in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        of(import_module("matplotlib.ticker").FormatStrFormatter("%g"))
    axes.set_xticks(rates, [f"{point.rate:,.0f}\n({point.share:.0%})" for point in points])
    axes.legend(frameon=False, loc="upper left")
    return figure
