"""A batch is applied by one statement where it comes out as foreseen, and else kind by kind: either leaves the same."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from tcc.dev.servers import PostgresServer
from tests.client import serving
from tests.conftest import OpenService, new_database
from tests.recovery.scenes import raw


def _stock(sku: str, quantity: int = 1) -> dict[str, Any]:
    return {"resource": "inventory", "claim": {"lines": [{"sku": sku, "quantity": quantity}]}}


def _card(amount: int, payment_method: str = "tok_ok") -> dict[str, Any]:
    return {
        "resource": "payments",
        "claim": {"amount": amount, "currency": "EUR", "payment_method": payment_method},
    }


def _order(total: int) -> dict[str, Any]:
    line = {"sku": "MUG", "quantity": 1, "unit_amount": total}
    return {"resource": "orders", "claim": {"customer": "ada", "currency": "EUR", "lines": [line]}}


BRANCHES = {
    "an order": [_stock("MUG"), _card(1250), _order(1250)],
    "two cards": [_stock("MUG"), _card(1250), _card(750), _order(2000)],
    "two cards of which one is declined": [_stock("MUG"), _card(1250), _card(750, "tok_declined"), _order(2000)],
    "a capture that fails twice": [_stock("MUG"), _card(1250, "tok_capture_fails_twice")],
    "a capture that is refused": [_stock("MUG"), _card(1250, "tok_capture_refused")],
    "no card": [_stock("MUG"), _order(1250)],
    "two shelves": [_stock("MUG"), _stock("PEN", 2), _card(1250)],
    "what is sold out": [_stock("NONE"), _card(1250)],
}
EVENTS: dict[str, list[tuple[str, ...]]] = {
    "auto": [()],
    "manual": [("confirm", "confirm", "cancel"), ("cancel", "cancel", "confirm"), ("extend", "confirm")],
}
ROWS = (
    "SELECT to_jsonb(t) FROM transactions t ORDER BY id",
    "SELECT to_jsonb(t) FROM reservations t ORDER BY id",
    """SELECT to_jsonb(t) - '{entry_id,filed_under,filed_as,position}'::text[] FROM transitions t
       ORDER BY subject_id, at, filed_as, position""",
    "SELECT to_jsonb(t) FROM payments t ORDER BY id",
    "SELECT to_jsonb(t) FROM orders t ORDER BY id",
    "SELECT to_jsonb(t) FROM inventory_items t ORDER BY sku",
    """SELECT to_jsonb(t) - 'fingerprint' || jsonb_build_object('body', convert_from(body, 'UTF8')::jsonb)
       FROM idempotency_keys t ORDER BY key""",
)
DIFFERENT = {
    "time": r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)",
    "duration": r'(?<="duration_seconds": )[\d.e-]+',
    "authorisation": r"(?<=auth_)[0-9a-f]+",
    "request": r"\b[0-9a-f]{32}\b",
    "number": r"\b[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{8}\b",
}


_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _alike(text: str, ids: dict[str, str]) -> str:
    """What a row or reply says, with ids by the order in which they are met, and without what is never the same."""
    text = re.sub(_ID, lambda found: ids.setdefault(found[0], f"#{len(ids)}"), text)
    for name, pattern in DIFFERENT.items():
        text = re.sub(pattern, f"<{name}>", text)
    return text


async def _left_by(start_service: OpenService, url: str, **settings: str) -> list[str]:
    """All replies, and all rows that are there in the end."""
    ids: dict[str, str] = {}
    told: list[Any] = []
    keys = (f"key {n:03}" for n in itertools.count())
    service = start_service(TCC_DATABASE_URL=url, **settings)
    async with serving(service) as api:
        for sku, on_hand in (("MUG", 100), ("PEN", 100), ("NONE", 0)):
            await api.stock(sku, on_hand)
        for name, (confirm, events) in itertools.product(
            BRANCHES, [(confirm, events) for confirm, all_events in EVENTS.items() for events in all_events]
        ):
            body = {"branches": BRANCHES[name], "confirm": confirm, "reference": name}
            begun = await api.post("/v1/transactions?wait=2", body, key=next(keys))
            told.append((name, begun.status, begun.json))
            for event in events:
                path = f"/v1/transactions/{begun.json.get('id')}/{event}?wait=2"
                answer = await api.post(path, {"ttl_seconds": 999} if event == "extend" else None, key=next(keys))
                told.append((name, event, answer.status, answer.json))
    async with raw(url) as connection:
        told += [json.loads(row[0]) for sql in ROWS for row in await connection.fetch(sql)]
    return [_alike(json.dumps(each, sort_keys=True), ids) for each in told]


async def test_the_same_requests_leave_the_same_rows_and_replies(
    environment: dict[str, str], start_service: OpenService, postgres: PostgresServer
) -> None:
    at_once = await _left_by(start_service, await new_database(postgres))
    kind_by_kind = await _left_by(start_service, await new_database(postgres), TCC_DATABASE_POOLER="1")
    assert at_once == kind_by_kind
    assert len(at_once) > 300
