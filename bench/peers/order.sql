-- The same order by SQL alone, one at a time: what PostgreSQL does where nothing stands before it.
--   pgbench -M prepared -n -D skus=1000 -f order.sql
-- Three transactions, and a round trip each; the gateway costs nothing here. The contended row is updated last.
\set sku random(0, :skus - 1)
SELECT uuidv7() AS id, uuidv7() AS stock_id, uuidv7() AS payment_id, uuidv7() AS order_id \gset

\startpipeline
BEGIN;
INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, created_at)
VALUES ('default', 'anonymous', 'orders.place', CAST(:id AS text), sha256(convert_to(CAST(:id AS text), 'UTF8')),
  CAST(:id AS uuid), now())
ON CONFLICT DO NOTHING;
INSERT INTO transactions (tenant_id, id, state, confirm, expires_at, due_at, created_at, updated_at, correlation_id)
VALUES ('default', CAST(:id AS uuid), 'trying', 'auto', now() + interval '15 minutes', now() + interval '15 seconds',
  now(), now(), CAST(:id AS text));
INSERT INTO reservations (tenant_id, resource, id, state, transaction_id, claim, expires_at, created_at, updated_at)
VALUES
  ('default', 'inventory', CAST(:stock_id AS uuid), 'tried', CAST(:id AS uuid),
    CAST('{"lines": [{"sku": "SKU-' || :sku || '", "quantity": 1}]}' AS jsonb), now() + interval '15 minutes', now(),
    now()),
  ('default', 'payments', CAST(:payment_id AS uuid), 'trying', CAST(:id AS uuid),
    '{"amount": 1250, "currency": "EUR", "payment_method": "tok_ok"}', now() + interval '15 minutes', now(), now()),
  ('default', 'orders', CAST(:order_id AS uuid), 'tried', CAST(:id AS uuid),
    CAST('{"customer": "ada", "currency": "EUR", "lines": [{"sku": "SKU-' || :sku
      || '", "quantity": 1, "unit_amount": 1250}]}' AS jsonb), now() + interval '15 minutes', now(), now());
INSERT INTO payments (tenant_id, id, state, amount, currency, payment_method, created_at, updated_at)
VALUES ('default', CAST(:payment_id AS uuid), 'authorising', 1250, 'EUR', 'tok_ok', now(), now());
INSERT INTO orders (tenant_id, id, number, state, customer, currency, total, lines, created_at, updated_at)
VALUES ('default', CAST(:order_id AS uuid), right(CAST(:order_id AS text), 22), 'pending', 'ada', 'EUR', 1250,
  CAST('[{"sku": "SKU-' || :sku || '", "quantity": 1, "unit_amount": 1250}]' AS jsonb), now(), now());
INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target,
  correlation_id, actor)
VALUES
  ('default', CAST(:id AS uuid), uuidv7(), CAST(:id AS uuid), NULL, now(), 'begin', NULL, 'trying',
    CAST(:id AS text), 'api'),
  ('default', CAST(:stock_id AS uuid), uuidv7(), CAST(:id AS uuid), 'inventory', now(), 'try', NULL, 'tried',
    CAST(:id AS text), 'api'),
  ('default', CAST(:payment_id AS uuid), uuidv7(), CAST(:id AS uuid), 'payments', now(), 'try', NULL, 'trying',
    CAST(:id AS text), 'api'),
  ('default', CAST(:order_id AS uuid), uuidv7(), CAST(:id AS uuid), 'orders', now(), 'try', NULL, 'tried',
    CAST(:id AS text), 'api');
UPDATE inventory_items SET available = available - 1, held = held + 1
WHERE tenant_id = 'default' AND sku = 'SKU-' || :sku AND location = 'default' AND available >= 1;
COMMIT;
\endpipeline

