"""Payments: a card is authorised on Try, captured on Confirm, and the authorisation voided on Cancel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resources.payments.claims import PaymentClaim, charge, check
from resources.payments.effects import EFFECTS
from resources.payments.external import connect
from tcc.errors import Blame, Kind
from tcc.resource import Invariant, Resource


def handlers(service: Any) -> Sequence[Any]:
    """The management routes, imported when the API asks for them: workers load no web framework."""
    from resources.payments import api  # noqa: PLC0415

    return api.handlers(service)


RESOURCE = Resource(
    name="payments",
    claim=PaymentClaim,
    check=check,
    charges=charge,
    effects=EFFECTS,
    refusals={
        "card_declined": Kind("The card was declined.", blame=Blame.PAYER),
        "unknown_payment_method": Kind("The gateway doesn't know this payment method.", blame=Blame.REQUEST),
    },
    connect=connect,
    handlers=handlers,
    invariants=(
        Invariant(
            name="I2",
            promise="A payment is captured exactly when its reservation is confirmed.",
            sql="""
SELECT 'payment ' || p.id AS subject, 'The payment is ' || p.state || ', its reservation ' || r.state AS detail
FROM payments p JOIN reservations r ON r.tenant_id = p.tenant_id AND r.resource = 'payments' AND r.id = p.id
WHERE (p.state = 'captured') <> (r.state = 'confirmed') OR (p.state = 'voided') <> (r.state = 'cancelled')""",
        ),
    ),
    migrations=str(Path(__file__).parent / "migrations"),
)
