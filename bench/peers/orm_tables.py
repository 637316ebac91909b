"""The tables of `schema.sql` as SQLAlchemy's ORM sees them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tcc.ids import new_id


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """What all tables have in common."""

    type_annotation_map = {str: Text, datetime: DateTime(timezone=True)}  # noqa: RUF012
    tenant_id: Mapped[str] = mapped_column(primary_key=True, default="default")


class Dated:
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"
    caller: Mapped[str] = mapped_column(primary_key=True, default="anonymous")
    operation: Mapped[str] = mapped_column(primary_key=True, default="orders.place")
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    subject_id: Mapped[UUID]
    status: Mapped[int | None]
    body: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Transaction(Dated, Base):
    __tablename__ = "transactions"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    confirm: Mapped[str] = mapped_column(default="auto")
    expires_at: Mapped[datetime]
    due_at: Mapped[datetime | None]
    decided_at: Mapped[datetime | None]
    correlation_id: Mapped[str]


class Reservation(Dated, Base):
    __tablename__ = "reservations"
    resource: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    transaction_id: Mapped[UUID | None]
    claim: Mapped[Any] = mapped_column(JSONB(none_as_null=True))
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    expires_at: Mapped[datetime]


class Item(Base):
    __tablename__ = "inventory_items"
    sku: Mapped[str] = mapped_column(primary_key=True)
    location: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int]
    available: Mapped[int]
    held: Mapped[int]
    sold: Mapped[int]


class Payment(Dated, Base):
    __tablename__ = "payments"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    amount: Mapped[int]
    currency: Mapped[str]
    payment_method: Mapped[str]
    authorisation_id: Mapped[str | None]


class Order(Dated, Base):
    __tablename__ = "orders"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str]
    state: Mapped[str]
    customer: Mapped[str]
    currency: Mapped[str]
    total: Mapped[int]
    lines: Mapped[Any] = mapped_column(JSONB(none_as_null=True))


class Entry(Base):
    __tablename__ = "journal"
    subject_id: Mapped[UUID] = mapped_column(primary_key=True)
    entry_id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    transaction_id: Mapped[UUID | None]
    resource: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(default=now)
    event: Mapped[str]
    source: Mapped[str | None]
    target: Mapped[str]
    reason: Mapped[str | None]
    correlation_id: Mapped[str]
    actor: Mapped[str] = mapped_column(default="api")
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
