"""The sandbox card gateway: a process of its own with a ledger of its own.

It shares nothing with tcc but HTTP, and imports nothing of it, so that its ledger is an independent
witness of what tcc really asked for and got.
"""

from resources.payments.sandbox.behaviour import Timings
from resources.payments.sandbox.serve import SandboxStartError, run_sandbox

__all__ = ["SandboxStartError", "Timings", "run_sandbox"]
