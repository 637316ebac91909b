"""Card gateways: the contract in `contract`, and a file for each gateway we can speak to."""

from __future__ import annotations

from resources.payments.gateways.contract import Gateway
from resources.payments.gateways.instant import InstantGateway
from resources.payments.gateways.sandbox import SandboxGateway


def open_gateway(url: str, *, timeout_seconds: float = 5.0, connections: int = 64) -> Gateway:
    """Make the client that `url` asks for; nothing is connected before the first call.

    `http://…` or `https://…` is a sandbox gateway; `instant:` answers in this process, for benchmarks and
    local development. Raises ValueError, with a sentence for the operator, for anything else.
    """
    scheme, _, rest = url.partition(":")
    if scheme in {"http", "https"} and rest.startswith("//") and len(rest) > 2:
        return SandboxGateway(url, timeout_seconds=timeout_seconds, connections=connections)
    if scheme == "instant" and not rest:
        return InstantGateway()
    raise ValueError("the payment gateway's URL must be http://host:port of a sandbox gateway, or 'instant:'")
