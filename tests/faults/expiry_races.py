"""Confirm and expiry at the same instant, with the row's lock held across it: exactly one has its way.

What the product says of the time is checked against what it can't know: when a connection of our own held the row.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

import aiohttp
import asyncpg
import msgspec
from sqlalchemy.engine import make_url

from tests.client import Answer, Api, new_key

APPLICATION: Final = "faults"
"""What PostgreSQL calls our own connections, so that nobody takes them for the product's."""

JITTER_SECONDS: Final = 0.05
WAVE: Final = 25
"""Rounds that expire together. An API has two runners for its batches, which locked rows hold up: of each wave and API,
all locks are released at one moment."""
STAGGER_SECONDS: Final = 0.2
"""Between two waves, so that the locks of one don't hold up the confirms of the next."""
WAVES_AT_ONCE: Final = 12
LOCK_AHEAD_SECONDS: Final = 0.08
TTL_SECONDS: Final = 1.0
"""The shortest that the API takes."""
SKUS: Final = 4
SETTLE_SECONDS: Final = 40.0
"""More than a lease: a sweep that failed at a row comes back to it after that."""

AWAY: Final = frozenset({502, 503, 504})
"""What is worth asking again. A 500 is not among them: it would come out well the second time, and nobody know."""
ENDINGS: Final = frozenset({"confirm", "cancel", "expire"})

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"


class ExpiryRaces(msgspec.Struct, frozen=True):
    """How the races came out. `waited`: confirms that were sent while we held the row's lock, and answered later."""

    rounds: int
    confirmed: int
    expired: int
    waited: int
    violations: list[str]


class _Lock(msgspec.Struct, frozen=True):
    """From when until when, on the database's clock, nobody else can have held the row."""

    taken_at: datetime
    released_at: datetime


class _Round(msgspec.Struct):
    """One reservation. `confirm_after`: seconds from its expiry; None for as soon as it is held."""

    sku: str
    api: Api
    locked: bool
    confirm_after: float | None
    id: UUID | None = None
    expires_at: datetime | None = None
    lock: _Lock | None = None
    sent_at: datetime | None = None
    answer: Answer | None = None
    answered_at: datetime | None = None

    @property
    def waited(self) -> bool:
        if not (self.lock and self.sent_at and self.answered_at):
            return False
        return self.lock.taken_at <= self.sent_at < self.lock.released_at <= self.answered_at


class _Heat(msgspec.Struct, frozen=True):
    """Rounds of one wave at one API. `release_after`: seconds from their expiry; None where nothing is locked."""

    rounds: list[_Round]
    release_after: float | None


class Clock:
    """The database's clock, as this process tells it."""

    def __init__(self, ahead_seconds: float) -> None:
        self._ahead_seconds = ahead_seconds

    @classmethod
    async def of(cls, connection: Any) -> Clock:
        """Compare clocks: the reading that came back soonest is the best."""
        loop = asyncio.get_running_loop()
        readings = []
        for _ in range(7):
            before = loop.time()
            theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
            after = loop.time()
            readings.append((after - before, theirs.timestamp() - (before + after) / 2))
        return cls(min(readings)[1])

    def now(self) -> datetime:
        return datetime.fromtimestamp(asyncio.get_running_loop().time() + self._ahead_seconds, UTC)

    async def sleep_until(self, moment: datetime) -> None:
        await asyncio.sleep((moment - self.now()).total_seconds())


@asynccontextmanager
async def connections(database_url: str, *, most: int) -> AsyncIterator[Pool]:
    """Connections past everything of ours."""
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(
        dsn, min_size=min(2, most), max_size=most, server_settings={"application_name": APPLICATION}
    ) as pool:
        yield pool


