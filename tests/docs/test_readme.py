"""README.md, pasted into a shell: its lines are those that `tcc dev` prints, and do what it says."""

from __future__ import annotations

import re

import pytest
import pytest_asyncio

from resources.registry import RESOURCES
from tcc.dev.command import order_line
from tcc.dev.seed import STOCK
from tcc.settings import Settings
from tests.client import Api
from tests.docs.pages import ROOT, blocks, table
from tests.docs.shell import PRINTED_URL, run_as_pasted
from tests.docs.test_operations import PAGE as OPERATIONS

PAGE = ROOT / "README.md"
CURLS = [block for block in blocks(PAGE, "sh") if "curl" in block]


@pytest_asyncio.fixture
async def seeded(api: Api) -> Api:
    """The API, with what `tcc dev` puts on the shelf."""
    for sku, on_hand in STOCK.items():
        assert (await api.stock(sku, on_hand)).status == 200
    return api


def test_the_first_line_is_the_one_that_tcc_dev_prints() -> None:
    assert CURLS[0].startswith(order_line(PRINTED_URL))


async def test_every_line_does_what_the_page_says_when_pasted_in_order(seeded: Api) -> None:
    for block in CURLS:
        await run_as_pasted(block, seeded.url)


@pytest.mark.parametrize("block", CURLS[2:])
async def test_every_block_stands_on_its_own(seeded: Api, block: str) -> None:
    await run_as_pasted(block, seeded.url)


def test_the_settings_are_those_of_the_full_table() -> None:
    known = {row[0]: row[1] for heading in ("Variable", "Resource's variable") for row in table(OPERATIONS, heading)}
    for names, default, _ in table(PAGE, "Setting"):
        assert {known[name] for name in names.split(", ")} == {default}
    assert len(known) == len(Settings.__struct_fields__) + len(RESOURCES) + 1


async def test_the_routes_of_the_table_are_those_that_there_are(seeded: Api) -> None:
    paths = (await seeded.get("/schema/openapi.json")).json["paths"]
    described = {f"{method.upper()} {_unnamed(path)}" for path, methods in paths.items() for method in methods}
    resources = [resource.name for resource in RESOURCES]
    listed = {
        _unnamed(request.replace("{resource}", resource))
        for request, _ in table(PAGE, "Request")
        for resource in resources
    }
    assert listed == {request for request in described if " /v1/" in request}


def _unnamed(path: str) -> str:
    """A path whose parameters have no names."""
    return re.sub(r"\{[^}]*\}", "{}", path)
