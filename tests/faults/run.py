"""One run: the fleet, its clients, the nemesis and the witnesses, from start to verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.books import Books
from tests.faults.diary import Diary, Violation
from tests.faults.disk import small_disk
from tests.faults.fleet import Fleet
from tests.faults.nemesis import Nemesis, Row
from tests.faults.scenarios import play_scenarios
from tests.faults.shoppers import ON_HAND, SHOPPERS, Shoppers
from tests.faults.stage import Fault
from tests.faults.verdict import deadlocks, verdict
from tests.faults.watch import watched

LEAST_ACKNOWLEDGED: Final = 20
"""Acknowledged intents for each fault played: a run with fewer proves nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    rows: Sequence[Row]
    violations: Sequence[Violation]
    empty: Sequence[str]
    """Why the run proves nothing, if so."""
    intents: int
    acknowledged: int
    unknown: int
    requests: int
    deadlocks: int
    seconds: float

    @property
    def good(self) -> bool:
        return not self.violations and not self.empty


async def run(
    faults: Sequence[Fault],
    *,
    data: Path,
    seed: int,
    seconds: float,
    say: Callable[[str], None],
    clients: int = SHOPPERS,
    scenarios: Sequence[str] = (),
) -> Outcome:
    """Play every fault at least once, and go on for so many seconds; then the scenarios."""
    diary = Diary()

    def tell(line: str) -> None:
        say(f"[{diary.seconds:6.1f} s] {line}")

    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(data / "disk", 512 + int(seconds / 2)))
        fleet = Fleet(data, payments_data=disk and disk / "payments")
        await fleet.start()
        try:
            tell("the fleet is up")
            shoppers = Shoppers(fleet, diary, seed)
            nemesis = Nemesis(fleet, shoppers, diary, seed, tell)
            async with Books.opened(fleet) as books:
                async with shoppers.shopping(clients), watched(books, diary):
                    await nemesis.run(faults, seconds)
                for intent in diary.unknown:
                    tell(f"its client gave up: {intent.kind} {intent.reference} ({intent.method}), told {intent.told}")
                tell("all is healed; waiting until everything is at its end")
                await verdict(fleet, books, diary, ON_HAND)
            more = await play_scenarios(scenarios, fleet, diary, seed, tell)
            ended = deadlocks(fleet)
        finally:
            await fleet.stop()
    rows = [*nemesis.rows.values(), *more]
    return Outcome(
        rows=rows,
        violations=diary.violations,
        empty=_empty(rows, sum(row.injected for row in nemesis.rows.values()), diary),
        intents=len(diary.intents),
        acknowledged=diary.acknowledged,
        unknown=len(diary.unknown),
        requests=diary.requests,
        deadlocks=ended,
        seconds=diary.seconds,
    )


def _empty(rows: Sequence[Row], played: int, diary: Diary) -> Sequence[str]:
    reasons = [f"{row.fault} never hit anything in flight" for row in rows if not row.impossible and not row.in_flight]
    if diary.acknowledged < LEAST_ACKNOWLEDGED * played:
        reasons.append(f"only {diary.acknowledged} intents were acknowledged while {played} faults were played")
    return reasons
