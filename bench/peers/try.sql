-- One Try on stock by SQL alone: the least that PostgreSQL can be asked, in one transaction and one round trip.
--   pgbench -M prepared -n -D skus=1000 -f try.sql
\set sku random(0, :skus - 1)
SELECT uuidv7() AS id \gset

\startpipeline
BEGIN;
INSERT INTO idempotency_keys (tenant_id, caller, operation, key, fingerprint, subject_id, status, body, created_at)
VALUES ('default', 'anonymous', 'inventory.try', CAST(:id AS text),
  sha256(convert_to(CAST(:id AS text), 'UTF8')), CAST(:id AS uuid), 201,
  convert_to(rpad('{"state":"tried"}', 430), 'UTF8'), now())
ON CONFLICT DO NOTHING;
INSERT INTO reservations (tenant_id, resource, id, state, claim, expires_at, created_at, updated_at)
VALUES ('default', 'inventory', CAST(:id AS uuid), 'tried',
  CAST('{"lines": [{"sku": "SKU-' || :sku || '", "quantity": 1}]}' AS jsonb), now() + interval '15 minutes', now(),
  now());
INSERT INTO journal (tenant_id, subject_id, entry_id, transaction_id, resource, at, event, source, target,
  correlation_id, actor)
VALUES ('default', CAST(:id AS uuid), uuidv7(), NULL, 'inventory', now(), 'try', NULL, 'tried',
  CAST(:id AS text), 'api');
UPDATE inventory_items SET available = available - 1, held = held + 1
WHERE tenant_id = 'default' AND sku = 'SKU-' || :sku AND location = 'default' AND available >= 1;
COMMIT;
\endpipeline
