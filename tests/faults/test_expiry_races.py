"""Confirm and expiry at the same instant: `make faults` does it two thousand times, this a tenth of them."""

from __future__ import annotations

import asyncio

from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import serving
from tests.conftest import OpenService
from tests.faults.expiry_races import race_expiry


async def sweep_for_ever(service: Service) -> None:
    sweeper = Sweeper(service, "worker")
    while True:
        await sweeper.reservations(500)
        await asyncio.sleep(0.02)


async def test_of_confirm_and_expiry_with_the_row_locked_across_it_exactly_one_wins(
    start_service: OpenService, database_url: str
) -> None:
    told: list[int] = []
    async with serving(start_service()) as one, serving(start_service()) as other:
        sweeping = asyncio.create_task(sweep_for_ever(start_service()))
        races = await race_expiry([one, other], database_url, rounds=200, seed=1, on_progress=told.append)
        sweeping.cancel()
    assert races.violations == []
    assert races.confirmed + races.expired == races.rounds == max(told) == 200
    # A tenth is confirmed as soon as it is held; what is released after its expiry can't be confirmed.
    assert min(races.confirmed, races.expired, races.waited) > 0
