"""What the tests of recovery and of workers share: layouts of databases, crashes, and patience with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from tcc.checks import findings
from tcc.commands import Context, Outcome, ReservationView
from tcc.dev.servers import PostgresServer, ValkeyServer
from tcc.groups import Group, Result
from tcc.idempotency import Claim, KeyRef, fingerprint
from tcc.ids import new_id
from tcc.knowledge import Transaction
from tcc.machine import TERMINAL, Event, Reason, State
from tcc.resource import Finding
from tcc.service import Service
from tcc.sweeps import Sweeper
from tests.client import new_key, whole_order
from tests.conftest import new_database
from tests.gateways.process import SandboxProcess

T = TypeVar("T")

TENANT = "default"
CONTEXT = Context(TENANT, "tests", "tests")
LAYOUTS = ("one database", "three databases")


@pytest.fixture(scope="session")
def inventory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The inventory's own PostgreSQL; whoever kills it starts it again."""
    with PostgresServer(tmp_path_factory.mktemp("inventory"), settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def payments_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The payments' own PostgreSQL; whoever kills it starts it again."""
    with PostgresServer(tmp_path_factory.mktemp("payments"), settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> str:
    """Where the resources live. Parametrise it with `in_both_layouts`."""
    return str(getattr(request, "param", LAYOUTS[0]))


in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
in_three_databases = pytest.mark.parametrize("layout", LAYOUTS[1:], indirect=True)


_ELSEWHERE = {
    "TCC_DATABASE_URL": "inventory_items, payments",
    "TCC_INVENTORY_DATABASE_URL": "payments, orders",
    "TCC_PAYMENTS_DATABASE_URL": "inventory_items, orders",
}
"""The tables of resources that live in another database, where each has its own."""


@pytest_asyncio.fixture
async def environment(
    layout: str, database_url: str, valkey: ValkeyServer, sandbox: SandboxProcess, request: pytest.FixtureRequest
) -> dict[str, str]:
    """Environment variables for a service of the test's own, in its layout. Short leases: crashes heal at once."""
    chosen = {
        "TCC_DATABASE_URL": database_url,
        "TCC_REDIS_URL": valkey.url,
        "TCC_GATEWAY_URL": sandbox.url,
        "TCC_LEASE_SECONDS": "0.5",
        "TCC_RETRY_BASE_SECONDS": "0.05",
        "TCC_GRACE_SECONDS": "1",
        "TCC_SWEEP_INTERVAL_SECONDS": "0.1",
        "TCC_LOG_FORMAT": "console",
        "TCC_LOG_LEVEL": "warning",
    }
    if layout == LAYOUTS[1]:
        chosen["TCC_INVENTORY_DATABASE_URL"] = await new_database(request.getfixturevalue("inventory_server"))
        chosen["TCC_PAYMENTS_DATABASE_URL"] = await new_database(request.getfixturevalue("payments_server"))
        for name, elsewhere in _ELSEWHERE.items():
            async with raw(chosen[name]) as connection:
                await connection.execute(f"DROP TABLE {elsewhere}")
    return chosen


async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = 15, every: float = 0.02) -> T:
    """Ask again and again until what comes back is true, and return it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        found = await condition()
        if found:
            return found
        assert loop.time() < deadline, f"still {found!r} after {within} s"
        await asyncio.sleep(every)


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection past everything of ours."""
    parsed = make_url(url)
    connection = await asyncpg.connect(
        host=parsed.host, port=parsed.port, user=parsed.username, database=parsed.database
    )
    try:
        yield connection
    finally:
        await connection.close()


async def somebody_waits(holder: asyncpg.Connection[Any]) -> bool:
    """Whether somebody waits for a lock that this connection holds."""
    sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
    return bool(await holder.fetchval(sql))


async def put_stock(service: Service, sku: str, on_hand: int) -> None:
    """Units on the shelf."""
    async with service.stores.of("inventory").database.reads.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO inventory_items (tenant_id, sku, location, on_hand, available) "
            "VALUES ('default', $1, 'default', $2, $2) ON CONFLICT (tenant_id, sku, location) DO UPDATE "
            "SET on_hand = EXCLUDED.on_hand + inventory_items.held, available = EXCLUDED.on_hand",
            (sku, on_hand),
        )


async def shelf(service: Service, sku: str) -> tuple[int, int, int]:
    """(available, held, sold)."""
    async with service.stores.of("inventory").database.reads.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT available, held, sold FROM inventory_items WHERE sku = $1", (sku,)
        )
        row = found.one()
    return row.available, row.held, row.sold


def stock(*lines: tuple[str, int]) -> msgspec.Raw:
    """A claim on stock."""
    return msgspec.Raw(msgspec.json.encode({"lines": [{"sku": sku, "quantity": n} for sku, n in lines]}))


def card(method: str = "tok_ok", amount: int = 500) -> msgspec.Raw:
    """A claim on a card."""
    return msgspec.Raw(msgspec.json.encode({"amount": amount, "currency": "EUR", "payment_method": method}))


