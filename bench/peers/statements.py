"""The SQL of an order, one statement for each commit: what a good engineer writes who counts round trips.

Each statement is a chain of data-modifying CTEs, and so a transaction of its own. `gate` is a relation of one row, or
of none where the rest isn't to be done: the key is somebody else's, or the transaction was decided otherwise; `fits` is
another, empty where what is wanted isn't there. `:names` are those of `parameters`, and what is learned on the way.

PostgreSQL runs steps that nobody reads from last to first: what many orders want, the shelf, stands first among them,
so that it is locked last.
"""

from __future__ import annotations

from typing import Any, Final

from bench.peers.wire import LEASE, Purchase, encoded

# Statements are planned once for each connection, while tables are small: that plan must look rows up by their keys.
SETTINGS: Final = {"jit": "off", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""What a connection that runs them is to be told."""


def parameters(purchase: Purchase) -> dict[str, Any]:
    """What the statements need to know of an order from its beginning."""
    # Sorted, so that two orders for the same things wait for each other instead of for ever.
    lines = sorted(purchase.stock.lines, key=lambda line: line.sku)
    return {
        "id": purchase.id,
        "stock_id": purchase.stock_id,
        "payment_id": purchase.payment_id,
        "order_id": purchase.order_id,
        "stock": encoded(purchase.stock),
        "payment": encoded(purchase.payment),
        "order": encoded(purchase.order),
        "order_lines": encoded(purchase.order.lines),
        "skus": [line.sku for line in lines],
        "quantities": [line.quantity for line in lines],
        "amount": purchase.payment.amount,
        "currency": purchase.payment.currency,
        "payment_method": purchase.payment.payment_method,
        "customer": purchase.order.customer,
        "number": purchase.number,
        "total": purchase.total,
        "expires_at": purchase.expires_at,
        "due_at": purchase.created_at + LEASE,
        "correlation_id": purchase.correlation_id,
    }


_ALWAYS = "gate AS (SELECT)"
_CLAIMED = """
gate AS (
  INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, created_at)
  VALUES ('default', 'anonymous', 'orders.place', :key, :fingerprint, :id, now())
  ON CONFLICT DO NOTHING RETURNING key)"""
_BEGUN = """
begun AS (
  INSERT INTO transactions (tenant_id, id, state, confirm, expires_at, due_at, created_at, updated_at, correlation_id)
  SELECT 'default', CAST(:id AS uuid), 'trying', 'auto', CAST(:expires_at AS timestamptz),
    CAST(:due_at AS timestamptz), now(), now(), CAST(:correlation_id AS text) FROM gate)"""
_HELD = """
held AS (
  UPDATE inventory_items i SET available = i.available - l.quantity, held = i.held + l.quantity
  FROM gate, unnest(CAST(:skus AS text[]), CAST(:quantities AS bigint[])) AS l(sku, quantity)
  WHERE i.tenant_id = 'default' AND i.sku = l.sku AND i.location = 'default' AND i.available >= l.quantity
  RETURNING i.sku),
fits AS (SELECT FROM gate WHERE (SELECT count(*) FROM held) = cardinality(CAST(:skus AS text[])))"""
_SOLD = """
sold AS (
  UPDATE inventory_items i SET held = i.held - l.quantity, on_hand = i.on_hand - l.quantity, sold = i.sold + l.quantity
  FROM gate, unnest(CAST(:skus AS text[]), CAST(:quantities AS bigint[])) AS l(sku, quantity)
  WHERE i.tenant_id = 'default' AND i.sku = l.sku AND i.location = 'default')"""
_INTENDED = """
intended AS (
  INSERT INTO payments (tenant_id, id, state, amount, currency, payment_method, created_at, updated_at)
  SELECT 'default', CAST(:payment_id AS uuid), 'authorising', CAST(:amount AS bigint), CAST(:currency AS text),
    CAST(:payment_method AS text), now(), now() FROM {gate})"""
_PLACED = """
placed AS (
  INSERT INTO orders (tenant_id, id, number, state, customer, currency, total, lines, created_at, updated_at)
  SELECT 'default', CAST(:order_id AS uuid), CAST(:number AS text), 'pending', CAST(:customer AS text),
    CAST(:currency AS text), CAST(:total AS bigint), CAST(:order_lines AS jsonb), now(), now() FROM {gate})"""
_RESERVATIONS: Final = {
    "inventory": "('inventory', CAST(:stock_id AS uuid), 'tried', CAST(:stock AS jsonb))",
    "payments": "('payments', CAST(:payment_id AS uuid), 'trying', CAST(:payment AS jsonb))",
    "orders": "('orders', CAST(:order_id AS uuid), 'tried', CAST(:order AS jsonb))",
}
_DECIDED = """
gate AS (
  UPDATE transactions SET state = 'confirming', decided_at = now(), updated_at = now()
  WHERE tenant_id = 'default' AND id = :id AND state = 'trying' RETURNING id)"""
_ENDED = """
gate AS (
  UPDATE transactions SET state = 'confirmed', due_at = NULL, updated_at = now()
  WHERE tenant_id = 'default' AND id = :id AND state = 'confirming' RETURNING id)"""
_ANSWERED = """
answered AS (
  UPDATE idempotency_keys SET status = :status, body = :body
  FROM gate WHERE tenant_id = 'default' AND caller = 'anonymous' AND operation = 'orders.place' AND key = :key)"""


def _reserved(gate: str, *resources: str) -> str:
    return f"""
