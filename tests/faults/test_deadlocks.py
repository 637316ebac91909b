"""Locks taken in every order that a customer can think of: `make faults` does it at length, this in a few seconds."""

from __future__ import annotations

from tests.client import serving
from tests.conftest import OpenService
from tests.faults.deadlocks import claim_in_random_order
from tests.recovery.scenes import broken, conflicts


async def test_claims_with_lines_and_branches_in_any_order_from_two_processes_never_deadlock(
    start_service: OpenService, database_url: str
) -> None:
    services = start_service(), start_service()
    async with serving(services[0]) as one, serving(services[1]) as other:
        came = await claim_in_random_order([one, other], database_url, claims=300, skus=5, seed=1)
    assert came.deadlocks == 0, came
    assert came.violations == []
    assert came.done + came.refused == came.claims == 300
    assert min(came.done, came.refused) > 0
    assert [conflicts(service) for service in services] == [0, 0]
    assert await broken(services[0]) == []
