"""A short selection of `make faults`: each failpoint once, on real processes, and the harness about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcc.failpoints import FAILPOINTS, Failpoints
from tcc.settings import SettingsError
from tests.faults.breakages import FAULTS
from tests.faults.run import run
from tests.workers.processes import command

DEADLY = [fault for fault in FAULTS if fault.name.startswith("API dies")]


async def test_an_api_that_dies_at_any_failpoint_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    assert len(DEADLY) == len(FAILPOINTS)
    said: list[str] = []
    outcome = await run(DEADLY, data=tmp_path, seed=1, seconds=0, say=said.append, clients=6)
    assert outcome.good, "\n".join([*said, *map(str, outcome.violations), *outcome.empty])
    assert all(row.injected == 1 for row in outcome.rows)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"TCC_FAILPOINTS": "after_commit"}, "for tests"),
        ({"TCC_FAILPOINTS": "after_commit", "TCC_TEST_MODE": "0"}, "for tests"),
        ({"TCC_FAILPOINTS": "after_lunch", "TCC_TEST_MODE": "1"}, "after_lunch"),
        ({"TCC_FAILPOINTS": "after_commit@0", "TCC_TEST_MODE": "1"}, "after_commit@0"),
    ],
)
def test_a_failpoint_is_refused_outside_of_tests_and_where_there_is_none(
    environment: dict[str, str], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        Failpoints.from_environment(environment)


async def test_a_process_told_to_fail_in_production_does_not_start(environment: dict[str, str]) -> None:
    ended = await command(environment | {"TCC_FAILPOINTS": "before_commit@1"}, "run")
    assert ended.code == 2
    assert "TCC_TEST_MODE" in ended.err
