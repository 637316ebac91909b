"""Something to order: a few SKUs, put in over the API like anybody else's, and only where absent."""

import json
import urllib.error
import urllib.request

from tcc.dev.programs import ServerError

STOCK = {"COFFEE-1KG": 100, "MUG-BLUE": 25, "LAST-ONE": 1}
"""On-hand quantity by SKU; the last one is there to be sold out."""

_TIMEOUT_SECONDS = 10.0


def seed_stock(api_url: str) -> list[str]:
    """Put in what is not there yet; the SKUs that were added."""
    added = []
    for sku, on_hand in STOCK.items():
        path = f"{api_url}/v1/inventory/items/{sku}"
        if _call("GET", path) == 404:
            status = _call("PUT", path, {"on_hand": on_hand})
            if status not in (200, 201, 204):
                raise ServerError(f"PUT {path} was answered {status}: the sample stock could not be put in")
            added.append(sku)
    return added


def _call(method: str, url: str, body: dict[str, int] | None = None) -> int:
    """The status of one request to our own API."""
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
