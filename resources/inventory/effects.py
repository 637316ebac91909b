"""What Try, Confirm and Cancel do to stock.

`available + held = on_hand` always: a Try moves units from available to held, a Cancel back, a Confirm takes them off
the shelf. One batch decides for many claims on the same shelf at once: a running sum over the claims in their order,
which the shelf itself comes before, says which still fit. A claim that would fit alone, but not behind the others, is
decided again when those others are settled, so that a large claim which is refused never refuses the small ones behind
it.

What a Try writes comes from the shelf as it was locked, not from the row that the UPDATE sees: that may be one from
before we waited for the lock, and PostgreSQL checks the constraints of what would become of it before it looks for
the newer one. Stock that was just given back would fail a claim that it could serve.
"""

from __future__ import annotations

from tcc.resource import Effects

_LINES = """ROWS FROM (jsonb_to_recordset({claim} -> 'lines') AS (sku text, location text, quantity bigint))
    WITH ORDINALITY AS x(sku, location, quantity, line)"""

EFFECTS = Effects(
    decide=f"""
inventory_lines AS MATERIALIZED (
  SELECT f.ord, f.tenant_id, x.sku, COALESCE(x.location, 'default') AS location, sum(x.quantity) AS quantity,
    min(x.line) - 1 AS line
  FROM inventory_fresh f CROSS JOIN LATERAL {_LINES.format(claim="f.claim")}
  GROUP BY 1, 2, 3, 4),
inventory_shelf AS MATERIALIZED (
  SELECT i.tenant_id, i.sku, i.location, i.on_hand, i.available, i.held FROM inventory_items i
  WHERE (i.sku, i.location, i.tenant_id) IN (SELECT l.sku, l.location, l.tenant_id FROM inventory_lines l)
  ORDER BY i.tenant_id, i.sku, i.location FOR NO KEY UPDATE),
inventory_weighed AS (
  SELECT u.ord, u.tenant_id, u.sku, u.location, u.quantity, u.line, first_value(u.on_hand) OVER shelves AS on_hand,
    first_value(u.available) OVER shelves AS available, first_value(u.held) OVER shelves AS held,
    sum(u.quantity) OVER shelves AS wanted
  FROM (
    SELECT s.tenant_id, s.sku, s.location, 0 AS ord, 0 AS quantity, 0 AS line, s.on_hand, s.available, s.held
    FROM inventory_shelf s
    UNION ALL SELECT l.tenant_id, l.sku, l.location, l.ord, l.quantity, l.line, NULL, NULL, NULL
    FROM inventory_lines l) u
  WINDOW shelves AS (PARTITION BY u.tenant_id, u.sku, u.location ORDER BY u.ord)),
inventory_settled AS MATERIALIZED (
  SELECT w.*, bool_and(COALESCE(w.wanted <= w.available, false)) OVER (PARTITION BY w.ord) AS fits
  FROM inventory_weighed w WHERE w.ord > 0),
inventory_refused AS MATERIALIZED (
  SELECT ord,
    CASE WHEN bool_or(available IS NULL) THEN 'unknown_sku'
         WHEN bool_or(quantity > available) THEN 'insufficient_stock'
         ELSE 'again' END AS code,
    NOT bool_or(available IS NULL) AS kept,
    jsonb_agg(jsonb_build_object(
        'field', 'lines[' || line || ']',
        'code', CASE WHEN available IS NULL THEN 'unknown_sku' ELSE 'insufficient_stock' END,
        'detail', COALESCE('Only ' || available || ' of ' || sku || ' available at ' || location || '.',
                           'There is no SKU ' || sku || ' at ' || location || '.'),
        'requested', quantity, 'available', available) ORDER BY line)
      FILTER (WHERE available IS NULL OR quantity > available) AS detail
  FROM inventory_settled WHERE NOT fits GROUP BY ord)""",
    on_try="""
inventory_taken AS (
  UPDATE inventory_items i SET on_hand = s.on_hand, available = s.available - s.quantity, held = s.held + s.quantity
  FROM (SELECT tenant_id, sku, location, on_hand, available, held, sum(quantity) AS quantity
        FROM inventory_settled WHERE fits AND EXISTS (SELECT FROM inventory_accepted) GROUP BY 1, 2, 3, 4, 5, 6) s
  WHERE i.sku = s.sku AND i.location = s.location AND i.tenant_id = s.tenant_id)""",
    on_move=f"""
inventory_lines AS MATERIALIZED (
  SELECT m.tenant_id, x.sku, COALESCE(x.location, 'default') AS location, sum(x.quantity) AS quantity,
    COALESCE(sum(x.quantity) FILTER (WHERE m.target = 'confirmed'), 0) AS sold
  FROM inventory_moved m CROSS JOIN LATERAL {_LINES.format(claim="m.claim")}
  WHERE m.source = 'tried' AND m.target IN ('confirmed', 'cancelled')
  GROUP BY 1, 2, 3 ORDER BY 1, 2, 3),
inventory_returned AS (
  UPDATE inventory_items i SET held = i.held - l.quantity, on_hand = i.on_hand - l.sold, sold = i.sold + l.sold,
    available = i.available + l.quantity - l.sold
  FROM inventory_lines l
  WHERE i.sku = l.sku AND i.location = l.location AND i.tenant_id = l.tenant_id)""",
)