\startpipeline
BEGIN;
UPDATE transactions SET state = 'confirming', decided_at = now(), updated_at = now()
WHERE tenant_id = 'default' AND id = CAST(:id AS uuid) AND state = 'trying';
UPDATE reservations SET state = 'confirming', updated_at = now(),
  detail = jsonb_build_object('authorisation_id', CAST(:payment_id AS text), 'capture_before', now())
WHERE tenant_id = 'default' AND resource = 'payments' AND id = CAST(:payment_id AS uuid) AND state = 'trying';
UPDATE reservations SET state = 'confirmed', updated_at = now()
WHERE tenant_id = 'default' AND resource = 'inventory' AND id = CAST(:stock_id AS uuid) AND state = 'tried';
UPDATE reservations SET state = 'confirmed', updated_at = now()
WHERE tenant_id = 'default' AND resource = 'orders' AND id = CAST(:order_id AS uuid) AND state = 'tried';
UPDATE payments SET state = 'capturing', authorisation_id = CAST(:payment_id AS text), updated_at = now()
WHERE tenant_id = 'default' AND id = CAST(:payment_id AS uuid);
UPDATE orders SET state = 'confirmed', updated_at = now()
WHERE tenant_id = 'default' AND id = CAST(:order_id AS uuid);
INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target,
  correlation_id, actor, detail)
VALUES
  ('default', CAST(:payment_id AS uuid), uuidv7(), CAST(:id AS uuid), 'payments', now(), 'try_succeeded', 'trying',
    'tried', CAST(:id AS text), 'api', jsonb_build_object('authorisation_id', CAST(:payment_id AS text))),
  ('default', CAST(:id AS uuid), uuidv7(), CAST(:id AS uuid), NULL, now(), 'commit', 'trying', 'confirming',
    CAST(:id AS text), 'api', NULL),
  ('default', CAST(:stock_id AS uuid), uuidv7(), CAST(:id AS uuid), 'inventory', now(), 'confirm', 'tried',
    'confirmed', CAST(:id AS text), 'api', NULL),
  ('default', CAST(:payment_id AS uuid), uuidv7(), CAST(:id AS uuid), 'payments', now(), 'confirm', 'tried',
    'confirming', CAST(:id AS text), 'api', NULL),
  ('default', CAST(:order_id AS uuid), uuidv7(), CAST(:id AS uuid), 'orders', now(), 'confirm', 'tried', 'confirmed',
    CAST(:id AS text), 'api', NULL);
UPDATE inventory_items SET held = held - 1, on_hand = on_hand - 1, sold = sold + 1
WHERE tenant_id = 'default' AND sku = 'SKU-' || :sku AND location = 'default';
COMMIT;
\endpipeline

\startpipeline
BEGIN;
UPDATE transactions SET state = 'confirmed', due_at = NULL, updated_at = now()
WHERE tenant_id = 'default' AND id = CAST(:id AS uuid) AND state = 'confirming';
UPDATE reservations SET state = 'confirmed', updated_at = now()
WHERE tenant_id = 'default' AND resource = 'payments' AND id = CAST(:payment_id AS uuid) AND state = 'confirming';
UPDATE payments SET state = 'captured', updated_at = now()
WHERE tenant_id = 'default' AND id = CAST(:payment_id AS uuid);
INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target,
  correlation_id, actor)
VALUES
  ('default', CAST(:payment_id AS uuid), uuidv7(), CAST(:id AS uuid), 'payments', now(), 'confirm_succeeded',
    'confirming', 'confirmed', CAST(:id AS text), 'api'),
  ('default', CAST(:id AS uuid), uuidv7(), CAST(:id AS uuid), NULL, now(), 'confirm_succeeded', 'confirming',
    'confirmed', CAST(:id AS text), 'api');
UPDATE idempotency_keys SET status = 201, body = convert_to(rpad('{"state":"confirmed"}', 871), 'UTF8')
WHERE tenant_id = 'default' AND caller = 'anonymous' AND operation = 'orders.place' AND key = CAST(:id AS text);
COMMIT;
\endpipeline
