"""Alembic's entry point. `tcc.schema` hands over the connection; there is no alembic.ini and no offline mode."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