async def hold(
    service: Service, resource: str, claim: msgspec.Raw, *, id: UUID | None = None, ttl_seconds: float = 60
) -> Outcome[ReservationView]:
    """Try one reservation; a card is not asked for yet."""
    result = await service.reserver.hold(
        CONTEXT,
        resource=resource,
        id=id or new_id(),
        raw=claim,
        ttl_seconds=ttl_seconds,
        reference=None,
        claim=None,
        reply=None,
    )
    outcome: Outcome[ReservationView] = result.outcomes[0]
    return outcome


async def begin(
    service: Service,
    branches: Sequence[dict[str, Any]],
    *,
    id: UUID | None = None,
    confirm: str = "auto",
    ttl_seconds: float = 60,
) -> Transaction:
    """Record a transaction, and drive it no further than its first commit takes it."""
    id = id or new_id()
    begun = await service.coordinator.begin(
        CONTEXT,
        id=id,
        branches=[(b["resource"], msgspec.Raw(msgspec.json.encode(b["claim"]))) for b in branches],
        confirm=confirm,
        ttl_seconds=ttl_seconds,
        reference=None,
        claim=Claim(KeyRef(TENANT, "tests", "transactions.begin", new_key()), fingerprint(id.bytes), id),
        reply=lambda _: None,
    )
    assert begun.transaction is not None
    return begun.transaction


async def place(
    service: Service,
    sku: str,
    *,
    id: UUID | None = None,
    method: str = "tok_ok",
    confirm: str = "auto",
    ttl_seconds: float = 60,
    then: Event | None = None,
    patience_seconds: float = 0,
) -> Transaction:
    """A whole order as a request would place it; a manual one is then told to confirm or cancel, if `then` says so."""
    transaction = await begin(service, whole_order(sku, method), id=id, confirm=confirm, ttl_seconds=ttl_seconds)
    transaction = await service.coordinator.drive(CONTEXT, transaction, patience_seconds=patience_seconds)
    if then is None:
        return transaction
    reason = Reason.REQUESTED if then is Event.CANCEL else None
    await service.coordinator.decide(CONTEXT, transaction.view.id, then, reason=reason)
    transaction = await service.coordinator.load(TENANT, transaction.view.id)
    return await service.coordinator.drive(CONTEXT, transaction, patience_seconds=patience_seconds)


async def states(service: Service, id: UUID) -> tuple[State, list[State | None]]:
    """A transaction's state, and its branches'."""
    transaction = await service.coordinator.load(TENANT, id)
    return transaction.view.state, [branch.state for branch in transaction.branches]


async def swept_to_the_end(service: Service, ids: Sequence[UUID], *, within: float = 20) -> dict[UUID, Transaction]:
    """Sweep until all of these transactions are at their end."""
    sweeper = Sweeper(service, "worker")

    async def all_at_their_end() -> dict[UUID, Transaction]:
        await sweeper.transactions(500)
        found = [await service.coordinator.load(TENANT, id) for id in ids]
        ended = [transaction for transaction in found if transaction.view.state in TERMINAL]
        return {t.view.id: t for t in ended} if len(ended) == len(ids) else {}

    return await eventually(all_at_their_end, within=within, every=0.05)


async def broken(service: Service, *, reconcile: bool = False) -> list[Finding]:
    """What breaks the invariants."""
    every = findings(service, tenant_id=TENANT, recent=100_000, reconcile=reconcile)
    return [finding async for _, found in every for finding in found]


def effects_at_the_gateway(sandbox: SandboxProcess, reservation_id: UUID) -> list[str]:
    """What the witness has done for a reservation, each effect once. Every operation must have used one key."""
    entries = sandbox.ledger(reference=str(reservation_id))["operations"]
    keys: dict[str, set[str]] = {}
    for entry in entries:
        keys.setdefault(entry["operation"], set()).add(entry["key"])
    assert all(len(used) == 1 for used in keys.values()), keys
    return [entry["operation"] for entry in entries if entry["had_effect"]]


def payment_of(transaction: Transaction) -> UUID:
    """The reservation on the card."""
    (id,) = (branch.plan.id for branch in transaction.branches if branch.plan.resource == "payments")
    return id


class Crash(BaseException):
    """The process is gone: nothing of it catches this."""


class CrashingProcess:
    """A service whose process dies at its n-th commit: `before` it, though a gateway may have answered, or `after`."""

    def __init__(self, service: Service, *, at: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = at
        self._when = when
        self._dead = False
        for batcher, _ in service.stores.distinct():
            monkeypatch.setattr(batcher, "submit", self._doomed(batcher.submit))

    def _doomed(self, submit: Callable[[Group], Awaitable[Result]]) -> Callable[[Group], Awaitable[Result]]:
        async def doomed(group: Group) -> Result:
            if self._dead:
                raise Crash
            self._left -= 1
            if self._left > 0:
                return await submit(group)
            self._dead = True
            if self._when == "after":
                await submit(group)
            raise Crash

        return doomed


def conflicts(service: Service) -> float:
    """How many batches of a service lost against another transaction: deadlocks, above all."""
    return service.metrics.registry.get_sample_value("tcc_batch_failures_total", {"failure": "conflict"}) or 0.0
