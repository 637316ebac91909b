"""The order as a good team builds it: Litestar, and SQLAlchemy's ORM on asyncpg.

`--commits 3` commits as seldom as can be without a transaction open while the gateway is asked: before it authorises,
before it captures, and after. `--commits 9` commits each step by itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import click
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.params import Parameter
from sqlalchemy import Update, insert, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bench.peers import wire
from bench.peers.orm_tables import Entry, IdempotencyKey, Item, Order, Payment, Reservation, Transaction, now
from bench.peers.prepare import prepare
from bench.peers.serving import Answer, serve
from bench.peers.wire import IN_FLIGHT, LEASE, REUSED, Purchase, Refused, authorise, capture, insist

CONNECTIONS: Final = 24


class Conflict(Exception):
    """Somebody else has decided this order."""


class Placing:
    """One order, step by step, in one session."""

    def __init__(self, session: AsyncSession, purchase: Purchase, key: str, fingerprint: bytes, commits: int) -> None:
        self._session = session
        self._purchase = purchase
        self._key = key
        self._fingerprint = fingerprint
        self._every_step = commits == 9
        self._entries: list[dict[str, Any]] = []
        self._committed = False
        self._stock = self._reservation("inventory", purchase.stock_id, purchase.stock, "tried")
        self._charge = self._reservation("payments", purchase.payment_id, purchase.payment, "trying")
        self._booking = self._reservation("orders", purchase.order_id, purchase.order, "tried")
        claim = purchase.payment
        self._payment = Payment(
            id=purchase.payment_id,
            state="authorising",
            amount=claim.amount,
            currency=claim.currency,
            payment_method=claim.payment_method,
        )
        self._order = Order(
            id=purchase.order_id,
            number=purchase.number,
            state="pending",
            customer=purchase.order.customer,
            currency=purchase.order.currency,
            total=purchase.total,
            lines=purchase.order.lines,
        )

    async def place(self) -> Answer:
        """All steps. The shelf, which other orders want as well, is changed last in its transaction."""
        if not await self._begin():
            return await self._stored()
        try:
            await self._try()
            authorisation = await authorise(self._purchase)
        except Refused as refused:
            return await self._cancel(refused.code)
        await self._confirm(authorisation)
        await capture(self._purchase, authorisation)
        return await self._finish(authorisation)

    async def _begin(self) -> bool:
        """Whether the key is ours."""
        claim = upsert(IdempotencyKey).on_conflict_do_nothing().returning(IdempotencyKey.key)
        values = {"key": self._key, "fingerprint": self._fingerprint, "subject_id": self._purchase.id}
        if await self._session.scalar(claim, values) is None:
            return False
        self._session.add(
            Transaction(
                id=self._purchase.id,
                state="trying",
                expires_at=self._purchase.expires_at,
                due_at=self._purchase.created_at + LEASE,
                correlation_id=self._purchase.correlation_id,
            )
        )
        self._log("begin", None, "trying")
        await self._step()
        return True

    async def _try(self) -> None:
        """Everything that needn't ask the gateway. Raises `Refused`."""
        self._session.add_all([self._booking, self._order])
        self._log("try", None, "tried", of=self._booking)
        await self._step()
        self._session.add_all([self._charge, self._payment])
        self._log("try", None, "trying", of=self._charge)
        await self._step()
        self._session.add(self._stock)
        self._log("try", None, "tried", of=self._stock)
        await self._flush()
        for line in sorted(self._purchase.stock.lines, key=lambda line: line.sku):
            hold = self._shelf(line.sku).where(Item.available >= line.quantity)
            changes = {"available": Item.available - line.quantity, "held": Item.held + line.quantity}
            insist(await self._change(hold.values(changes)))
        await self._commit()

    async def _confirm(self, authorisation: dict[str, Any]) -> None:
        """Record the authorisation, decide, and confirm everything but the payment."""
        self._charge.state, self._charge.detail = "tried", authorisation
        self._payment.state, self._payment.authorisation_id = "authorised", authorisation["authorisation_id"]
        self._log("try_succeeded", "trying", "tried", of=self._charge, detail=authorisation)
        await self._step()
        await self._move("trying", state="confirming", decided_at=now())
        self._log("commit", "trying", "confirming")
        await self._step()
        self._stock.state = self._booking.state = self._order.state = "confirmed"
        self._charge.state, self._payment.state = "confirming", "capturing"
        for reservation in (self._stock, self._charge, self._booking):
            self._log("confirm", "tried", reservation.state, of=reservation)
        await self._flush()
        for line in sorted(self._purchase.stock.lines, key=lambda line: line.sku):
            units = line.quantity
            changes = {"held": Item.held - units, "on_hand": Item.on_hand - units, "sold": Item.sold + units}
            await self._change(self._shelf(line.sku).values(changes))
        await self._commit()

    async def _finish(self, authorisation: dict[str, Any]) -> Answer:
        self._charge.state, self._payment.state = "confirmed", "captured"
        self._log("confirm_succeeded", "confirming", "confirmed", of=self._charge)
        await self._step()
        await self._move("confirming", state="confirmed", due_at=None)
        self._log("confirm_succeeded", "confirming", "confirmed")
        return await self._answer(201, self._purchase.reply(authorisation))

    async def _cancel(self, reason: str) -> Answer:
        """Give everything back."""
        await self._session.rollback()
        self._entries.clear()
        if not self._committed and not await self._begin():
            return await self._stored()
        await self._flush()
        gone = (
            update(Reservation)
            .where(Reservation.tenant_id == "default", Reservation.state.in_(["trying", "tried"]))
            .values(reason=reason)
        )
        charge = gone.where(Reservation.resource == "payments", Reservation.id == self._purchase.payment_id)
        await self._change(charge.values(state="refused"))
        booking = gone.where(Reservation.resource == "orders", Reservation.id == self._purchase.order_id)
        await self._change(booking.values(state="cancelled"))
        stock = gone.where(Reservation.resource == "inventory", Reservation.id == self._purchase.stock_id)
        held = await self._change(stock.values(state="cancelled"))
        payment = update(Payment).where(Payment.tenant_id == "default", Payment.id == self._purchase.payment_id)
        await self._change(payment.values(state="declined"))
        order = update(Order).where(Order.tenant_id == "default", Order.id == self._purchase.order_id)
        await self._change(order.values(state="cancelled"))
        await self._move("trying", state="cancelled", reason=reason, due_at=None)
        self._log("cancel", "trying", "cancelled", reason=reason)
        await self._flush()
        for line in sorted(self._purchase.stock.lines, key=lambda line: line.sku) if held else ():
            changes = {"available": Item.available + line.quantity, "held": Item.held - line.quantity}
            await self._change(self._shelf(line.sku).values(changes))
        return await self._answer(409, self._purchase.refusal(reason))

    async def _stored(self) -> Answer:
        """What was answered under this key."""
        await self._session.rollback()
        key = {"tenant_id": "default", "caller": "anonymous", "operation": "orders.place", "key": self._key}
        found = await self._session.get(IdempotencyKey, key)
        if found is None or found.fingerprint != self._fingerprint:
            return 409, REUSED
        return (found.status, found.body) if found.status and found.body else (409, IN_FLIGHT)

    async def _answer(self, status: int, body: bytes) -> Answer:
        key = update(IdempotencyKey).where(
            IdempotencyKey.tenant_id == "default",
            IdempotencyKey.caller == "anonymous",
            IdempotencyKey.operation == "orders.place",
            IdempotencyKey.key == self._key,
        )
        await self._change(key.values(status=status, body=body))
        await self._commit()
        return status, body

    async def _move(self, source: str, **values: Any) -> None:
        """The transaction's own row. Raises `Conflict`."""
        moved = update(Transaction).where(
            Transaction.tenant_id == "default", Transaction.id == self._purchase.id, Transaction.state == source
        )
        if not await self._change(moved.values(**values)):
            raise Conflict

    async def _change(self, statement: Update) -> bool:
        """Whether a row was changed. The session isn't told: what is changed like this is not looked at again."""
        result: Any = await self._session.execute(statement, execution_options={"synchronize_session": False})
        return bool(result.rowcount)

    async def _step(self) -> None:
        """The end of a step that could be committed by itself."""
        if self._every_step:
            await self._commit()

    async def _flush(self) -> None:
        await self._session.flush()
        if self._entries:
            # Nulls written out, so that all entries are one statement's.
            await self._session.execute(insert(Entry), self._entries, execution_options={"render_nulls": True})
            self._entries.clear()

    async def _commit(self) -> None:
        await self._flush()
        await self._session.commit()
        self._committed = True

    def _log(
        self,
        event: str,
        source: str | None,
        target: str,
        *,
        of: Reservation | None = None,
        reason: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        self._entries.append(
            {
                "subject_id": of.id if of else self._purchase.id,
                "transaction_id": self._purchase.id,
                "resource": of.resource if of else None,
                "event": event,
                "source": source,
                "target": target,
                "reason": reason,
                "correlation_id": self._purchase.correlation_id,
                "detail": detail,
            }
        )

    def _reservation(self, resource: str, id: Any, claim: Any, state: str) -> Reservation:
        return Reservation(
            resource=resource,
            id=id,
            state=state,
            transaction_id=self._purchase.id,
            claim=claim,
            expires_at=self._purchase.expires_at,
        )

    @staticmethod
    def _shelf(sku: str) -> Update:
        return update(Item).where(Item.tenant_id == "default", Item.sku == sku, Item.location == "default")


@get("/healthz")
async def healthz() -> dict[str, str]:
    """That it runs."""
    return {}


def create(url: str, commits: int) -> Litestar:
    """The application."""
    engine = create_async_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_use_lifo=True,
        json_serializer=wire.encoded,
        connect_args={"server_settings": {"jit": "off"}},
    )
    sessions = async_sessionmaker(engine, expire_on_commit=False, autoflush=False)

    @post("/orders")
    async def place(
        request: Request[Any, Any, Any],
        data: wire.Request,
        key: Annotated[str, Parameter(header="Idempotency-Key", min_length=1)],
    ) -> Response[bytes]:
        purchase = Purchase.of(data)
        async with sessions() as session:
            placing = Placing(session, purchase, key, wire.fingerprint(await request.body()), commits)
            status, body = await placing.place()
        return Response(body, status_code=status, media_type=MediaType.JSON)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    return Litestar([place, healthz], lifespan=[lifespan], openapi_config=None, logging_config=None)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--commits", type=click.Choice(["3", "9"]), default="3", show_default=True)
@click.option("--skus", default=1000, show_default=True)
def main(port: int, commits: str, skus: int) -> None:
    """Serve orders from the database at TCC_DATABASE_URL."""
    url = os.environ["TCC_DATABASE_URL"]
    asyncio.run(prepare(url, skus))
    serve(create(url, int(commits)), port)


if __name__ == "__main__":
    main()