async def persistently(
    api: Api, method: str, path: str, body: Any = None, *, key: str | None = None, within_seconds: float = 30
) -> Answer | None:
    """Ask as a good client does: again under the same key, until there is an answer that will stay.

    None: there was none in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    while loop.time() < deadline:
        pause = 0.1
        try:
            answer = await api.ask(method, path, body, key=key)
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(pause)
            continue
        again = answer.status in AWAY or (answer.status == 409 and answer.json["retryable"])
        if not again:
            return answer
        await asyncio.sleep(float(answer.headers.get("retry-after", pause)))
    return None


def said(answer: Answer | None) -> str:
    """An answer in words, after "was answered"."""
    return "never" if answer is None else f"{answer.status} {answer.body[:300].decode(errors='replace')}"


async def put_on_shelf(api: Api, sku: str, on_hand: int, location: str = "default") -> None:
    """Units of a SKU. Raises RuntimeError where there can be no races since there is no stock."""
    answer = await persistently(api, "PUT", f"/v1/inventory/items/{sku}", {"on_hand": on_hand, "location": location})
    if answer is None or answer.status != 200:
        raise RuntimeError(f"putting {sku} on the shelf was answered {said(answer)}")


def _nobody(_: int) -> None:
    """Nobody wants to know how far it has come."""


async def race_expiry(
    apis: Sequence[Api],
    database_url: str,
    *,
    rounds: int,
    seed: int,
    on_progress: Callable[[int], None] = _nobody,
) -> ExpiryRaces:
    """Confirm `rounds` reservations within 50 ms of their expiry, most of them while their rows are locked.

    `database_url`: where the inventory's reservations are. Somebody else must sweep. One round in ten is confirmed as
    soon as it is held, so that some are in time however slow the machine. `on_progress` is told the rounds done.
    """
    skus = [f"RACE-{new_key()[:8]}-{n}" for n in range(SKUS)]
    waves = _drawn(apis, skus, rounds, random.Random(seed))
    async with connections(database_url, most=2 * len(apis) + 6) as pool:
        for sku in skus:
            await put_on_shelf(apis[0], sku, rounds)
        races = _Races(pool, await Clock.of(pool), on_progress)
        async with asyncio.TaskGroup() as running:
            for wave in waves:
                await races.may_start()
                running.create_task(races.run(wave))
                await asyncio.sleep(STAGGER_SECONDS)
        every = [each for wave in waves for heat in wave for each in heat.rounds]
        return await _judge(pool, every, skus, races.violations)


def _drawn(apis: Sequence[Api], skus: Sequence[str], rounds: int, rng: random.Random) -> list[list[_Heat]]:
    """What is to happen, before it does, so that a seed says it all but for the machine's own timing."""
    waves: list[list[_Heat]] = []
    heats = 0
    for start in range(0, rounds, WAVE):
        numbers = range(start, min(start + WAVE, rounds))
        wave = []
        for n, api in enumerate(apis):
            # In turn: nothing locked, twice released before the expiry, twice after it.
            side = (None, -1, 1, -1, 1)[heats % 5]
            heats += 1
            drawn = [_round(api, rng.choice(skus), number, side, rng) for number in numbers[n :: len(apis)]]
            wave.append(_Heat(drawn, None if side is None else side * rng.uniform(0, JITTER_SECONDS)))
        waves.append(wave)
    return waves


def _round(api: Api, sku: str, number: int, side: int | None, rng: random.Random) -> _Round:
    if number % 10 == 0:
        return _Round(sku, api, locked=False, confirm_after=None)
    locked = side is not None and rng.random() < 0.8
    return _Round(sku, api, locked=locked, confirm_after=rng.uniform(-JITTER_SECONDS, JITTER_SECONDS))


