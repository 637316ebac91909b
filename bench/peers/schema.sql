-- The tables of an order, as the product has them: the same keys and checks, without what no peer uses.

CREATE TABLE IF NOT EXISTS idempotency_keys (
  tenant_id text NOT NULL,
  caller text NOT NULL,
  operation text NOT NULL,
  key text NOT NULL,
  fingerprint bytea NOT NULL,
  subject_id uuid NOT NULL,
  status int,
  body bytea,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, caller, operation, key),
  CHECK ((status IS NULL) = (body IS NULL))
) WITH (fillfactor = 40);
CREATE INDEX IF NOT EXISTS idempotency_keys_created ON idempotency_keys USING brin (created_at);

CREATE TABLE IF NOT EXISTS transactions (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN ('trying', 'tried', 'confirming', 'confirmed', 'cancelling', 'cancelled')),
  reason text,
  confirm text NOT NULL CHECK (confirm IN ('auto', 'manual')),
  expires_at timestamptz NOT NULL,
  due_at timestamptz,
  decided_at timestamptz,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  correlation_id text NOT NULL,
  PRIMARY KEY (tenant_id, id),
  CHECK (state NOT IN ('confirmed', 'cancelled') OR due_at IS NULL),
  CHECK (state NOT IN ('cancelled', 'cancelling') OR reason IS NOT NULL)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS transactions_due ON transactions (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS reservations (
  tenant_id text NOT NULL,
  resource text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN
    ('trying', 'tried', 'refused', 'confirming', 'confirmed', 'cancelling', 'cancelled')),
  reason text,
  transaction_id uuid,
  claim jsonb NOT NULL,
  detail jsonb,
  expires_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, resource, id),
  CHECK (state NOT IN ('refused', 'cancelled', 'cancelling') OR reason IS NOT NULL)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS inventory_items (
  tenant_id text NOT NULL,
  sku text NOT NULL,
  location text NOT NULL,
  on_hand bigint NOT NULL,
  available bigint NOT NULL CHECK (available >= 0),
  held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
  sold bigint NOT NULL DEFAULT 0 CHECK (sold >= 0),
  PRIMARY KEY (tenant_id, sku, location),
  CHECK (on_hand = available + held)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS payments (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN
    ('authorising', 'authorised', 'declined', 'capturing', 'captured', 'voiding', 'voided')),
  amount bigint NOT NULL CHECK (amount > 0),
  currency text NOT NULL,
  payment_method text NOT NULL,
  authorisation_id text,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, id),
  CHECK (state NOT IN ('authorised', 'capturing', 'captured') OR authorisation_id IS NOT NULL)
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS orders (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  number text NOT NULL,
  state text NOT NULL CHECK (state IN ('pending', 'confirmed', 'cancelled')),
  customer text NOT NULL,
  currency text NOT NULL,
  total bigint NOT NULL CHECK (total >= 0),
  lines jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS journal (
  tenant_id text NOT NULL,
  subject_id uuid NOT NULL,
  entry_id uuid NOT NULL,
  transaction_id uuid,
  resource text,
  at timestamptz NOT NULL,
  event text NOT NULL,
  source text,
  target text NOT NULL,
  reason text,
  correlation_id text NOT NULL,
  actor text NOT NULL,
  detail jsonb,
  PRIMARY KEY (tenant_id, subject_id, entry_id)
);
