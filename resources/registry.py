"""The one place that lists the resources. Their order is the order in which rows are locked, and claims are tried."""

from __future__ import annotations

from resources import inventory, orders, payments
from tcc.resource import Resource

RESOURCES: tuple[Resource, ...] = (inventory.RESOURCE, orders.RESOURCE, payments.RESOURCE)
