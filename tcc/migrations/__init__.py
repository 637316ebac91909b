"""The schema's history (Alembic): a branch for the protocol, and one for each resource in the resource's folder."""