class _Races:
    """The waves that are under way."""

    def __init__(self, pool: Pool, clock: Clock, on_progress: Callable[[int], None]) -> None:
        self.violations: list[str] = []
        self._pool = pool
        self._clock = clock
        self._on_progress = on_progress
        self._gate = asyncio.Semaphore(WAVES_AT_ONCE)
        self._trying_seconds = 0.0
        self._done = 0

    async def may_start(self) -> None:
        """Wait until there is room for a wave; `run` makes room again."""
        await self._gate.acquire()

    async def run(self, wave: Sequence[_Heat]) -> None:
        """Try a wave's reservations, then confirm them while we hold their rows."""
        try:
            rounds = [each for heat in wave for each in heat.rounds]
            await self._try_all(rounds)
            async with asyncio.TaskGroup() as running:
                for heat in wave:
                    running.create_task(self._lock(heat))
                for each in rounds:
                    running.create_task(self._confirm(each))
            self._done += len(rounds)
            self._on_progress(self._done)
        finally:
            self._gate.release()

    async def _try_all(self, rounds: Sequence[_Round]) -> None:
        """On a machine so slow that the holds would be over before they are known of, they are made longer."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        ttl_seconds = max(TTL_SECONDS, 0.5 + 3 * self._trying_seconds)
        await asyncio.gather(*(self._try(each, ttl_seconds) for each in rounds))
        self._trying_seconds = loop.time() - before
        found = await self._pool.fetch(
            "SELECT id, expires_at FROM reservations "
            "WHERE tenant_id = 'default' AND resource = 'inventory' AND id = ANY ($1::uuid[])",
            [each.id for each in rounds if each.id],
        )
        expiries = {row["id"]: row["expires_at"] for row in found}
        for each in rounds:
            each.expires_at = expiries.get(each.id)
            if each.id and each.expires_at is None:
                self.violations.append(f"{each.id} was answered 201, and isn't in the database.")

    async def _try(self, each: _Round, ttl_seconds: float) -> None:
        body = {"lines": [{"sku": each.sku, "quantity": 1}], "ttl_seconds": ttl_seconds}
        answer = await persistently(each.api, "POST", "/v1/inventory/reservations", body, key=new_key())
        if answer is not None and answer.status == 201:
            each.id = UUID(answer.json["id"])
        else:
            self.violations.append(f"A Try with plenty on hand was answered {said(answer)}.")

    async def _lock(self, heat: _Heat) -> None:
        """Hold the rows from shortly before their expiry until the moment drawn."""
        chosen = [each for each in heat.rounds if each.locked and each.expires_at]
        if heat.release_after is None or not chosen:
            return
        expiries = sorted(each.expires_at for each in chosen if each.expires_at)
        until = expiries[len(expiries) // 2] + timedelta(seconds=heat.release_after)
        await self._clock.sleep_until(expiries[0] - timedelta(seconds=LOCK_AHEAD_SECONDS))
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "SELECT FROM reservations WHERE tenant_id = 'default' AND resource = 'inventory' "
                "AND id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE",
                [each.id for each in chosen],
            )
            taken_at = await connection.fetchval("SELECT clock_timestamp()")
            await connection.execute(
                "SELECT pg_sleep(GREATEST(0, EXTRACT(epoch FROM $1::timestamptz - clock_timestamp())))", until
            )
            released_at = await connection.fetchval("SELECT clock_timestamp()")
        for each in chosen:
            each.lock = _Lock(taken_at, released_at)

    async def _confirm(self, each: _Round) -> None:
        if each.id is None or each.expires_at is None:
            return
        if each.confirm_after is not None:
            await self._clock.sleep_until(each.expires_at + timedelta(seconds=each.confirm_after))
        each.sent_at = self._clock.now()
        each.answer = await persistently(
            each.api, "POST", f"/v1/inventory/reservations/{each.id}/confirm", key=new_key()
        )
        each.answered_at = self._clock.now()


async def _judge(pool: Pool, rounds: Sequence[_Round], skus: Sequence[str], violations: list[str]) -> ExpiryRaces:
    """Compare what was answered with what is in the database, once nothing is under way there any more."""
    ids = [each.id for each in rounds if each.id]
    rows = await _at_their_end(pool, ids)
    entries: dict[UUID, list[Any]] = {}
    for entry in await pool.fetch(
        "SELECT subject_id, event, at FROM transitions WHERE tenant_id = 'default' AND filed_under = ANY ($1::uuid[])",
        ids,
    ):
        entries.setdefault(entry["subject_id"], []).append(entry)
    sold = dict.fromkeys(skus, 0)
    expired = 0
    for each in rounds:
        if each.id is None or each.id not in rows:
            continue
        row, journal = rows[each.id], entries.get(each.id, [])
        sold[each.sku] += row["state"] == "confirmed"
        expired += row["state"] == "cancelled"
        wrong = [*_wrong_answer(each, row), *_wrong_ending(row, journal), *_wrong_times(each, row, journal)]
        violations += [f"{each.id}: {what} {_circumstances(each, row)}" for what in wrong]
    violations += await _wrong_stock(pool, len(rounds), sold)
    waited = sum(each.waited for each in rounds)
    return ExpiryRaces(len(rounds), sum(sold.values()), expired, waited, violations)


async def _at_their_end(pool: Pool, ids: Sequence[UUID]) -> dict[UUID, Any]:
    """The rows, once none of them is held any more, or when it has been waited long enough for that."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    while True:
        rows = await pool.fetch(
            "SELECT id, state, reason, expires_at FROM reservations "
            "WHERE tenant_id = 'default' AND resource = 'inventory' AND id = ANY ($1::uuid[])",
            ids,
        )
        if loop.time() > deadline or all(row["state"] != "tried" for row in rows):
            return {row["id"]: row for row in rows}
        await asyncio.sleep(0.1)


