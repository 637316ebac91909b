"""Stock: soft locks on units of a SKU at a location."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resources.inventory.claims import InventoryClaim, check
from resources.inventory.effects import EFFECTS
from tcc.errors import Blame, Kind
from tcc.resource import Invariant, Resource


def handlers(service: Any) -> Sequence[Any]:
    """The management routes, imported when the API asks for them: workers load no web framework."""
    from resources.inventory import api  # noqa: PLC0415

    return api.handlers(service)


RESOURCE = Resource(
    name="inventory",
    claim=InventoryClaim,
    check=check,
    effects=EFFECTS,
    refusals={
        "insufficient_stock": Kind("There isn't enough stock for at least one line; nothing was held."),
        "less_than_held": Kind("More units are held than that."),
        "unknown_sku": Kind("There is no such SKU at this location.", blame=Blame.REQUEST),
    },
    handlers=handlers,
    invariants=(
        Invariant(
            name="I1",
            promise="What is held of a SKU is what live reservations hold of it.",
            sql="""
SELECT 'sku ' || COALESCE(i.sku, h.sku) || ' at ' || COALESCE(i.location, h.location) AS subject,
  COALESCE(i.held, 0) || ' held on the shelf, ' || COALESCE(h.quantity, 0) || ' by reservations' AS detail
FROM inventory_items i
FULL JOIN (
  SELECT r.tenant_id, x.sku, COALESCE(x.location, 'default') AS location, sum(x.quantity) AS quantity
  FROM reservations r
  CROSS JOIN LATERAL jsonb_to_recordset(r.claim -> 'lines') AS x(sku text, location text, quantity bigint)
  WHERE r.resource = 'inventory' AND r.state = 'tried' GROUP BY 1, 2, 3) h USING (tenant_id, sku, location)
WHERE COALESCE(i.held, 0) <> COALESCE(h.quantity, 0)""",
        ),
    ),
    migrations=str(Path(__file__).parent / "migrations"),
)
