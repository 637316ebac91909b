"""The service as its clients see it, the gateway's ledger, and the crash of a process."""

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcc.dev.client import Reply, call
from tcc.dev.demo.telling import CannotGoOn
from tcc.dev.supervisor import Stack

UNIT_AMOUNT = 1250
_CHECK_SECONDS = 60.0


@dataclass(frozen=True)
class Order:
    """What the request that placed an order was told. `outcome` is the transaction's state, or a problem's code."""

    id: str
    status: int
    outcome: str


@dataclass(frozen=True)
class Shelf:
    """Units of one SKU."""

    available: int
    held: int
    sold: int


@dataclass(frozen=True)
class Check:
    """What `tcc-worker check` said."""

    exit_code: int
    promises: list[str]
    broken: list[str]


class Shop:
    """What a shop would do with the service."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def order(
        self, customer: str, sku: str, payment_method: str, *, confirm: str = "auto", ttl_seconds: float | None = None
    ) -> Order:
        """Place an order for one unit: stock, a card authorisation and the order itself."""
        lines = [{"sku": sku, "quantity": 1}]
        body: dict[str, Any] = {
            "confirm": confirm,
            "branches": [
                {"resource": "inventory", "claim": {"lines": lines}},
                {
                    "resource": "payments",
                    "claim": {"amount": UNIT_AMOUNT, "currency": "EUR", "payment_method": payment_method},
                },
                {
                    "resource": "orders",
                    "claim": {
                        "customer": customer,
                        "currency": "EUR",
                        "lines": [{**line, "unit_amount": UNIT_AMOUNT} for line in lines],
                    },
                },
            ],
        }
        if ttl_seconds is not None:
            body["ttl_seconds"] = ttl_seconds
        reply = self._post("/v1/transactions", str(uuid.uuid4()), body)
        id = reply.body.get("id") or reply.body.get("transaction_id")
        outcome = reply.body.get("state") or reply.body.get("code")
        if id is None:
            raise CannotGoOn(f"The order was answered {reply.status} {outcome}: {reply.body.get('detail')}")
        return Order(id, reply.status, outcome)

    def confirm(self, id: str, key: str) -> Reply:
        """Confirm a transaction, under an idempotency key. Raises OSError when no answer comes back."""
        return self._post(f"/v1/transactions/{id}/confirm", key)

    def transaction(self, id: str) -> dict[str, Any]:
        """A transaction as it stands."""
        return self._get(f"/v1/transactions/{id}")

    def state(self, id: str) -> str:
        """A transaction's state."""
        return str(self.transaction(id)["state"])

    def log(self, id: str) -> list[dict[str, Any]]:
        """Everything that happened to a transaction and its branches, in order of time."""
        entries: list[dict[str, Any]] = self._get(f"/v1/transactions/{id}/log")["entries"]
        return entries

    def branch(self, id: str, resource: str) -> dict[str, Any]:
        """A transaction's branch on a resource."""
        branches = {branch["resource"]: branch for branch in self.transaction(id)["branches"]}
        branch: dict[str, Any] = branches[resource]
        return branch

    def order_state(self, id: str) -> str:
        """The state of the order that a transaction has placed."""
        return str(self._get(f"/v1/orders/{self.branch(id, 'orders')['id']}")["state"])

    def shelf(self, sku: str) -> Shelf:
        """What is on the shelf."""
        item = self._get(f"/v1/inventory/items/{sku}")
        return Shelf(item["available"], item["held"], item["sold"])

    def ledger_length(self) -> int:
        """How many requests the gateway has ever received."""
        operations = self._ledger("limit=1000")["operations"]
        return len(operations)

    def effects(self, reference: str) -> dict[str, int]:
        """How often the gateway has held, taken or let go of money for a reservation; nothing that never happened."""
        return self._account(reference, "effects")

    def requests(self, reference: str) -> dict[str, int]:
        """How often the gateway was asked for each of them, repeats included."""
        return self._account(reference, "requests")

    def kill_api(self) -> None:
        """SIGKILL the API, as a crash would."""
        self._stack.kill_process("api")

    def restart_api(self) -> None:
        """Start the API again, and return when it is ready."""
        self._stack.start_process("api")
        self._stack.wait_until_ready("api")

    def check(self) -> Check:
        """Run `tcc-worker check` on the databases and the gateway as they are now."""
        done = subprocess.run(
            [Path(sys.executable).parent / "tcc-worker", "check", "--json"],
            env=self._stack.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
        try:
            said = json.loads(done.stdout)
        except ValueError as error:
            raise CannotGoOn(f"tcc-worker check: {done.stderr.strip() or done.stdout.strip()}") from error
        broken = [f"{one['subject']}: {one['detail']}" for one in said["broken"]]
        return Check(done.returncode, said["checked"], broken)

    def _get(self, path: str) -> dict[str, Any]:
        return _document(path, call("GET", f"{self._stack.api_url}{path}"))

    def _post(self, path: str, key: str, body: Mapping[str, Any] | None = None) -> Reply:
        return call("POST", f"{self._stack.api_url}{path}", body or {}, headers={"Idempotency-Key": key})

    def _ledger(self, query: str) -> dict[str, Any]:
        return _document("the ledger", call("GET", f"{self._stack.sandbox_url}/ledger?{query}"))

    def _account(self, reference: str, what: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for account in self._ledger(f"reference={reference}")["accounts"]:
            for operation, count in account[what].items():
                if count:
                    counts[operation] = counts.get(operation, 0) + count
        return counts


class Caller(threading.Thread):
    """A client that confirms a transaction, and waits for an answer that may never come."""

    def __init__(self, shop: Shop, id: str, key: str) -> None:
        super().__init__(name="caller", daemon=True)
        self._shop = shop
        self._id = id
        self._key = key
        self.answer: str | int = "nothing yet"
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._shop.confirm(self._id, self._key).status
        except OSError:
            self.answer = "a broken connection"


def _document(what: str, reply: Reply) -> dict[str, Any]:
    if reply.status != 200 or not isinstance(reply.body, dict):
        raise CannotGoOn(f"GET {what} was answered {reply.status}")
    return reply.body
