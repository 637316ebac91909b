"""Orders: pending until everything they depend on is held, then confirmed or cancelled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resources.orders.claims import OrderClaim, check, total
from resources.orders.effects import EFFECTS
from tcc.resource import Invariant, Resource


def handlers(service: Any) -> Sequence[Any]:
    """The management routes, imported when the API asks for them: workers load no web framework."""
    from resources.orders import api  # noqa: PLC0415

    return api.handlers(service)


RESOURCE = Resource(
    name="orders",
    claim=OrderClaim,
    check=check,
    owes=total,
    effects=EFFECTS,
    handlers=handlers,
    invariants=(
        Invariant(
            name="I2",
            promise="An order is what its reservation is.",
            sql="""
SELECT 'order ' || o.id AS subject, 'The order is ' || o.state || ', its reservation ' || r.state AS detail
FROM orders o JOIN reservations r ON r.tenant_id = o.tenant_id AND r.resource = 'orders' AND r.id = o.id
WHERE o.state <> CASE r.state WHEN 'tried' THEN 'pending' ELSE r.state END""",
        ),
    ),
    migrations=str(Path(__file__).parent / "migrations"),
)
