"""Clients as good ones are: each intent under a key of its own, asked again under the same key until it is answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import msgspec

from tcc.ids import new_id
from tests.client import Answer
from tests.faults.diary import Diary, Intent
from tests.faults.fleet import APIS, SPARE_API, Fleet

SHOPPERS: Final = 10
PATIENCE_SECONDS: Final = 45.0
"""How long a client asks again before it gives up, not knowing."""
TIMEOUT_SECONDS: Final = 8.0
SHORT_SECONDS: Final = 3.0
"""How long those hold that are to be extended."""
AGAIN: Final = 0.1
"""The share of keys that are asked again, some time after they were answered."""

SKUS: Final = tuple(f"SKU-{n:02}" for n in range(20))
SCARCE: Final = tuple(f"LAST-{n}" for n in range(3))
ON_HAND: Final = {**dict.fromkeys(SKUS, 1_000_000), **dict.fromkeys(SCARCE, 400)}
PRICE: Final = 250

METHODS: Final = {
    "tok_ok": 78,
    "tok_declined": 4,
    "tok_slow": 2,
    "tok_lost_reply": 4,
    "tok_500_after_success": 4,
    "tok_capture_fails_twice": 4,
    "tok_capture_refused": 1,
    "tok_auth_expires": 3,
}
SURPRISING: Final = frozenset({400, 404, 405, 413, 415, 422, 500, 501, 502, 504})
"""Statuses that a client which did nothing wrong must never see."""


class Balancer:
    """Sends clients to APIs that say they are ready, and hears of changes a little late, as balancers do."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._ready = set(APIS)

    def choose(self) -> str:
        return self._fleet.api_url(random.choice(sorted(self._ready) or list(APIS)))

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Until cancelled."""
        while True:
            for name in (*APIS, SPARE_API):
                (self._ready.add if await self._is_ready(session, name) else self._ready.discard)(name)
            await asyncio.sleep(0.2)

    async def _is_ready(self, session: aiohttp.ClientSession, name: str) -> bool:
        try:
            async with session.get(f"{self._fleet.api_url(name)}/readyz", timeout=aiohttp.ClientTimeout(1)) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


class Shoppers:
    """All clients. What they favour can be changed while they are at it."""

    def __init__(self, fleet: Fleet, diary: Diary, seed: int) -> None:
        self._diary = diary
        self._random = random.Random(seed)
        self._balancer = Balancer(fleet)
        self._session: aiohttp.ClientSession
        self._stopped = asyncio.Event()
        self._later: list[asyncio.Task[None]] = []
        self.favourite: str | None = None
        """The payment method that most orders use just now."""
        self.twice = 0.03
        """The share of requests that are sent twice at the same time."""
        self.scrambled = 0.04
        """The share of intents whose requests arrive in any order."""
        self.clean = False
        """Whether a request that fails by anything but a 503 that says so is a violation."""

    @asynccontextmanager
    async def shopping(self, shoppers: int) -> AsyncIterator[None]:
        """Clients come and go until the block ends; then those that are there finish what they are at."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self._session = session
            await self._stock_up()
            watching = asyncio.create_task(self._balancer.watch(session))
            going = [asyncio.create_task(self._shop()) for _ in range(shoppers)]
            try:
                yield
                self._stopped.set()
                await asyncio.gather(*going)
                await asyncio.gather(*self._later)
            finally:
                for task in (watching, *going, *self._later):
                    task.cancel()
                await asyncio.gather(watching, *going, return_exceptions=True)

    async def abandon(self, holds: int, *, ttl_seconds: float, within: float) -> int:
        """Hold stock, and forget it. How many weren't given back after so many seconds."""
        return sum(await asyncio.gather(*(self._forgotten(ttl_seconds, within) for _ in range(holds))))

    async def _forgotten(self, ttl_seconds: float, within: float) -> bool:
        id = str(new_id())
        intent = self._diary.begin(Intent(id, "inventory", lines=((SKUS[0], 1),), id=id))
        base = "/v1/inventory/reservations"
        body = {**_stock(intent), "id": id, "ttl_seconds": ttl_seconds, "reference": id}
        answer = await self._ask(intent, "POST", base, body)
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        while answer is not None and answer.json.get("state") != "cancelled" and loop.time() < until:
            await asyncio.sleep(0.1)
            answer = await self._ask(intent, "GET", f"{base}/{id}")
        self._diary.end(intent, known=answer is not None)
        return answer is None or answer.json.get("state") != "cancelled"

    async def _stock_up(self) -> None:
        for sku, on_hand in ON_HAND.items():
            await self._once("PUT", f"/v1/inventory/items/{sku}", {"on_hand": on_hand}, None)

    async def _shop(self) -> None:
        while not self._stopped.is_set():
            intent = self._diary.begin(self._draw())
            try:
                known = await self._pursue(intent)
            except Exception as error:  # noqa: BLE001 - a mistake of the harness must not pass for silence
                self._diary.violate("harness", f"a client broke: {error!r}")
                known = False
            self._diary.end(intent, known=known)
            await asyncio.sleep(self._random.uniform(0.05, 0.25))

    def _draw(self) -> Intent:
        dice = self._random.random()
        lines: dict[str, int] = {}
        for _ in range(self._random.choice((1, 1, 2, 3))):
            sku = self._random.choice(SCARCE if self._random.random() < 0.05 else SKUS)
            lines[sku] = self._random.randint(1, 3)
        kind = "order" if dice < 0.6 else "inventory" if dice < 0.85 else "payments"
        contested = self._random.random() < self.scrambled
        method = None
        if kind != "inventory":
            method = self._random.choices(list(METHODS), list(METHODS.values()))[0]
            if self.favourite and self._random.random() < 0.7:
                method = self.favourite
        id = new_id()
        return Intent(
            reference=str(id),
            kind=kind,
            lines=() if kind == "payments" else tuple(lines.items()),
            amount=0 if kind == "inventory" else PRICE * sum(lines.values()),
            method=method,
            contested=contested,
            extends=not contested and self._random.random() < 0.05,
            id=None if kind == "order" else str(id),
        )

    async def _pursue(self, intent: Intent) -> bool:
        """Whether the client knows, at the end, what became of it."""
        if intent.kind == "order":
            return await self._order(intent)
        if intent.kind == "inventory" and intent.contested:
            return await self._scramble(intent)
        return await self._single(intent)

    async def _order(self, intent: Intent) -> bool:
        chosen = intent.contested or intent.extends
        manual = chosen or self._random.random() < 0.4
        abandoned = manual and not chosen and self._random.random() < 0.2
        body = {
            "branches": _branches(intent),
            "confirm": "manual" if manual else "auto",
            "reference": intent.reference,
            "ttl_seconds": _ttl_seconds(intent, abandoned),
        }
        answer = await self._ask(intent, "POST", "/v1/transactions", body, key=intent.reference)
        if answer is None:
            return False
        if answer.status >= 400:
            self._diary.told(intent, "cancelled")
            return True
        intent.id, intent.promised = answer.json["id"], True
        state = answer.json["state"] if answer.status == 201 else None
        if answer.status == 201 and not manual and state != "confirmed":
            self._diary.violate("contract", f"order {intent.reference}: 201 says {state}")
        state = await self._follow(intent, state, {"tried"} if manual else set())
        if state != "tried" or abandoned:
            return state is not None
        return await self._decide(intent, f"/v1/transactions/{intent.id}")

    async def _single(self, intent: Intent) -> bool:
        abandoned = not (intent.contested or intent.extends) and self._random.random() < 0.15
        claim = _stock(intent) if intent.kind == "inventory" else _card(intent)
        body = {**claim, "id": intent.id, "ttl_seconds": _ttl_seconds(intent, abandoned), "reference": intent.reference}
        answer = await self._ask(intent, "POST", f"/v1/{intent.kind}/reservations", body, key=intent.reference)
        if answer is None:
            return False
        if answer.status >= 400:
            self._diary.told(intent, "cancelled")
            return True
        intent.promised = True
        state = await self._follow(intent, answer.json["state"], {"tried"})
        if state != "tried" or abandoned:
            return state is not None
        return await self._decide(intent, f"/v1/{intent.kind}/reservations/{intent.id}")

    async def _decide(self, intent: Intent, path: str) -> bool:
        in_time = intent.extends and await self._extend(intent, path)
        if intent.contested:
            return await self._contest(intent, path)
        verb = "cancel" if self._random.random() < 0.25 else "confirm"
        key = str(new_id()) if self._random.random() < 0.5 else None
        answer = await self._ask(intent, "POST", f"{path}/{verb}", key=key)
        if answer is None:
            return False
        if answer.status >= 400:
            # A confirm that comes too late is told so; nobody but us cancels or confirms.
            if answer.code not in ("expired", "already_cancelled") or (in_time and intent.method != "tok_auth_expires"):
                self._diary.violate("contract", f"{verb} of {intent.kind} {intent.reference}: {answer.body.decode()}")
            self._diary.told(intent, "cancelled")
            return True
        return await self._follow(intent, answer.json["state"], set()) is not None

    async def _extend(self, intent: Intent, path: str) -> bool:
        """Hold it longer, and wait until it would be over without that. Whether it is to be confirmed in time now."""
        answer = await self._ask(intent, "POST", f"{path}/extend", {"ttl_seconds": 4 * PATIENCE_SECONDS})
        if answer is None or answer.status >= 300:
            return False
        await asyncio.sleep(SHORT_SECONDS)
        return True

    async def _contest(self, intent: Intent, path: str) -> bool:
        """Confirm and Cancel at once: one of them wins, and both are told of the same end."""
        verbs = self._random.sample(("confirm", "cancel"), 2)
        answers = await asyncio.gather(*(self._ask(intent, "POST", f"{path}/{verb}") for verb in verbs))
        for verb, answer in zip(verbs, answers, strict=True):
            if answer is None:
                return False
            won = answer.status < 300
            if not won and answer.code not in ("already_confirmed", "already_cancelled", "expired"):
                self._diary.violate("contract", f"{verb} of {intent.kind} {intent.reference}: {answer.body.decode()}")
            self._diary.told(intent, "confirmed" if won == (verb == "confirm") else "cancelled")
        return await self._follow(intent, None, set()) is not None

    async def _follow(self, intent: Intent, state: str | None, until: set[str]) -> str | None:
        """Ask how it stands until it is at its end, or waits for us, or for a person. None: we gave up."""
        path = f"/v1/transactions/{intent.id}?wait=2"
        if intent.kind != "order":
            path = f"/v1/{intent.kind}/reservations/{intent.id}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        while state not in {"confirmed", "cancelled", "refused", *until}:
            answer = await self._ask(intent, "GET", path)
            if answer is None or loop.time() > deadline:
                return None
            state = answer.json["state"]
            if answer.json["attention"]:
                intent.attention = True
                return "attention"
            if intent.kind != "order":
                await asyncio.sleep(0.1)
        if state in {"confirmed", "cancelled", "refused"}:
            self._diary.told(intent, "confirmed" if state == "confirmed" else "cancelled")
        return state

    async def _scramble(self, intent: Intent) -> bool:
        """Try, Confirm and Cancel of one id, twice each, in any order: whoever is first, all hear the same story."""
        base = "/v1/inventory/reservations"
        body = {**_stock(intent), "id": intent.id, "ttl_seconds": 20, "reference": intent.reference}

        async def late(method: str, path: str, body: Any) -> tuple[str, Answer | None]:
            await asyncio.sleep(self._random.uniform(0, 0.03))
            return path, await self._ask(intent, method, path, body, scrambled=True)

        tries = [late("POST", base, body) for _ in range(2)]
        verbs = self._random.sample(("confirm", "cancel", "confirm", "cancel"), self._random.randint(1, 3))
        decisions = [late("POST", f"{base}/{intent.id}/{verb}", None) for verb in verbs]
        answers = await asyncio.gather(*tries, *decisions)
        known = True
        for path, answer in answers:
            if answer is None:
                known = False
            elif answer.status < 300 and path.endswith("/confirm"):
                self._diary.told(intent, "confirmed")
            elif (answer.status < 300 and path.endswith("/cancel")) or (
                answer.status == 409 and answer.code in ("already_cancelled", "expired")
            ):
                self._diary.told(intent, "cancelled")
            elif answer.status == 201:
                intent.promised = True
        return known

    async def _ask(
        self,
        intent: Intent,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        scrambled: bool = False,
    ) -> Answer | None:
        """Ask until there is an answer. None: the client has lost patience."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        pause = 0.05
        while loop.time() < deadline:
            answers = await asyncio.gather(
                *(self._once(method, path, body, key) for _ in range(1 + (self._random.random() < self.twice)))
            )
            final = [a for a in answers if a is not None and not _try_again(a)]
            if final:
                self._compare(intent, path, key, final)
                if key and self._random.random() < AGAIN:
                    self._later.append(asyncio.create_task(self._ask_again(intent, path, body, key, final[0])))
                if final[0].status in SURPRISING and not (scrambled and final[0].status == 404):
                    self._surprise(intent, f"{method} {path}", final[0])
                    return None
                return final[0]
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
            pause = min(pause * 2, 1.0)
        return None

    async def _ask_again(self, intent: Intent, path: str, body: Any, key: str, first: Answer) -> None:
        """Whatever has become of it since, and whoever has died: a key keeps its reply."""
        await asyncio.sleep(self._random.uniform(0.5, 5))
        for _ in range(int(PATIENCE_SECONDS)):
            answer = await self._once("POST", path, body, key)
            if answer is not None and not _try_again(answer):
                self._compare(intent, path, key, [first, answer])
                return
            await asyncio.sleep(1)

    async def _once(self, method: str, path: str, body: Any, key: str | None) -> Answer | None:
        """One request; None where there is no telling what became of it."""
        self._diary.requests += 1
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        data = None if body is None else msgspec.json.encode(body)
        url = self._balancer.choose()
        try:
            async with self._session.request(method, url + path, data=data, headers=headers) as reply:
                answer = Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, await reply.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self.clean:
                self._diary.violate("drain", f"{method} {path} to {url} failed: {error!r}")
            return None
        if answer.status == 503 and not (answer.json.get("retryable") and "retry-after" in answer.headers):
            self._diary.violate("contract", f"a 503 that doesn't say when to come again: {answer.body.decode()}")
        return answer

    def _compare(self, intent: Intent, path: str, key: str | None, answers: Sequence[Answer]) -> None:
        """One key has one reply."""
        if key and len({(a.status, a.body) for a in answers}) > 1:
            said = " / ".join(f"{a.status} {a.body.decode()}" for a in answers)
            self._diary.violate("I6", f"{path} of {intent.reference} has two replies: {said}")

    def _surprise(self, intent: Intent, what: str, answer: Answer) -> None:
        invariant = "I5" if answer.status == 404 and intent.promised else "contract"
        said = answer.body.decode(errors="replace")[:300]
        self._diary.violate(invariant, f"{what} of {intent.kind} {intent.reference}: {answer.status} {said}")


def _ttl_seconds(intent: Intent, abandoned: bool) -> float:
    return SHORT_SECONDS if intent.extends else 2 if abandoned else 20


def _try_again(answer: Answer) -> bool:
    if answer.status == 503:
        return True
    return answer.status == 409 and answer.code == "request_in_flight"


def _stock(intent: Intent) -> dict[str, Any]:
    return {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in intent.lines]}


def _card(intent: Intent) -> dict[str, Any]:
    return {"amount": intent.amount, "currency": "EUR", "payment_method": intent.method}


def _branches(intent: Intent) -> list[dict[str, Any]]:
    lines = [{"sku": sku, "quantity": quantity, "unit_amount": PRICE} for sku, quantity in intent.lines]
    return [
        {"resource": "inventory", "claim": _stock(intent)},
        {"resource": "payments", "claim": _card(intent)},
        {"resource": "orders", "claim": {"customer": "ada", "currency": "EUR", "lines": lines}},
    ]
