"""What our own books say of a payment; the money itself moves at the gateway (`external.py`).

The row follows the reservation: authorising, authorised, capturing, captured; or declined; or voiding, voided.
"""

from __future__ import annotations

from tcc.resource import Effects

EFFECTS = Effects(
    on_try="""
payments_intended AS (
  INSERT INTO payments (tenant_id, id, state, amount, currency, payment_method, created_at, updated_at)
  SELECT a.tenant_id, a.id, 'authorising', CAST(a.claim ->> 'amount' AS bigint), a.claim ->> 'currency',
    a.claim ->> 'payment_method', a.now, a.now
  FROM payments_accepted a ORDER BY a.tenant_id, a.id)""",
    on_move="""
payments_booked AS (
  UPDATE payments p SET
    state = CASE m.target WHEN 'trying' THEN 'authorising' WHEN 'tried' THEN 'authorised'
                          WHEN 'refused' THEN 'declined' WHEN 'confirming' THEN 'capturing'
                          WHEN 'confirmed' THEN 'captured' WHEN 'cancelling' THEN 'voiding' ELSE 'voided' END,
    authorisation_id = COALESCE(m.detail ->> 'authorisation_id', p.authorisation_id),
    capture_before = COALESCE(CAST(m.detail ->> 'capture_before' AS timestamptz), p.capture_before),
    decline_code = CASE WHEN m.target = 'refused' THEN m.detail ->> 'code' ELSE p.decline_code END,
    updated_at = m.now
  FROM payments_moved m WHERE p.id = m.id AND p.tenant_id = m.tenant_id)""",
)
