"""Orders: a row each, under the id of its reservation."""

from alembic import op

revision = "orders_0001"
down_revision = None
branch_labels = ("orders",)
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE orders (
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
) WITH (fillfactor = 70)"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE orders")
