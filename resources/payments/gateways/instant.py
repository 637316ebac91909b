"""A gateway in this process that answers at once, for benchmarks and local development.

It keeps the last `remembered` authorisations and replies only. What it forgot, or what another process
authorised, still works: an authorisation's id is made from its key and carries its own terms, so a
repeated authorise gives the same id, and a capture by another process finds what it needs in the id. The
price is that it witnesses nothing: two processes may both capture. Use the sandbox where that matters.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from resources.payments.gateways.contract import (
    Authorisation,
    Lookup,
    Outcome,
    Page,
    Reply,
    Standing,
    most_consequential_first,
)

DECLINES = {"tok_declined": "card_declined"}
HONOURED = frozenset({"tok_ok", "tok_capture_refused", *DECLINES})
"""The sandbox's other methods misbehave on the wire, which there is none of here: they are declined as
unknown rather than pretended."""
VALIDITY = timedelta(days=7)

V = TypeVar("V")


class _Held(msgspec.Struct, frozen=True):
    authorisation: Authorisation
    payment_method: str
    serial: int
    """Counts changes, as a cursor."""


class InstantGateway:
    """Answers from memory, never pending and never unknown, save for a reused key."""

    name = "instant"

    def __init__(self, *, remembered: int = 50_000) -> None:
        self._remembered = remembered
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._references: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self._serial = 0

    async def authorise(self, *, reference: str, amount: int, currency: str, payment_method: str, key: str) -> Reply:
        request = {
            "operation": "authorise",
            "key": key,
            "reference": reference,
            "amount": amount,
            "currency": currency,
            "payment_method": payment_method,
        }
        if (known := self._replay(key, request)) is not None:
            return known
        code = (
            "unknown_payment_method"
            if payment_method not in HONOURED
            else "invalid_request"
            if amount <= 0
            else DECLINES.get(payment_method)
        )
        digest = sha256(f"{key}\n{reference}".encode()).hexdigest()[:32]
        authorisation = Authorisation(
            id=f"instant:{digest}:{amount}:{currency}:{payment_method}",
            reference=reference,
            amount=amount,
            currency=currency,
            standing=Standing.DECLINED if code else Standing.AUTHORISED,
            capture_before=None if code else datetime.now(UTC) + VALIDITY,
            code=code,
            changed_at=datetime.now(UTC),
        )
        self._keep(authorisation, payment_method)
        if reference:
            ids = self._references.get(reference, ())
            self._remember(self._references, reference, (*ids, authorisation.id))
        return self._answer(key, request, authorisation, code)

    async def capture(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        request = {
            "operation": "capture",
            "key": key,
            "authorisation_id": authorisation_id,
            "amount": amount,
        }
        if (known := self._replay(key, request)) is not None:
            return known
        held = self._find(authorisation_id)
        if held is None:
            return _refused(request, "authorisation_not_found", None)
        one = held.authorisation
        if one.standing is Standing.CAPTURED and one.captured_amount == amount:
            return self._answer(key, request, one, None)
        if one.standing is not Standing.AUTHORISED:
            return self._answer(key, request, one, f"authorisation_{one.standing.value}")
        if held.payment_method == "tok_capture_refused":
            return self._answer(key, request, one, "capture_refused")
        if not 0 < amount <= one.amount:
            return self._answer(key, request, one, "amount_too_large" if amount > 0 else "invalid_request")
        return self._change(key, request, held, standing=Standing.CAPTURED, captured_amount=amount)

    async def void(self, *, authorisation_id: str, key: str) -> Reply:
        request = {"operation": "void", "key": key, "authorisation_id": authorisation_id}
        if (known := self._replay(key, request)) is not None:
            return known
        held = self._find(authorisation_id)
        if held is None:
            return _refused(request, "authorisation_not_found", None)
        standing = held.authorisation.standing
        if standing is Standing.VOIDED:
            return self._answer(key, request, held.authorisation, None)
        if standing is not Standing.AUTHORISED:
            return self._answer(key, request, held.authorisation, f"authorisation_{standing.value}")
        return self._change(key, request, held, standing=Standing.VOIDED)

    async def refund(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        request = {
            "operation": "refund",
            "key": key,
            "authorisation_id": authorisation_id,
            "amount": amount,
        }
        if (known := self._replay(key, request)) is not None:
            return known
        held = self._find(authorisation_id)
        if held is None:
            return _refused(request, "authorisation_not_found", None)
        one = held.authorisation
        if one.standing is not Standing.CAPTURED:
            return self._answer(key, request, one, f"authorisation_{one.standing.value}")
        refunded = one.refunded_amount + amount
        if amount <= 0 or refunded > one.captured_amount:
            return self._answer(key, request, one, "amount_too_large" if amount > 0 else "invalid_request")
        standing = Standing.REFUNDED if refunded == one.captured_amount else Standing.CAPTURED
        return self._change(key, request, held, standing=standing, refunded_amount=refunded)

    async def find(self, *, reference: str) -> Lookup:
        ids = self._references.get(reference, ())
        found = most_consequential_first(self._held[one].authorisation for one in ids if one in self._held)
        return Lookup(
            standing=found[0].standing if found else Standing.NOT_FOUND,
            authorisations=found,
            request={"operation": "find", "reference": reference},
            response={"authorisations": msgspec.to_builtins(found)},
        )

    async def list_changed(self, *, since: datetime, cursor: str | None = None, limit: int = 100) -> Page:
        after = int(cursor) if cursor else 0
        # Changes move an entry to the end, so the order of the dictionary is the order of change.
        later = [held for held in self._held.values() if held.serial > after and held.authorisation.changed_at >= since]
        page = later[:limit]
        return Page(
            authorisations=tuple(held.authorisation for held in page),
            next_cursor=str(page[-1].serial) if len(later) > limit else None,
        )

    async def aclose(self) -> None:
        """Nothing is open."""

    def _replay(self, key: str, request: dict[str, Any]) -> Reply | None:
        known = self._replies.get(key)
        if known is None or known.request == request:
            return known
        return Reply(
            outcome=Outcome.UNKNOWN,
            code="idempotency_key_reused",
            message="this key was used before, for another request",
            permanent=True,
            request=request,
        )

    def _find(self, authorisation_id: str) -> _Held | None:
        if (held := self._held.get(authorisation_id)) is not None:
            return held
        match authorisation_id.split(":"):
            case ["instant", _, amount, currency, payment_method] if amount.isdecimal():
                if payment_method not in HONOURED or payment_method in DECLINES:
                    return None
                authorisation = Authorisation(
                    id=authorisation_id,
                    reference="",
                    amount=int(amount),
                    currency=currency,
                    standing=Standing.AUTHORISED,
                    changed_at=datetime.now(UTC),
                )
                return _Held(authorisation, payment_method, 0)
        return None

    def _change(self, key: str, request: dict[str, Any], held: _Held, **changes: Any) -> Reply:
        after = msgspec.structs.replace(held.authorisation, changed_at=datetime.now(UTC), **changes)
        self._keep(after, held.payment_method)
        return self._answer(key, request, after, None)

    def _keep(self, authorisation: Authorisation, payment_method: str) -> None:
        self._serial += 1
        self._remember(self._held, authorisation.id, _Held(authorisation, payment_method, self._serial))

    def _answer(self, key: str, request: dict[str, Any], authorisation: Authorisation, code: str | None) -> Reply:
        reply = (
            _refused(request, code, authorisation)
            if code
            else Reply(
                outcome=Outcome.SUCCEEDED,
                authorisation_id=authorisation.id,
                capture_before=authorisation.capture_before,
                request=request,
                response={"state": authorisation.standing.value},
            )
        )
        self._remember(self._replies, key, reply)
        return reply

    def _remember(self, memory: OrderedDict[str, V], key: str, value: V) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > self._remembered:
            memory.popitem(last=False)


def _refused(request: dict[str, Any], code: str, authorisation: Authorisation | None) -> Reply:
    return Reply(
        outcome=Outcome.DECLINED,
        authorisation_id=authorisation.id if authorisation else None,
        code=code,
        permanent=True,
        request=request,
        response={"code": code},
    )