def _wrong_answer(each: _Round, row: Any) -> Iterator[str]:
    """200 exactly if it is confirmed, else 409 `expired`."""
    confirmed = row["state"] == "confirmed"
    if each.answer is None:
        yield "The confirm was never answered."
    elif confirmed and not (each.answer.status == 200 and each.answer.json["state"] == "confirmed"):
        yield f"It is confirmed, and the confirm was answered {said(each.answer)}."
    elif not confirmed and not (each.answer.status == 409 and each.answer.code == "expired"):
        yield f"It isn't confirmed, and the confirm was answered {said(each.answer)}."


def _wrong_ending(row: Any, journal: Sequence[Any]) -> Iterator[str]:
    """Confirmed, or cancelled because it expired; and never both."""
    if row["state"] != "confirmed" and (row["state"], row["reason"]) != ("cancelled", "expired"):
        yield f"It ended {row['state']} ({row['reason']})."
    endings = [entry["event"] for entry in journal if entry["event"] in ENDINGS]
    if endings != ["confirm" if row["state"] == "confirmed" else "expire"]:
        yield f"It is {row['state']}, and its journal says {endings}."


def _wrong_times(each: _Round, row: Any, journal: Sequence[Any]) -> Iterator[str]:
    """Confirmed before its expiry, expired after it, and neither while we held the row."""
    for entry in journal:
        event, at = entry["event"], entry["at"]
        if event == "confirm" and at > row["expires_at"]:
            yield f"It was confirmed {_ms(at - row['expires_at'])} after its expiry."
        if event == "expire" and at < row["expires_at"]:
            yield f"It was expired {_ms(row['expires_at'] - at)} before its expiry."
        if each.lock and each.lock.taken_at <= at <= each.lock.released_at:
            yield f"Its {event} says that it was {_ms(each.lock.released_at - at)} before we released its lock."


async def _wrong_stock(pool: Pool, on_hand: int, sold: dict[str, int]) -> list[str]:
    rows = await pool.fetch(
        "SELECT sku, available, held, sold FROM inventory_items WHERE tenant_id = 'default' AND sku = ANY ($1)",
        list(sold),
    )
    found = {row["sku"]: (row["available"], row["held"], row["sold"]) for row in rows}
    return [
        f"{sku}: (available, held, sold) is {found.get(sku)}, and should be {(on_hand - units, 0, units)}."
        for sku, units in sold.items()
        if found.get(sku) != (on_hand - units, 0, units)
    ]


def _circumstances(each: _Round, row: Any) -> str:
    """When things happened, in ms from the expiry."""
    moments = {
        "locked": each.lock and each.lock.taken_at,
        "released": each.lock and each.lock.released_at,
        "sent": each.sent_at,
        "answered": each.answered_at,
    }
    return ", ".join(f"{what} at {_ms(at - row['expires_at'])}" for what, at in moments.items() if at)


def _ms(span: timedelta) -> str:
    return f"{span.total_seconds() * 1000:.1f} ms"
