"""Recovery's tests run with one database, and some with three."""

from tests.recovery.scenes import environment, inventory_server, layout, payments_server

__all__ = ["environment", "inventory_server", "layout", "payments_server"]
