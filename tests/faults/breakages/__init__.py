"""Everything that goes wrong, a file for each thing that it goes wrong with."""

from __future__ import annotations

from tests.faults.breakages import gateway, network, postgres, processes, valkey
from tests.faults.stage import Fault

FAULTS: tuple[Fault, ...] = (
    *processes.FAULTS,
    *postgres.FAULTS,
    *valkey.FAULTS,
    *network.FAULTS,
    *gateway.FAULTS,
)
