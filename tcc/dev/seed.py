"""Something to order: a few SKUs, put in over the API like anybody else's, and only where absent."""

from tcc.dev.client import call
from tcc.dev.programs import ServerError

STOCK = {"COFFEE-1KG": 100, "MUG-BLUE": 25, "LAST-ONE": 1}
"""On-hand quantity by SKU; the last one is there to be sold out."""


def seed_stock(api_url: str) -> list[str]:
    """Put in what is not there yet; the SKUs that were added."""
    added = []
    for sku, on_hand in STOCK.items():
        url = f"{api_url}/v1/inventory/items/{sku}"
        if call("GET", url).status == 404:
            status = call("PUT", url, {"on_hand": on_hand}).status
            if status != 200:
                raise ServerError(f"PUT {url} was answered {status}: the sample stock could not be put in")
            added.append(sku)
    return added