reserved AS (
  INSERT INTO reservations (tenant_id, resource, id, state, transaction_id, claim, expires_at, created_at, updated_at)
  SELECT 'default', r.resource, r.id, r.state, CAST(:id AS uuid), r.claim, CAST(:expires_at AS timestamptz), now(),
    now()
  FROM {gate}, (VALUES {", ".join(_RESERVATIONS[resource] for resource in resources)}) r(resource, id, state, claim))"""


def _moved(state: str, *resources: str, more: str = "") -> str:
    """Reservations brought to `state`, an expression, with `more` columns set."""
    ids = {"inventory": ":stock_id", "payments": ":payment_id", "orders": ":order_id"}
    # Not a join with these: planned while the table is empty, it would read all of the tenant's reservations for ever.
    return f"""
moved AS (
  UPDATE reservations r SET state = {state}, updated_at = now(){more}
  FROM gate WHERE r.tenant_id = 'default' AND r.resource IN ({", ".join(f"'{resource}'" for resource in resources)})
    AND r.id IN ({", ".join(ids[resource] for resource in resources)}) AND r.state IN ('trying', 'tried', 'confirming')
  RETURNING r.resource)"""


def _paid(state: str, more: str = "") -> str:
    return f"""
paid AS (
  UPDATE payments SET state = '{state}', updated_at = now(){more}
  FROM gate WHERE tenant_id = 'default' AND payments.id = :payment_id)"""


def _followed(state: str) -> str:
    return f"""
followed AS (
  UPDATE orders SET state = '{state}', updated_at = now()
  FROM gate WHERE tenant_id = 'default' AND orders.id = :order_id)"""


_ENTRIES: Final = {
    "begin": "(CAST(:id AS uuid), NULL, 'begin', NULL, 'trying')",
    "try stock": "(CAST(:stock_id AS uuid), 'inventory', 'try', NULL, 'tried')",
    "try payment": "(CAST(:payment_id AS uuid), 'payments', 'try', NULL, 'trying')",
    "try order": "(CAST(:order_id AS uuid), 'orders', 'try', NULL, 'tried')",
    "authorised": "(CAST(:payment_id AS uuid), 'payments', 'try_succeeded', 'trying', 'tried')",
    "commit": "(CAST(:id AS uuid), NULL, 'commit', 'trying', 'confirming')",
    "confirm stock": "(CAST(:stock_id AS uuid), 'inventory', 'confirm', 'tried', 'confirmed')",
    "confirm payment": "(CAST(:payment_id AS uuid), 'payments', 'confirm', 'tried', 'confirming')",
    "confirm order": "(CAST(:order_id AS uuid), 'orders', 'confirm', 'tried', 'confirmed')",
    "captured": "(CAST(:payment_id AS uuid), 'payments', 'confirm_succeeded', 'confirming', 'confirmed')",
    "end": "(CAST(:id AS uuid), NULL, 'confirm_succeeded', 'confirming', 'confirmed')",
    "cancel": "(CAST(:id AS uuid), NULL, 'cancel', 'trying', 'cancelled')",
}


def _logged(gate: str, *entries: str, reason: str = "NULL") -> str:
    detail = "CASE e.event WHEN 'try_succeeded' THEN CAST(:detail AS jsonb) END" if "authorised" in entries else "NULL"
    return f"""
