"""What is asked of the card gateway for a payment that rests.

    trying      authorise             -> try_succeeded, try_refused
    confirming  capture               -> confirm_succeeded, or attention where it is refused for good
    cancelling  void                  -> cancel_succeeded

The intent is committed before the call, the outcome after it; no database transaction is open in between. Every call
carries a key derived from the reservation, the same however often and from wherever it is asked. What wasn't heard is
unknown, never a refusal: it is asked again.

Giving back an authorisation whose reply we never saw: the authorise is repeated with its key until it is answered,
and then voided. To look for it by reference and find nothing would prove nothing: it may be on its way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from resources.payments.claims import PaymentClaim
from resources.payments.gateways import open_gateway
from resources.payments.gateways.contract import Gateway, Outcome, Reply
from tcc.commands import Exchange, ReservationView
from tcc.machine import Event, State
from tcc.resource import Answer, External
from tcc.settings import SettingsError

CAPTURE_MARGIN: Final = timedelta(seconds=1)
"""How long before the authorisation lapses we stop promising that it can be captured."""

_decode_claim = msgspec.json.Decoder(PaymentClaim).decode


class _Known(msgspec.Struct):
    """What a reservation's `detail` says of the gateway's side."""

    authorisation_id: str | None = None
    capture_before: datetime | None = None
    capture_refusals: int = 0
    """How often a capture was refused for good. Each gets a key of its own, or a retry would be told the same again."""


_decode_known = msgspec.json.Decoder(_Known).decode


class CardGateway:
    """The payments resource's other side."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ask(self, reservation: ReservationView, *, tenant_id: str, attempt: int) -> Answer:
        """Authorise, capture or void, as the reservation's state needs. Never raises for what the gateway does."""
        claim = _decode_claim(reservation.claim)
        calls = _Calls(self._gateway, claim, f"{tenant_id}:{reservation.id}", str(reservation.id), attempt)
        known = _decode_known(reservation.detail) if reservation.detail else _Known()
        if reservation.state is State.TRYING:
            return await calls.hold()
        if reservation.state is State.CONFIRMING:
            return await calls.take(known)
        return await calls.give_back(known.authorisation_id)

    async def claims_of_theirs(self, since: datetime) -> AsyncIterator[tuple[str, str]]:
        """(our reservation's id, the gateway's standing) of every authorisation changed since then."""
        cursor: str | None = None
        while True:
            page = await self._gateway.list_changed(since=since, cursor=cursor)
            for authorisation in page.authorisations:
                yield authorisation.reference, authorisation.standing.value
            cursor = page.next_cursor
            if cursor is None:
                return

    async def aclose(self) -> None:
        await self._gateway.aclose()


class _Calls:
    """The calls for one reservation, and the record of them."""

    def __init__(self, gateway: Gateway, claim: PaymentClaim, key: str, reference: str, attempt: int) -> None:
        self._gateway = gateway
        self._claim = claim
        self._key = key
        self._reference = reference
        self._attempt = attempt
        self._exchanges: list[Exchange] = []

    async def hold(self) -> Answer:
        reply = await self._authorise()
        match reply.outcome:
            case Outcome.SUCCEEDED:
                lapses = reply.capture_before
                return self._answer(
                    Event.TRY_SUCCEEDED,
                    detail={"authorisation_id": reply.authorisation_id, "capture_before": lapses},
                    cap=lapses - CAPTURE_MARGIN if lapses else None,
                )
            case Outcome.DECLINED:
                detail = {"code": reply.code, "message": reply.message}
                return self._answer(Event.TRY_REFUSED, detail=detail, refusal=_refusal(reply.code))
        return self._unheard(reply)

    async def take(self, known: _Known) -> Answer:
        authorisation_id = known.authorisation_id
        if authorisation_id is None:
            return self._answer(None, attention="There is no authorisation to capture.")
        amount = self._claim.amount
        key = f"{self._key}:capture:{known.capture_refusals}" if known.capture_refusals else f"{self._key}:capture"
        reply = self._note(
            "capture",
            await self._gateway.capture(authorisation_id=authorisation_id, amount=amount, key=key),
        )
        if reply.outcome is Outcome.SUCCEEDED:
            return self._answer(Event.CONFIRM_SUCCEEDED)
        if reply.outcome is Outcome.DECLINED and reply.permanent:
            seen = msgspec.structs.replace(known, capture_refusals=known.capture_refusals + 1)
            why = f"The gateway refuses the capture for good: {reply.code}."
            return self._answer(None, attention=why, detail=msgspec.to_builtins(seen))
        return self._unheard(reply)

    async def give_back(self, authorisation_id: str | None) -> Answer:
        if authorisation_id is None:
            pinned = await self._authorise()
            if pinned.outcome is Outcome.DECLINED:
                return self._answer(Event.CANCEL_SUCCEEDED)
            if pinned.outcome is not Outcome.SUCCEEDED or pinned.authorisation_id is None:
                return self._unheard(pinned)
            authorisation_id = pinned.authorisation_id
        reply = self._note("void", await self._gateway.void(authorisation_id=authorisation_id, key=f"{self._key}:void"))
        detail = {"authorisation_id": authorisation_id}
        if reply.outcome is Outcome.SUCCEEDED:
            return self._answer(Event.CANCEL_SUCCEEDED, detail=detail)
        if reply.outcome is Outcome.DECLINED and reply.permanent:
            return self._answer(None, attention=f"The gateway refuses the void for good: {reply.code}.")
        return self._unheard(reply)

    async def _authorise(self) -> Reply:
        claim = self._claim
        return self._note(
            "authorise",
            await self._gateway.authorise(
                reference=self._reference,
                amount=claim.amount,
                currency=claim.currency,
                payment_method=claim.payment_method,
                key=f"{self._key}:authorise",
            ),
        )

    def _note(self, operation: str, reply: Reply) -> Reply:
        self._exchanges.append(
            Exchange(
                operation=operation,
                outcome=reply.outcome,
                request=reply.request,
                response=reply.response,
                status=reply.status,
                attempt=self._attempt,
                duration_seconds=round(reply.duration_seconds, 6),
            )
        )
        return reply

    def _unheard(self, reply: Reply) -> Answer:
        if reply.permanent:
            return self._answer(None, attention=f"The gateway can't say what became of it: {reply.code}.")
        return self._answer(None, retry_seconds=reply.retry_after_seconds)

    def _answer(self, event: Event | None, **known: Any) -> Answer:
        return Answer(event=event, exchanges=self._exchanges, **known)


def _refusal(code: str | None) -> str:
    return code if code in REFUSALS else "card_declined"


REFUSALS: Final = frozenset({"card_declined", "unknown_payment_method"})
"""The gateway's codes that we pass on; any other is a `card_declined`, with the gateway's own in its detail."""


def connect(environment: Mapping[str, str]) -> External:
    """Open the gateway that `TCC_GATEWAY_URL` names: `http://…` the sandbox, `instant:` one in this process.

    Raises `SettingsError` where it is missing, since nothing must ever seem to be paid by mistake, or can't be read.
    """
    url = environment.get("TCC_GATEWAY_URL")
    if not url:
        raise SettingsError("TCC_GATEWAY_URL is not set: name the card gateway, such as http://127.0.0.1:8099.")
    try:
        return CardGateway(open_gateway(url))
    except ValueError as error:
        raise SettingsError(f"TCC_GATEWAY_URL doesn't make sense: {error}.") from error
