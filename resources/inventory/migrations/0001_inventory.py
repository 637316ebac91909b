"""Stock by SKU and location."""

from alembic import op

revision = "inventory_0001"
down_revision = None
branch_labels = ("inventory",)
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE inventory_items (
  tenant_id text NOT NULL,
  sku text NOT NULL,
  location text NOT NULL,
  on_hand bigint NOT NULL,
  available bigint NOT NULL CHECK (available >= 0),
  held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
  sold bigint NOT NULL DEFAULT 0 CHECK (sold >= 0),
  PRIMARY KEY (tenant_id, sku, location),
  CHECK (on_hand = available + held)
) WITH (fillfactor = 50)"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE inventory_items")