logged_{gate} AS (
  INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target, reason,
    correlation_id, actor, detail)
  SELECT 'default', e.subject, uuidv7(), CAST(:id AS uuid), e.resource, now(), e.event, e.source, e.target, {reason},
    CAST(:correlation_id AS text), 'api', {detail}
  FROM {gate},
    (VALUES {", ".join(_ENTRIES[entry] for entry in entries)}) e(subject, resource, event, source, target))"""


def _statement(*steps: str, told: str = "(SELECT count(*) FROM gate) AS moved") -> str:
    return f"WITH {', '.join(steps)}\nSELECT {told}"


def _try(gate: str, told: str) -> str:
    return _statement(
        gate,
        _BEGUN,
        _logged("gate", "begin"),
        _HELD,
        _reserved("fits", "inventory", "payments", "orders"),
        _INTENDED.format(gate="fits"),
        _PLACED.format(gate="fits"),
        _logged("fits", "try stock", "try payment", "try order"),
        told=told,
    )


def _finish(*answered: str) -> str:
    return _statement(
        _ENDED, _moved("'confirmed'", "payments"), _paid("captured"), *answered, _logged("gate", "captured", "end")
    )


_CLAIMED_COUNT: Final = "(SELECT count(*) FROM gate) AS claimed"
_HELD_COUNT: Final = "(SELECT count(*) FROM fits) AS held"
_CONFIRMING: Final = "CASE r.resource WHEN 'payments' THEN 'confirming' ELSE 'confirmed' END"
_AUTHORISED: Final = ", authorisation_id = :authorisation_id"
_DETAIL: Final = ", detail = CAST(:detail AS jsonb)"

# Three commits.
TRY: Final = _try(_CLAIMED, f"{_CLAIMED_COUNT}, {_HELD_COUNT}")
CONFIRM: Final = _statement(
    _DECIDED,
    _SOLD,
    _moved(
        _CONFIRMING,
        "inventory",
        "payments",
        "orders",
        more=", detail = CASE r.resource WHEN 'payments' THEN CAST(:detail AS jsonb) END",
    ),
    _paid("capturing", _AUTHORISED),
    _followed("confirmed"),
    _logged("gate", "authorised", "commit", "confirm stock", "confirm payment", "confirm order"),
)
FINISH: Final = _finish(_ANSWERED)

# The same, where somebody else minds the key.
BEGIN_KEYLESS: Final = _statement(_ALWAYS, _BEGUN, _logged("gate", "begin"))
TRY_KEYLESS: Final = _try(_ALWAYS, _HELD_COUNT)
FINISH_KEYLESS: Final = _finish()

# Nine commits.
BEGIN: Final = _statement(_CLAIMED, _BEGUN, _logged("gate", "begin"), told=_CLAIMED_COUNT)
HOLD: Final = _statement(_ALWAYS, _HELD, _reserved("fits", "inventory"), _logged("fits", "try stock"), told=_HELD_COUNT)
PLACE: Final = _statement(
    _ALWAYS, _PLACED.format(gate="gate"), _reserved("gate", "orders"), _logged("gate", "try order")
)
INTEND: Final = _statement(
    _ALWAYS, _INTENDED.format(gate="gate"), _reserved("gate", "payments"), _logged("gate", "try payment")
)
AUTHORISED: Final = _statement(
    _ALWAYS,
    _moved("'tried'", "payments", more=_DETAIL),
    _paid("authorised", _AUTHORISED),
    _logged("gate", "authorised"),
)
DECIDE: Final = _statement(_DECIDED, _logged("gate", "commit"))
SELL: Final = _statement(
    _ALWAYS,
    _SOLD,
    _moved(_CONFIRMING, "inventory", "payments", "orders"),
    _paid("capturing"),
    _followed("confirmed"),
    _logged("gate", "confirm stock", "confirm payment", "confirm order"),
)
CAPTURED: Final = _statement(_ALWAYS, _moved("'confirmed'", "payments"), _paid("captured"), _logged("gate", "captured"))
END: Final = _statement(_ENDED, _ANSWERED, _logged("gate", "end"))


def _cancel(*answered: str) -> str:
    return _statement(
        """
gate AS (
  UPDATE transactions SET state = 'cancelled', reason = :reason, due_at = NULL, updated_at = now()
  WHERE tenant_id = 'default' AND id = :id AND state = 'trying' RETURNING id)""",
        _moved(
            "CASE r.resource WHEN 'payments' THEN 'refused' ELSE 'cancelled' END",
            "inventory",
            "payments",
            "orders",
            more=", reason = :reason",
        ),
        """
returned AS (
  UPDATE inventory_items i SET available = i.available + l.quantity, held = i.held - l.quantity
  FROM moved m, unnest(CAST(:skus AS text[]), CAST(:quantities AS bigint[])) AS l(sku, quantity)
  WHERE m.resource = 'inventory' AND i.tenant_id = 'default' AND i.sku = l.sku AND i.location = 'default')""",
        _paid("declined"),
        _followed("cancelled"),
        *answered,
        _logged("gate", "cancel", reason="CAST(:reason AS text)"),
    )


CANCEL: Final = _cancel(_ANSWERED)
CANCEL_KEYLESS: Final = _cancel()
