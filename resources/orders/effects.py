"""What Try, Confirm and Cancel do to an order: pending, confirmed, cancelled."""

from __future__ import annotations

from tcc.resource import Effects

EFFECTS = Effects(
    on_try="""
orders_placed AS (
  INSERT INTO orders (tenant_id, id, number, state, customer, currency, total, lines, created_at, updated_at)
  SELECT a.tenant_id, a.id,
    upper(substr(a.id::text, 1, 8) || '-' || substr(a.id::text, 10, 4) || '-' || substr(a.id::text, 29, 8)),
    'pending', a.claim ->> 'customer', a.claim ->> 'currency',
    (SELECT sum(x.quantity * x.unit_amount)
     FROM jsonb_to_recordset(a.claim -> 'lines') AS x(quantity bigint, unit_amount bigint)),
    a.claim -> 'lines', a.now, a.now
  FROM orders_accepted a ORDER BY a.tenant_id, a.id)""",
    on_move="""
orders_followed AS (
  UPDATE orders o SET state = m.target, updated_at = m.now FROM orders_moved m
  WHERE o.id = m.id AND o.tenant_id = m.tenant_id AND m.target IN ('confirmed', 'cancelled'))""",
)
