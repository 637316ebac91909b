"""The protocol's own tables: reservations, transactions, idempotency keys, the journal."""

from alembic import op

revision = "tcc_0001"
down_revision = None
branch_labels = ("tcc",)
depends_on = None

RESERVATION_STATES = "'trying', 'tried', 'refused', 'confirming', 'confirmed', 'cancelling', 'cancelled'"
TERMINAL = "'refused', 'confirmed', 'cancelled'"


def upgrade() -> None:
    op.execute(
        f"""
CREATE TABLE reservations (
  tenant_id text NOT NULL,
  resource text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN ({RESERVATION_STATES})),
  reason text,
  transaction_id uuid,
  reference text,
  claim jsonb NOT NULL,
  detail jsonb,
  expires_at timestamptz NOT NULL,
  expires_cap timestamptz,
  due_at timestamptz,
  attempts int NOT NULL DEFAULT 0,
  attention text,
  attention_since timestamptz,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  correlation_id text NOT NULL,
  PRIMARY KEY (tenant_id, resource, id),
  CHECK (state NOT IN ({TERMINAL}) OR due_at IS NULL),
  CHECK (state NOT IN ('refused', 'cancelled', 'cancelling') OR reason IS NOT NULL),
  CHECK ((attention IS NULL) = (attention_since IS NULL)),
  CHECK (expires_cap IS NULL OR expires_at <= expires_cap OR state <> 'tried')
) WITH (fillfactor = 70)"""
    )
    op.execute("CREATE INDEX reservations_due ON reservations (due_at) WHERE due_at IS NOT NULL")
    op.execute("CREATE INDEX reservations_attention ON reservations (attention_since) WHERE attention IS NOT NULL")
    op.execute(
        f"""
CREATE TABLE transactions (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN ({RESERVATION_STATES.replace("'refused', ", "")})),
  reason text,
  reference text,
  confirm text NOT NULL CHECK (confirm IN ('auto', 'manual')),
  branches jsonb NOT NULL,
  detail jsonb,
  expires_at timestamptz NOT NULL,
  expires_cap timestamptz,
  due_at timestamptz,
  attempts int NOT NULL DEFAULT 0,
  attention text,
  attention_since timestamptz,
  decided_at timestamptz,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  correlation_id text NOT NULL,
  PRIMARY KEY (tenant_id, id),
  CHECK (state NOT IN ({TERMINAL}) OR due_at IS NULL),
  CHECK (state NOT IN ('cancelled', 'cancelling') OR reason IS NOT NULL),
  CHECK ((decided_at IS NULL) = (state IN ('trying', 'tried'))),
  CHECK ((attention IS NULL) = (attention_since IS NULL))
) WITH (fillfactor = 70)"""
    )
    op.execute(
        "CREATE INDEX transactions_reference ON transactions (tenant_id, reference, id) WHERE reference IS NOT NULL"
    )
    op.execute("CREATE INDEX transactions_due ON transactions (due_at) WHERE due_at IS NOT NULL")
    op.execute("CREATE INDEX transactions_attention ON transactions (attention_since) WHERE attention IS NOT NULL")
    op.execute(
        """
CREATE TABLE idempotency_keys (
  tenant_id text NOT NULL,
  caller text NOT NULL,
  operation text NOT NULL,
  key text NOT NULL,
  fingerprint bytea NOT NULL,
  subject_id uuid NOT NULL,
  token uuid NOT NULL,
  status int,
  body bytea,
  location text,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, caller, operation, key),
  CHECK ((status IS NULL) = (body IS NULL))
) WITH (fillfactor = 60)"""
    )
    op.execute("CREATE INDEX idempotency_keys_created ON idempotency_keys USING brin (created_at)")
    op.execute(
        """
CREATE TABLE journal (
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
  attempt int,
  exchanges jsonb,
  detail jsonb,
  PRIMARY KEY (tenant_id, subject_id, entry_id)
)"""
    )
    op.execute(
        """
CREATE FUNCTION tcc_never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% on % is not allowed: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0]
    USING ERRCODE = 'integrity_constraint_violation';
END $$"""
    )
    op.execute(
        """
CREATE TRIGGER journal_is_append_only BEFORE UPDATE OR DELETE ON journal
FOR EACH STATEMENT EXECUTE FUNCTION tcc_never('the journal is append-only')"""
    )
    for table in ("reservations", "transactions"):
        op.execute(
            f"""
CREATE TRIGGER {table}_end_for_good BEFORE UPDATE ON {table}
FOR EACH ROW WHEN (OLD.state IN ({TERMINAL}) AND NEW.state IS DISTINCT FROM OLD.state)
EXECUTE FUNCTION tcc_never('a terminal state never changes')"""
        )


def downgrade() -> None:
    for table in ("journal", "idempotency_keys", "transactions", "reservations"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION tcc_never")
