"""The pages say what was measured, and the goals are judged by it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench import results
from bench.blocks import BLOCKS, NOT_YET
from bench.compare import NOOP, OURS, line
from bench.goals import Goal, goals
from bench.report import PAGES, rendered
from bench.results import Line, Results, Spread, Table, ratio
from bench.workloads import HOT, SPREAD
from tests.bench.samples import rounds, sample


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_is_kept(page: Path) -> None:
    assert rendered(page.read_text(), results.load()) == page.read_text()


def test_every_block_is_on_a_page_and_every_page_has_only_blocks_that_there_are() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert all(f"<!-- generated: {name} -->" in text for name in BLOCKS)
    assert text.count("<!-- generated: ") == text.count("<!-- end -->") == len(BLOCKS)


def test_only_what_is_between_the_marks_is_written_anew() -> None:
    page = "by hand\n<!-- generated: one -->\nold\nold\n<!-- end -->\nby hand\n<!-- generated: two -->\n<!-- end -->\n"
    blocks = {"one": lambda _: "new", "two": lambda _: "newer\nstill"}
    assert rendered(page, Results(), blocks) == (
        "by hand\n<!-- generated: one -->\nnew\n<!-- end -->\nby hand\n"
        "<!-- generated: two -->\nnewer\nstill\n<!-- end -->\n"
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_can_be_made_of_everything_and_of_nothing(name: str) -> None:
    made = BLOCKS[name](sample())
    assert "|" in made
    for table in (block for block in made.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    nothing = BLOCKS[name](Results())
    assert nothing == NOT_YET or name == "goals"


def test_what_is_kept_is_what_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert results.load(file) == Results()
    results.save(sample(), file)
    kept = results.load(file)
    assert (kept.openloop, kept.history and kept.history.tables) == (
        sample().openloop,
        [Table("journal", 10, 1.0, 2.0, 3, 4, 100, 90, 1)],
    )
    results.save(kept, file)
    assert results.load(file) == kept


def _goal(what: str, found: Results) -> Goal:
    (goal,) = (goal for goal in goals(found) if goal.what.startswith(what))
    return goal


@pytest.mark.parametrize(
    ("what", "worst", "met"),
    [
        ("Try over HTTP", 0.8, "aim"),
        ("order over HTTP", 0.2, "no"),
        ("order against ORM", 10, "least"),
        ("order against asyncpg", 10, "aim"),
        ("order against DBOS", 10, "no"),
        ("order against pgbench, spread", 0.5, "least"),
        ("order against pgbench, hot", 0.5, "no"),
        ("one client alone", 1.2, "least"),
        ("hot against spread", 1, "aim"),
        ("p99 of an order at half", 20, "aim"),
        ("two API processes", 2, "aim"),
        ("100,000 abandoned", 12.5, "least"),
        ("CPU per order", 0.75, "least"),
        ("after 5,000,000", 0.95, "least"),
    ],
)
def test_a_goal_is_judged_by_its_worst_case(what: str, worst: float, met: str) -> None:
    goal = _goal(what, sample())
    assert goal.worst == pytest.approx(worst)
    assert goal.met == met


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {(goal.worst, goal.met) for goal in goals(Results())} == {(None, "")}


def test_the_worst_case_is_the_one_that_counts() -> None:
    found = sample()
    assert found.ceiling
    found.ceiling.lines[line("Try", HOT)] = rounds(2000)
    goal = _goal("Try over HTTP", found)
    assert goal.worst == pytest.approx(0.4)
    assert goal.met == "no"
    assert set(goal.measured) == {"hot", "spread"}


def test_no_throughput_makes_up_for_a_deadlock() -> None:
    found = sample()
    assert found.clients
    found.clients = msgspec.structs.replace(found.clients, figures={"deadlocks": 1})
    assert _goal("two API processes", found).met == "no"


def test_a_ratio_is_of_the_rounds_and_not_of_their_medians() -> None:
    ours, theirs = Line(per_second=[100, 50, 90]), Line(per_second=[100, 100, 30])
    assert ratio(ours, theirs) == Spread(1, 0.5, 3)
    assert ratio(ours, Line(per_second=[0, 100, 100])).low == 0


def test_figures_are_of_the_lines_that_they_name() -> None:
    found = sample()
    assert found.ceiling
    assert found.peers
    found.ceiling.lines[NOOP] = rounds(12_345)
    found.peers.lines[line(OURS, SPREAD)] = rounds(54_321)
    assert "12,962" in BLOCKS["ceiling"](found)
    assert "57,037" in BLOCKS["peers"](found)
