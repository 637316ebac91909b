"""What happens too seldom by itself: played on purpose, on the same fleet, once everything else is quiet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import aiohttp

from resources.registry import RESOURCES
from tcc.db import Database
from tcc.schema import migrate
from tests.client import Api
from tests.faults.deadlocks import claim_in_random_order
from tests.faults.diary import Diary
from tests.faults.expiry_races import race_expiry
from tests.faults.fleet import APIS, Fleet
from tests.faults.nemesis import Row
from tests.recovery.test_model import run_model

RACE, CLAIM, MODEL = SCENARIOS = (
    "confirm within 50 ms of expiry",
    "claims on many SKUs in any order",
    "orders of commands against the model",
)
RACES: Final = 2000
CLAIMS: Final = 1000
SKUS: Final = 8
EXAMPLES: Final = 60


async def play_scenarios(
    chosen: Sequence[str], fleet: Fleet, diary: Diary, seed: int, say: Callable[[str], None]
) -> list[Row]:
    """A row for each of those chosen; what is broken goes into the diary."""
    plays = {RACE: _race, CLAIM: _claim, MODEL: _model}
    rows = []
    for name in chosen:
        row, violations = await plays[name](fleet, seed)
        for what in violations:
            diary.violate(name, what)
        say(f"{name}: {row.injected} played, {len(violations)} violations")
        rows.append(replace(row, fault=name, violations=len(violations)))
    return rows


@asynccontextmanager
async def _apis(fleet: Fleet) -> AsyncIterator[list[Api]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield [Api(session, fleet.api_url(name)) for name in APIS]


async def _race(fleet: Fleet, seed: int) -> tuple[Row, list[str]]:
    async with _apis(fleet) as apis:
        came = await race_expiry(apis, fleet.home.url(), rounds=RACES, seed=seed)
    return Row(RACE, injected=RACES, in_flight=came.waited, acknowledged=came.confirmed + came.expired), came.violations


async def _claim(fleet: Fleet, seed: int) -> tuple[Row, list[str]]:
    async with _apis(fleet) as apis:
        came = await claim_in_random_order(apis, fleet.home.url(), claims=CLAIMS, skus=SKUS, seed=seed)
    found = [*came.violations, *([f"{came.deadlocks} deadlocks"] if came.deadlocks else [])]
    return Row(CLAIM, injected=CLAIMS, in_flight=CLAIMS, acknowledged=came.done + came.refused), found


async def _model(fleet: Fleet, seed: int) -> tuple[Row, list[str]]:
    url = await _empty_database(fleet, "tcc_model")
    row = Row(MODEL, injected=EXAMPLES, in_flight=EXAMPLES, acknowledged=EXAMPLES)
    try:
        await asyncio.to_thread(run_model, url, fleet.direct | {"TCC_DATABASE_URL": url}, EXAMPLES, seed)
    except Exception as error:  # noqa: BLE001 - whatever the model found, or broke on, is a finding
        return row, [f"{type(error).__name__}: {error}"]
    return row, []


async def _empty_database(fleet: Fleet, name: str) -> str:
    await asyncio.to_thread(fleet.home.create_database, name)
    url = fleet.home.url(name)
    database = Database(url, application="faults")
    try:
        await migrate(database, RESOURCES, RESOURCES)
    finally:
        await database.close()
    return url
