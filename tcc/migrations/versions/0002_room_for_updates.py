"""Room in each page for the versions that a row goes through, so that updates stay in it (HOT) and touch no index."""

from alembic import op

revision = "tcc_0002"
down_revision = "tcc_0001"
branch_labels = None
depends_on = None

_FILLFACTORS = {"reservations": (70, 50), "transactions": (70, 50), "idempotency_keys": (60, 40)}


def upgrade() -> None:
    for table, (_, new) in _FILLFACTORS.items():
        op.execute(f"ALTER TABLE {table} SET (fillfactor = {new})")


def downgrade() -> None:
    for table, (old, _) in _FILLFACTORS.items():
        op.execute(f"ALTER TABLE {table} SET (fillfactor = {old})")
