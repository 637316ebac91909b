"""After everything is healed: the gateway's ledger and the clients' diary against each other, and against the books."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tests.faults.books import Books, eventually_empty
from tests.faults.diary import NEEDS_A_PERSON, Diary, Intent
from tests.faults.fleet import Fleet

QUIET_SECONDS: Final = 90.0
"""I8: after healing, and with nobody asking for more, everything is at its end within this time."""

OPEN: Final = """
SELECT 'transaction ' || id || ' is ' || state AS what FROM transactions
WHERE state NOT IN ('confirmed', 'cancelled') AND attention IS NULL
UNION ALL SELECT resource || ' ' || id || ' is ' || state FROM reservations
WHERE state NOT IN ('confirmed', 'cancelled', 'refused') AND attention IS NULL AND transaction_id IS NULL"""

LATE: Final = """
SELECT 'transaction ' || id || ' was decided after its deadline' AS what FROM transactions
WHERE state IN ('confirming', 'confirmed') AND decided_at > expires_at
UNION ALL
SELECT r.resource || ' ' || r.id || ' was confirmed at ' || j.at || ', and expired at ' || r.expires_at
FROM reservations r JOIN transitions j ON j.tenant_id = r.tenant_id AND j.subject_id = r.id AND j.event = 'confirm'
WHERE r.transaction_id IS NULL AND j.at > r.expires_at
UNION ALL
SELECT COALESCE(j.resource, 'transaction') || ' ' || j.subject_id || ' expired early, at ' || j.at
FROM transitions j LEFT JOIN reservations r ON r.id = j.subject_id AND r.tenant_id = j.tenant_id
LEFT JOIN transactions t ON t.id = j.subject_id AND t.tenant_id = j.tenant_id
WHERE j.event = 'expire' AND j.at < LEAST(COALESCE(r.expires_at, t.expires_at), r.expires_cap, t.expires_cap)"""

TELLING: Final = (
    "poisonous_group",
    "batch_failed",
    "asking_failed",
    "drive_gave_up",
    "sweep_of_one_failed",
    "reconciliation",
    "Traceback",
)
"""What no log may say, whatever is broken around it."""


ENDS: Final = {
    "confirming": "confirmed",  # it is decided; whether it may rest there is another question (I8)
    "confirmed": "confirmed",
    "cancelling": "cancelled",
    "cancelled": "cancelled",
    "refused": "cancelled",
}
"""What a client may have been told, by the state in which it is at last."""


async def verdict(fleet: Fleet, books: Books, diary: Diary, on_hand: Mapping[str, int]) -> None:
    """Note every broken promise in the diary."""

    async def still_open() -> Sequence[Any]:
        return [*await books.home(OPEN), *await books.payments(OPEN)]

    for row in (await eventually_empty(still_open, within=QUIET_SECONDS))[:20]:
        diary.violate("I8", str(row["what"] if hasattr(row, "keys") else row))
    for row in [*await books.home(LATE), *await books.payments(LATE)]:
        diary.violate("I4", row["what"])
    ends = await _Ends.read(books)
    for intent in diary.intents:
        _as_promised(intent, ends, diary)
    await _stock(books, diary, ends, on_hand)
    await _orders(books, diary, ends)
    await _money(books, diary, ends)
    await _agrees(fleet, diary)
    _logs(fleet, diary)


class _Ends:
    """How everything ended, says PostgreSQL."""

    def __init__(self) -> None:
        self.transactions: defaultdict[str, list[Any]] = defaultdict(list)
        """By reference."""
        self.reservations: dict[str, Any] = {}
        """By id."""

    @classmethod
    async def read(cls, books: Books) -> _Ends:
        ends = cls()
        for row in await books.home("SELECT id, reference, state, attention FROM transactions"):
            ends.transactions[row["reference"]].append(row)
        sql = "SELECT id, resource, state, reference, attention, transaction_id FROM reservations"
        for row in [*await books.home(sql), *await books.payments(sql)]:
            ends.reservations[str(row["id"])] = row
        return ends

    def of(self, intent: Intent) -> list[Any]:
        """What there is of an intent: one at the most."""
        if intent.kind == "order":
            return self.transactions.get(intent.reference, [])
        found = self.reservations.get(intent.id or "")
        return [found] if found else []


def _as_promised(intent: Intent, ends: _Ends, diary: Diary) -> None:
    found = ends.of(intent)
    what = f"{intent.kind} {intent.reference}"
    if len(found) > 1:
        diary.violate("I6", f"{what} was begun {len(found)} times")
    if not found:
        if intent.promised or "confirmed" in intent.told:
            diary.violate("I5", f"{what} was acknowledged, and is nowhere")
        return
    state = found[0]["state"]
    end = ENDS.get(state)
    if intent.told and end not in intent.told:
        diary.violate("I5", f"{what} was told {' and '.join(intent.told)}, and is {state}")
    if found[0]["attention"] and intent.method not in NEEDS_A_PERSON:
        diary.violate("I8", f"{what} waits for a person: {found[0]['attention']}")


async def _stock(books: Books, diary: Diary, ends: _Ends, on_hand: Mapping[str, int]) -> None:
    """What was sold is what was confirmed; nothing is held."""
    sold: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for intent in diary.intents:
        if intent.kind == "payments" or not (found := ends.of(intent)):
            continue
        # One that waits for a person has had its stock confirmed already, unless that is what waits.
        state = found[0]["state"]
        (sold if state in ("confirmed", "confirming") else held).update(
            dict(intent.lines) if state not in ("cancelled", "refused") else {}
        )
    for row in await books.home("SELECT sku, on_hand, available, held, sold FROM inventory_items"):
        if row["sku"] not in on_hand:
            continue
        expected = (on_hand[row["sku"]] - sold[row["sku"]], held[row["sku"]], sold[row["sku"]])
        if (row["on_hand"], row["held"], row["sold"]) != expected:
            diary.violate("I1", f"{dict(row)}, but on hand, held and sold should be {expected}")


async def _orders(books: Books, diary: Diary, ends: _Ends) -> None:
    """An order says what its client ordered, and ended as its reservation did."""
    meant = {intent.reference: intent for intent in diary.intents}
    for row in await books.home("SELECT id, state, total, lines FROM orders"):
        reservation = ends.reservations[str(row["id"])]
        intent = meant.get(reservation["reference"])
        if intent is None:
            diary.violate("I5", f"order {row['id']} is nobody's")
            continue
        lines = {(line["sku"], line["quantity"]) for line in msgspec.json.decode(row["lines"].encode())}
        if lines != set(intent.lines) or row["total"] != intent.amount:
            diary.violate("I5", f"order {intent.reference} says {lines} for {row['total']}, not {intent.lines}")
        if row["state"] != {"tried": "pending"}.get(reservation["state"], reservation["state"]):
            diary.violate("I2", f"order {intent.reference} is {row['state']}, its reservation {reservation['state']}")


async def _money(books: Books, diary: Diary, ends: _Ends) -> None:
    """Captured exactly when confirmed, once, for the amount; every authorisation ends captured or voided."""
    owner = {i.id: i for i in diary.intents if i.kind == "payments"}
    by_reference = {i.reference: i for i in diary.intents}
    lines, accounts, _ = await books.ledger(0)
    keys: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for line in lines:
        keys[line["reference"], line["operation"]].add(line["key"])
    for (reference, operation), used in keys.items():
        if len(used) > 1:
            diary.violate("I6", f"{operation} of {reference} was asked under {len(used)} keys")
    captured: set[str] = set()
    for account in accounts:
        one, effects = account["authorisation"], account["effects"]
        row = ends.reservations.get(one["reference"])
        what = f"authorisation {one['id']} of payment {one['reference']}"
        intent = (owner.get(one["reference"]) or by_reference.get(row["reference"])) if row else None
        if row is None or intent is None:
            diary.violate("I2", f"{what} belongs to nobody's intent")
            continue
        if twice := [name for name, times in effects.items() if times > 1]:
            diary.violate("I2", f"{what} had {twice} more than once")
        if one["state"] == "captured":
            captured.add(one["reference"])
        _account(diary, what, one, row, intent)
    for id, row in ends.reservations.items():
        if row["resource"] == "payments" and row["state"] == "confirmed" and id not in captured:
            diary.violate("I2", f"payment {id} is confirmed, and not captured")


def _account(diary: Diary, what: str, one: dict[str, Any], row: Any, intent: Intent) -> None:
    if one["state"] == "captured":
        if row["state"] != "confirmed":
            diary.violate("I2", f"{what} is captured, though the payment is {row['state']}")
        if one["captured_amount"] != intent.amount:
            diary.violate("I2", f"{what} took {one['captured_amount']} for {intent.amount}")
    elif one["state"] == "authorised" and not (row["attention"] and intent.method in NEEDS_A_PERSON):
        diary.violate("I2", f"{what} is still authorised, though the payment is {row['state']}")


async def _agrees(fleet: Fleet, diary: Diary) -> None:
    """`tcc-worker check` must find what we find: nothing."""
    checked = await asyncio.to_thread(fleet.run, "tcc-worker", "check")
    if checked.returncode != 0:
        diary.violate("check", f"tcc-worker check says {checked.stdout[-600:]} {checked.stderr[-300:]}")


def _logs(fleet: Fleet, diary: Diary) -> None:
    for log in sorted((fleet.data / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        for word in TELLING:
            if found := [line for line in lines if word in line]:
                diary.violate("logs", f"{log.name} says {word} {len(found)} times: {found[0][:400]}")


def deadlocks(fleet: Fleet) -> int:
    """How many PostgreSQL had to end. Each is tried again and nobody hears of it, but somebody waited for a second."""
    logs = (server.log.read_text(errors="replace") for server in (fleet.home, fleet.payments))
    return sum(log.count("ERROR:  deadlock detected") for log in logs)
