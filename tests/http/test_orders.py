"""Orders: stock, a card and the order itself, as one transaction over HTTP."""

from __future__ import annotations

from tests.client import Api


async def test_an_order_is_confirmed_in_one_request(api: Api) -> None:
    await api.stock("MUG", 3)
    placed = await api.order("MUG")
    assert placed.status == 201
    assert placed.json["state"] == "confirmed"
    assert [branch["state"] for branch in placed.json["branches"]] == ["confirmed"] * 3
    shelf = (await api.get("/v1/inventory/items/MUG")).json
    assert (shelf["on_hand"], shelf["available"], shelf["held"], shelf["sold"]) == (2, 2, 0, 1)
