"""The service as `test_model.py` asks it: each question in its smallest step, for a tenant of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from resources.registry import RESOURCES
from tcc import idempotency, reads
from tcc.commands import Context, Outcome
from tcc.groups import FORGET
from tcc.idempotency import Held, KeyRef, Reply, fingerprint
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tcc.machine import Event, Reason
from tcc.service import Service, open_service
from tcc.settings import Settings
from tcc.sweeps import Sweeper
from tests.recovery.model import Answer, Ask, Claim, Key
from tests.recovery.scenes import raw

T = TypeVar("T")

REASONS: Final = {Event.CANCEL: Reason.REQUESTED, Event.EXPIRE: Reason.EXPIRED}
NEVER: Final = datetime.min.replace(tzinfo=UTC)
"""When what was not done was done."""

STOCK: Final = """
INSERT INTO inventory_items (tenant_id, sku, location, on_hand, available) VALUES ($1, $2, 'default', $3, $3)"""
TIME_IS_UP: Final = """
UPDATE %s SET expires_at = clock_timestamp() - interval '1 second',
  due_at = CASE WHEN due_at IS NOT NULL THEN clock_timestamp() - interval '1 second' END
WHERE tenant_id = $1 AND id = $2 RETURNING expires_at"""
BRANCHES_ARE_PAST: Final = """
UPDATE reservations SET expires_at = LEAST(expires_at, clock_timestamp())
WHERE tenant_id = $1 AND transaction_id = $2"""
LEASE_IS_OVER: Final = """
UPDATE %s SET due_at = clock_timestamp() - interval '1 second'
WHERE tenant_id = $1 AND id = $2 AND due_at IS NOT NULL"""

SHELVES: Final = "SELECT sku, on_hand, available, held, sold FROM inventory_items WHERE tenant_id = $1"
RESERVATIONS: Final = """
SELECT resource, id, state, reason, transaction_id, attention IS NOT NULL AS attention, expires_at, expires_cap
FROM reservations WHERE tenant_id = $1"""
TRANSACTIONS: Final = """
SELECT id, state, reason, attention IS NOT NULL AS attention, expires_at, expires_cap
FROM transactions WHERE tenant_id = $1"""
BOOKED: Final = """
SELECT 'orders' AS resource, id, state FROM orders WHERE tenant_id = $1
UNION ALL SELECT 'payments', id, state FROM payments WHERE tenant_id = $1"""


class Rows(msgspec.Struct, frozen=True):
    """Everything that a tenant has in the database."""

    shelves: list[Any]
    reservations: list[Any]
    transactions: list[Any]
    booked: list[Any]
    """What orders and payments say in tables of their own."""


class World:
    """A service, and a connection past everything of it, in an event loop of their own."""

    def __init__(self, runner: asyncio.Runner, service: Service, connection: asyncpg.Connection[Any]) -> None:
        self.service = service
        self.connection = connection
        self._runner = runner

    def run(self, *work: Coroutine[Any, Any, T]) -> list[T]:
        """What comes of all of it, at once."""

        async def together() -> list[T]:
            return list(await asyncio.gather(*work))

        return self._runner.run(together())


@contextmanager
def opened(database_url: str, environment: dict[str, str]) -> Iterator[World]:
    """A service on one database, with the gateway in its process, and leases that don't run out by themselves."""
    given = {name: value for name, value in environment.items() if not name.endswith("_DATABASE_URL")}
    given |= {"TCC_DATABASE_URL": database_url, "TCC_GATEWAY_URL": "instant:"}
    given |= {"TCC_LEASE_SECONDS": "86400", "TCC_GRACE_SECONDS": "600"}
    stack = AsyncExitStack()

    async def open_both() -> tuple[Service, asyncpg.Connection[Any]]:
        service = open_service(Settings.from_environment(given), RESOURCES, given, application="tcc-model")
        stack.push_async_callback(service.close)
        return service, await stack.enter_async_context(raw(database_url))

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        try:
            yield World(runner, *runner.run(open_both()))
        finally:
            runner.run(stack.aclose())


