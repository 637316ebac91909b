"""What every peer reads and says: the request and the reply of the product's `POST /v1/transactions`, and the gateway.

A `Purchase` is an order on its way: what was asked for, under the ids it was given.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Literal
from uuid import UUID, uuid4

import msgspec

from resources.payments.gateways.contract import Outcome
from resources.payments.gateways.instant import InstantGateway
from tcc.ids import new_id

TTL: Final = timedelta(minutes=15)
LEASE: Final = timedelta(seconds=15)

REUSED: Final = b'{"code":"idempotency_key_reused","retryable":false}'
IN_FLIGHT: Final = b'{"code":"request_in_flight","retryable":true}'


class StockLine(msgspec.Struct, frozen=True):
    """So many units of one SKU."""

    sku: str
    quantity: int


class StockClaim(msgspec.Struct, frozen=True):
    """What to take off the shelves."""

    lines: list[StockLine]


class PaymentClaim(msgspec.Struct, frozen=True):
    """What to take from a card."""

    amount: int
    currency: str
    payment_method: str


class OrderLine(msgspec.Struct, frozen=True):
    """What one line of an order costs."""

    sku: str
    quantity: int
    unit_amount: int


class OrderClaim(msgspec.Struct, frozen=True):
    """What to write into the books."""

    customer: str
    currency: str
    lines: list[OrderLine]


class _Stock(msgspec.Struct, frozen=True, tag="inventory", tag_field="resource"):
    claim: StockClaim


class _Payment(msgspec.Struct, frozen=True, tag="payments", tag_field="resource"):
    claim: PaymentClaim


class _Order(msgspec.Struct, frozen=True, tag="orders", tag_field="resource"):
    claim: OrderClaim


class Request(msgspec.Struct, frozen=True):
    """The body of `POST /orders`."""

    branches: list[_Stock | _Payment | _Order]
    confirm: Literal["auto"]


class Refused(Exception):
    """The order can't be had; everything is given back."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Purchase(msgspec.Struct, frozen=True):
    """An order on its way. Raises `msgspec.ValidationError` where it isn't stock, a card and an order."""

    stock: StockClaim
    payment: PaymentClaim
    order: OrderClaim
    id: UUID = msgspec.field(default_factory=new_id)
    stock_id: UUID = msgspec.field(default_factory=new_id)
    payment_id: UUID = msgspec.field(default_factory=new_id)
    order_id: UUID = msgspec.field(default_factory=new_id)
    created_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    correlation_id: str = msgspec.field(default_factory=lambda: uuid4().hex)

    @classmethod
    def of(cls, request: Request) -> Purchase:
        """Give ids to what a request asks for."""
        claims = {type(branch): branch.claim for branch in request.branches}
        if len(claims) != 3 or len(request.branches) != 3:
            raise msgspec.ValidationError("An order is stock, a card and an order.")
        claimed: Any = (claims[_Stock], claims[_Payment], claims[_Order])
        return cls(*claimed)

    @property
    def expires_at(self) -> datetime:
        return self.created_at + TTL

    @property
    def number(self) -> str:
        """What the customer calls the order."""
        id = str(self.order_id)
        return f"{id[:8]}-{id[9:13]}-{id[28:]}".upper()

    @property
    def total(self) -> int:
        return sum(line.quantity * line.unit_amount for line in self.order.lines)

    def reply(self, authorisation: dict[str, Any]) -> bytes:
        """The body that says that everything is confirmed."""
        branches = [
            _BranchReply("inventory", self.stock_id),
            _BranchReply("payments", self.payment_id, detail=authorisation),
            _BranchReply("orders", self.order_id),
        ]
        return _encoder.encode(_Reply(self.id, self.expires_at, branches, self.created_at, datetime.now(UTC)))

    def refusal(self, code: str) -> bytes:
        """The body that says why nothing came of it."""
        return _encoder.encode({"code": code, "retryable": False, "transaction_id": self.id, "state": "cancelled"})


class _BranchReply(msgspec.Struct, frozen=True):
    resource: str
    id: UUID
    state: str = "confirmed"
    reason: str | None = None
    detail: dict[str, Any] | None = None
    attention: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    id: UUID
    deadline: datetime
    branches: list[_BranchReply]
    created_at: datetime
    updated_at: datetime
    state: str = "confirmed"
    status: str = "confirmed"
    message: str = "Everything is confirmed."
    reason: str | None = None
    confirm: str = "auto"
    reference: str | None = None
    attention: str | None = None
    attention_since: datetime | None = None


_encoder: Final = msgspec.json.Encoder()
_requests: Final = msgspec.json.Decoder(Request)
_gateway: Final = InstantGateway()


def read(body: bytes) -> Purchase:
    """A request's body, read and checked. Raises `msgspec.MsgspecError`."""
    return Purchase.of(_requests.decode(body))


def fingerprint(body: bytes) -> bytes:
    """What tells one request from another under the same key."""
    return sha256(body).digest()


def insist(held: bool) -> None:
    """Go on only if everything could be held. Raises `Refused`."""
    if not held:
        raise Refused("insufficient_stock")


def encoded(value: Any) -> str:
    """JSON as a driver takes it."""
    return _encoder.encode(value).decode()


async def authorise(purchase: Purchase) -> dict[str, Any]:
    """Hold the amount on the card. Raises `Refused`."""
    reply = await _gateway.authorise(
        reference=str(purchase.payment_id),
        amount=purchase.payment.amount,
        currency=purchase.payment.currency,
        payment_method=purchase.payment.payment_method,
        key=f"{purchase.payment_id}:authorise",
    )
    if reply.outcome is not Outcome.SUCCEEDED:
        raise Refused(reply.code or "card_declined")
    return {"authorisation_id": reply.authorisation_id, "capture_before": reply.capture_before}


async def capture(purchase: Purchase, authorisation: dict[str, Any]) -> None:
    """Take the amount. Raises AssertionError where the gateway won't: that is for a person."""
    reply = await _gateway.capture(
        authorisation_id=authorisation["authorisation_id"],
        amount=purchase.payment.amount,
        key=f"{purchase.payment_id}:capture",
    )
    assert reply.outcome is Outcome.SUCCEEDED, reply.code
