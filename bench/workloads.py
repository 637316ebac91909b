"""What is sent: the bodies, the paths, and how the stock-keeping units are chosen."""

from __future__ import annotations

import msgspec

SKUS = 1000
STOCK = 1_000_000_000
ZIPF_EXPONENT = 1.1

TRY_BODY = '{"lines":[{"sku":"{pick}","quantity":1}]}'
ORDER_BODY = (
    '{"confirm":"%s","branches":['
    '{"resource":"inventory","claim":{"lines":[{"sku":"{pick}","quantity":1}]}},'
    '{"resource":"payments","claim":{"amount":1250,"currency":"EUR","payment_method":"tok_ok"}},'
    '{"resource":"orders","claim":{"customer":"ada","currency":"EUR",'
    '"lines":[{"sku":"{pick}","quantity":1,"unit_amount":1250}]}}]}'
)


class Picks(msgspec.Struct, frozen=True):
    """What `{pick}` stands for: one of the values, the n-th with a probability that falls with n ** `exponent`."""

    name: str
    values: tuple[str, ...]
    exponent: float = 0.0


def sku(number: int) -> str:
    """A stock-keeping unit by its number, from 0."""
    return f"SKU-{number}"


HOT = Picks("hot", (sku(0),))
SPREAD = Picks("spread", tuple(map(sku, range(SKUS))))
ZIPF = Picks("Zipf", SPREAD.values, ZIPF_EXPONENT)


class Step(msgspec.Struct, frozen=True):
    """One request. `{pick}` in path and body is chosen anew for each cycle; `{id}` in the path is what the reply before
    named. `keyed`: with an idempotency key of its own."""

    method: str
    path: str
    body: str = ""
    keyed: bool = False


class Workload(msgspec.Struct, frozen=True):
    """A cycle: requests sent one after the other, each once the one before is answered."""

    steps: tuple[Step, ...]
    picks: Picks = HOT


def noop() -> Workload:
    """A Try's body, to an endpoint that does nothing."""
    return Workload((Step("POST", "/noop", TRY_BODY, keyed=True),), SPREAD)


def hold(picks: Picks) -> Workload:
    """Try alone."""
    return Workload((Step("POST", "/v1/inventory/reservations", TRY_BODY, keyed=True),), picks)


def hold_and_confirm(picks: Picks) -> Workload:
    """Try, then Confirm: two requests a cycle."""
    return Workload((*hold(picks).steps, Step("POST", "/v1/inventory/reservations/{id}/confirm")), picks)


def order(picks: Picks, path: str = "/v1/transactions") -> Workload:
    """A whole order: stock, card and order, confirmed in the same request. Peers take the same one at `path`."""
    return Workload((Step("POST", path, ORDER_BODY % "auto", keyed=True),), picks)


def order_and_confirm(picks: Picks) -> Workload:
    """A whole order that is held first, then confirmed: two requests a cycle."""
    begin = Step("POST", "/v1/transactions", ORDER_BODY % "manual", keyed=True)
    return Workload((begin, Step("POST", "/v1/transactions/{id}/confirm")), picks)


def read(path: str, values: tuple[str, ...]) -> Workload:
    """A GET of one of the values, in `path` at `{pick}`."""
    return Workload((Step("GET", path),), Picks("reads", values))