class Tenant:
    """What is asked on behalf of one tenant, by clients, by workers and by time."""

    def __init__(self, world: World) -> None:
        self.id = f"model-{new_id().hex}"
        self._connection = world.connection
        self._service = world.service
        self._context = Context(self.id, "model", "model")
        self._sweeper = Sweeper(world.service, "worker")
        self._since = datetime.now(UTC) - timedelta(minutes=1)

    async def stock(self, sku: str, units: int) -> None:
        await self._connection.execute(STOCK, self.id, sku, units)

    async def ask(self, ask: Ask) -> tuple[Answer, datetime]:
        """What was answered, and when by the database's clock."""
        ref = KeyRef(self.id, "model", f"{ask.resource}.{ask.verb}", ask.key or "")
        key = idempotency.Claim(ref, fingerprint(repr(ask).encode()), ask.id) if ask.key else None
        if ask.claim:
            result = await self._service.reserver.hold(
                self._context,
                resource=ask.resource,
                id=ask.id,
                raw=_body(ask.claim),
                ttl_seconds=ask.ttl_seconds,
                reference=None,
                claim=key,
                reply=_reply,
            )
        else:
            event = Event(ask.verb)
            result = await self._service.reserver.move(
                self._context,
                resource=ask.resource,
                id=ask.id,
                event=event,
                reason=REASONS.get(event),
                ttl_seconds=ask.ttl_seconds if event is Event.EXTEND else None,
                claim=key,
                reply=_reply,
            )
        if held := result.held:
            mine = key is not None and held.fingerprint == key.fingerprint
            return (f"replayed {_said(held)}" if mine else "idempotency_key_reused", None, None), NEVER
        return _answer(result.outcomes[0])

    async def settle(self, key: Key) -> None:
        """Ask the outside, as whoever has moved the reservation does."""
        resource, id = key
        key = (resource, id)
        found = await reads.reservations(self._service.stores.of(resource).database, self.id, [key])
        if key in found:
            await self._service.reserver.settle(self._context, found[key])

    async def begin(
        self, id: UUID, request: str, claims: Sequence[Claim], *, auto: bool, ttl_seconds: float, driven: bool
    ) -> tuple[Transaction | None, Held | None]:
        """The transaction as it was begun, or who holds the request's key."""
        ref = KeyRef(self.id, "model", "transactions.begin", request)
        begun = await self._service.coordinator.begin(
            self._context,
            id=id,
            branches=[(claim.resource, _body(claim)) for claim in claims],
            confirm="auto" if auto else "manual",
            ttl_seconds=ttl_seconds,
            reference=None,
            claim=idempotency.Claim(ref, asked(claims, auto, ttl_seconds), id),
            reply=_begun,
        )
        if driven and begun.transaction and begun.result.reply is None:
            await self._service.coordinator.drive(self._context, begun.transaction, answers=ref, reply=_begun)
        return begun.transaction, begun.result.held

    async def decide(self, id: UUID, event: str, ttl_seconds: float) -> tuple[Answer, datetime]:
        """The decision alone; an extension holds the branches longer too."""
        said = Event(event)
        seconds = ttl_seconds if said is Event.EXTEND else None
        result = await self._service.coordinator.decide(
            self._context, id, said, reason=REASONS.get(said), ttl_seconds=seconds
        )
        outcome: Outcome[Any] = result.outcomes[0]
        if outcome.ok and said is Event.EXTEND:
            transaction = await self._service.coordinator.load(self.id, id)
            await self._service.coordinator.extend_branches(self._context, transaction, ttl_seconds)
        return _answer(outcome)

    async def drive(self, id: UUID) -> None:
        transaction = await self._service.coordinator.load(self.id, id)
        await self._service.coordinator.drive(self._context, transaction)

    async def sweep_reservations(self) -> None:
        await self._sweeper.reservations(500)

    async def sweep_transactions(self) -> None:
        await self._sweeper.transactions(500)

    async def time_is_up(self, table: str, id: UUID) -> datetime:
        """Move its time into the past, and that of its branches, which are their transaction's all the same."""
        moment: datetime = await self._connection.fetchval(TIME_IS_UP % table, self.id, id)
        await self._connection.execute(BRANCHES_ARE_PAST, self.id, id)
        return moment

    async def lease_is_over(self, table: str, id: UUID) -> None:
        await self._connection.execute(LEASE_IS_OVER % table, self.id, id)

    async def read(self) -> Rows:
        queries = (SHELVES, RESERVATIONS, TRANSACTIONS, BOOKED)
        return Rows(*[await self._connection.fetch(query, self.id) for query in queries])

    async def standings(self) -> dict[UUID, str]:
        """What the gateway holds, by reservation."""
        theirs = self._service.stores.external("payments").claims_of_theirs(self._since)
        return {UUID(reference): standing async for reference, standing in theirs}


def asked(claims: Sequence[Claim], auto: bool, ttl_seconds: float) -> bytes:
    """The fingerprint of a request to begin."""
    return fingerprint(repr((claims, auto, ttl_seconds)).encode())


def _body(claim: Claim) -> msgspec.Raw:
    """The claim as its resource takes it."""
    if claim.resource == "payments":
        body: dict[str, Any] = {"amount": 500, "currency": "EUR", "payment_method": claim.method}
    else:
        body = {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in claim.lines]}
    if claim.resource == "orders":
        body["lines"] = [line | {"unit_amount": 100} for line in body["lines"]]
        body |= {"customer": "ada", "currency": "EUR"}
    return msgspec.Raw(msgspec.json.encode(body))


def _reply(outcome: Outcome[Any]) -> Reply:
    """As over HTTP: a claim that makes no sense leaves its key free."""
    return FORGET if outcome.code == "unknown_sku" else Reply(200, outcome.code.encode())


def _begun(transaction: Transaction) -> Reply | None:
    """As over HTTP: once it has ended, or waits for its client."""
    state, manual = transaction.view.state, transaction.view.confirm == "manual"
    final = state in ("confirmed", "cancelled") or (state == "tried" and manual)
    return Reply(200, state.encode()) if final else None


def _said(held: Held) -> str:
    return held.reply.body.decode() if held.reply else "nothing"


def _answer(outcome: Outcome[Any]) -> tuple[Answer, datetime]:
    view = outcome.view
    return (outcome.code, str(view.state) if view else None, view.reason if view else None), outcome.now
