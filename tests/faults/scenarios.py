"""What happens too seldom by itself: played on purpose, on the same fleet, once everything else is quiet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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

RACES: Final = 2000
CLAIMS: Final = 1000
SKUS: Final = 8
EXAMPLES: Final = 60


async def play_scenarios(fleet: Fleet, diary: Diary, seed: int, say: Callable[[str], None]) -> list[Row]:
    """A row for each of them; what is broken goes into the diary."""
    home = f"{fleet.home.url()}"
    rows = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        apis = [Api(session, fleet.api_url(name)) for name in APIS]
        races = await race_expiry(apis, home, rounds=RACES, seed=seed)
        for what in races.violations:
            diary.violate("I4", what)
        say(f"confirm within 50 ms of expiry: {races.confirmed} confirmed, {races.expired} expired")
        rows.append(_row("confirm within 50 ms of expiry", RACES, races.waited, races.violations))
        claims = await claim_in_random_order(apis, home, claims=CLAIMS, skus=SKUS, seed=seed)
        found = [*claims.violations, *([f"{claims.deadlocks} deadlocks"] if claims.deadlocks else [])]
        for what in found:
            diary.violate("deadlock", what)
        say(f"claims on many SKUs in any order: {claims.done} done, {claims.refused} refused")
        rows.append(_row("claims on many SKUs in any order", CLAIMS, claims.done + claims.refused, found))
    url = await _empty_database(fleet, "tcc_model")
    found = []
    try:
        await asyncio.to_thread(run_model, url, fleet.direct | {"TCC_DATABASE_URL": url}, EXAMPLES, seed)
    except Exception as error:  # noqa: BLE001 - whatever the model found, or broke on, is a finding
        found = [f"{type(error).__name__}: {error}"]
        diary.violate("model", found[0])
    say(f"orders of commands against the model: {EXAMPLES} examples")
    rows.append(_row("orders of commands against the model", EXAMPLES, EXAMPLES, found))
    return rows


def _row(name: str, played: int, in_flight: int, violations: list[str]) -> Row:
    return Row(name, injected=played, in_flight=in_flight, acknowledged=played, violations=len(violations))


async def _empty_database(fleet: Fleet, name: str) -> str:
    await asyncio.to_thread(fleet.home.create_database, name)
    url = fleet.home.url(name)
    database = Database(url, application="faults")
    try:
        await migrate(database, RESOURCES, RESOURCES)
    finally:
        await database.close()
    return url
