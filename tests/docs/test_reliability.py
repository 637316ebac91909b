"""docs/reliability.md against the faults that are played and the failpoints that there are."""

from __future__ import annotations

from tcc.failpoints import FAILPOINTS
from tests.docs.pages import DOCS, table
from tests.faults.breakages import FAULTS
from tests.faults.scenarios import SCENARIOS

PAGE = DOCS / "reliability.md"


def test_the_table_is_of_a_run_that_played_every_fault_and_broke_no_promise() -> None:
    rows = table(PAGE, "Fault")
    assert [row[0] for row in rows] == [*(fault.name for fault in FAULTS), *SCENARIOS]
    for fault, injected, in_flight, acknowledged, unknown, violations, _ in rows:
        assert int(injected) > 0, fault
        assert int(in_flight) > 0, fault
        assert int(acknowledged) + int(unknown) >= int(in_flight), fault
        assert violations == "0", fault


def test_every_failpoint_is_listed_with_its_place() -> None:
    assert {row[0]: row[1] for row in table(PAGE, "Failpoint")} == dict(FAILPOINTS)
