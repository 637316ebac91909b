"""How a batch that was overtaken while it was applied is undone."""

from alembic import op

revision = "tcc_0003"
down_revision = "tcc_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE FUNCTION tcc_overtaken() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RAISE 'somebody has moved a row since it was seen' USING ERRCODE = 'serialization_failure';
END $$"""
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION tcc_overtaken")
