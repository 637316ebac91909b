"""Payments: a row each, under the id of its reservation."""

from alembic import op

revision = "payments_0001"
down_revision = None
branch_labels = ("payments",)
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE payments (
  tenant_id text NOT NULL,
  id uuid NOT NULL,
  state text NOT NULL CHECK (state IN
    ('authorising', 'authorised', 'declined', 'capturing', 'captured', 'voiding', 'voided')),
  amount bigint NOT NULL CHECK (amount > 0),
  currency text NOT NULL,
  payment_method text NOT NULL,
  authorisation_id text,
  capture_before timestamptz,
  decline_code text,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, id),
  CHECK (state NOT IN ('authorised', 'capturing', 'captured') OR authorisation_id IS NOT NULL)
) WITH (fillfactor = 70)"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE payments")
