"""The operator's command line: pleasant for people, exact for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
import pytest
from click.testing import CliRunner

from tcc.machine import State
from tcc.service import Service
from tests.client import Api
from tests.gateways.process import SandboxProcess
from tests.recovery.scenes import card, hold, in_both_layouts, put_stock, shelf, states, stock
from tests.workers.processes import Commands, Ended, command
from workers.cli import main

COMMANDS = ("run", "sweep", "expire", "drive", "stuck", "retry", "check")
NOWHERE = "postgresql://nobody@127.0.0.1:9/tcc"
UNKNOWN = "019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b"


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Whatever runs `tcc-worker` commands."""
    opened = Commands()
    yield opened
    opened.close()


def test_every_command_explains_itself_with_an_example() -> None:
    assert set(main.commands) == set(COMMANDS)
    for name in ([], *([name] for name in COMMANDS)):
        shown = CliRunner().invoke(main, [*name, "--help"])
        assert shown.exit_code == 0
        assert "Example" in shown.output
        assert " ".join(["tcc-worker", *name]) in shown.output


@pytest.mark.parametrize("name", ["sweep", "expire", "drive", "stuck", "retry", "check"])
def test_every_command_but_run_can_speak_json(name: str) -> None:
    assert "--json" in [option for parameter in main.commands[name].params for option in parameter.opts]


async def test_the_installed_program_says_what_is_wrong_in_one_line(environment: dict[str, str]) -> None:
    ended = await command(environment | {"TCC_DATABASE_URL": NOWHERE}, "run")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("tcc-worker: No PostgreSQL answers at 127.0.0.1:9/tcc: ")
    assert len(ended.err.splitlines()) == 1


async def test_what_can_not_start_says_why_in_one_line(commands: Commands, environment: dict[str, str]) -> None:
    for changed, arguments, said in (
        ({"TCC_DATABASE_URL": NOWHERE}, ["stuck"], "No PostgreSQL answers at 127.0.0.1:9/tcc"),
        ({"TCC_DATABASE_URL": ""}, ["check"], "TCC_DATABASE_URL is not set"),
        ({"TCC_LEASE_SECONDS": "soon"}, ["sweep"], "TCC_LEASE_SECONDS doesn't make sense"),
        ({}, ["drive", UNKNOWN], "There is no transaction under this id."),
        ({}, ["retry", UNKNOWN], "There is no transaction under this id, and no reservation"),
        (
            {},
            ["retry", UNKNOWN, "--resource", "seats"],
            "There is no resource seats: there is inventory, orders, payments.",
        ),
        ({}, ["retry", UNKNOWN, "--resource", "payments"], "There is no reservation of payments under this id."),
    ):
        ended = await commands(environment | changed, *arguments)
        assert (ended.code, ended.out) == (2, ""), (arguments, ended)
        (line,) = ended.err.splitlines()
        assert line.startswith(f"tcc-worker: {said}"), line


async def test_sweep_and_expire_tell_what_they_took_up(
    commands: Commands, environment: dict[str, str], service: Service
) -> None:
    await put_stock(service, "MUG", 5)
    for _ in range(3):
        await hold(service, "inventory", stock(("MUG", 1)), ttl_seconds=0.01)
    swept = await commands(environment, "sweep", "--limit", "1", "--json")
    assert (swept.code, swept.json) == (0, {"reservations": 1, "transactions": 0, "keys": 0})
    expired = await commands(environment, "expire")
    assert (expired.code, expired.out) == (0, "2 reservations taken up.\n")
    assert await shelf(service, "MUG") == (5, 0, 0)
    expired = await commands(environment, "expire", "--json")
    assert (expired.code, expired.json) == (0, {"reservations": 0})
    swept = await commands(environment, "sweep")
    assert [line.split() for line in swept.out.splitlines()] == [
        ["reservations", "0", "taken", "up"],
        ["transactions", "0", "taken", "up"],
        ["keys", "0", "forgotten"],
    ]


@in_both_layouts
async def test_a_capture_refused_for_good_waits_for_a_person_who_may_take_it_up_again(
    commands: Commands, environment: dict[str, str], api: Api, service: Service
) -> None:
    assert await commands(environment, "stuck") == Ended(0, "Nothing is stuck.\n", "")
    await api.stock("MUG", 1)
    placed = await api.order("MUG", payment_method="tok_capture_refused", query="?wait=1")
    id = placed.json["id"]
    assert (placed.status, placed.json["state"]) == (202, "confirming")

    shown = (await api.get(f"/v1/transactions/{id}")).json
    assert "capture_refused" in shown["attention"]
    assert shown["attention_since"] is not None
    assert [branch["state"] for branch in shown["branches"]] == ["confirmed", "confirming", "confirmed"]
    listed = (await api.get("/v1/transactions?attention=true")).json["items"]
    assert [one["id"] for one in listed] == [id]
    assert (await api.get("/v1/transactions?attention=false")).json["items"] == []
    contradicted = await api.post(f"/v1/transactions/{id}/cancel")
    assert (contradicted.status, contradicted.code) == (409, "already_confirmed")

    table = await commands(environment, "stuck")
    assert table.code == 1
    (row,) = [line for line in table.out.splitlines() if id in line]
    assert "transaction" in row
    assert "confirming" in row
    assert "capture_refused" in row
    (found,) = (await commands(environment, "stuck", "--json")).json
    assert (found["kind"], found["id"], found["state"]) == ("transaction", id, "confirming")

    before = len((await api.get(f"/v1/transactions/{id}/log")).json["entries"])
    driven = await commands(environment, "drive", id)
    assert driven.code == 1
    assert driven.out.splitlines()[0] == f"transaction {id} is confirming"
    retried = await commands(environment, "retry", id, "--json")
    assert (retried.code, retried.json["state"]) == (1, "confirming")
    assert "capture_refused" in retried.json["attention"]
    entries = (await api.get(f"/v1/transactions/{id}/log")).json["entries"]
    assert {entry["actor"] for entry in entries[before:]} == {"operator"}
    assert "retry" in {entry["event"] for entry in entries[before:]}
    assert (await states(service, UUID(id)))[0] is State.CONFIRMING


async def test_retry_takes_up_what_has_been_mended(commands: Commands, environment: dict[str, str], api: Api) -> None:
    nowhere = environment | {"TCC_GATEWAY_URL": "http://127.0.0.1:9", "TCC_MAX_ATTEMPTS": "1"}
    await api.stock("MUG", 2)
    placed = await api.order("MUG", confirm="manual")
    id = placed.json["id"]
    parked = await commands(nowhere, "drive", id)
    assert (parked.code, parked.out) == (0, f"transaction {id} is tried\n")
    await api.post(f"/v1/transactions/{id}/confirm?wait=0")
    single = (await api.post("/v1/payments/reservations", msgspec.json.decode(card()), key="k")).json["id"]
    retried = await commands(environment, "retry", id)
    assert (retried.code, retried.out) == (0, f"transaction {id} is confirmed\n")
    retried = await commands(environment, "retry", single)
    assert (retried.code, retried.out) == (0, f"payments {single} is tried\n")
    branch = placed.json["branches"][1]["id"]
    refused = await commands(environment, "retry", branch)
    assert refused.code == 2
    assert refused.err.strip().endswith(f"tcc-worker retry {id}")


async def test_check_tells_what_it_verified_and_what_is_broken(
    commands: Commands, own_sandbox: SandboxProcess, environment: dict[str, str], api: Api, service: Service
) -> None:
    await api.stock("MUG", 3)
    await api.order("MUG")
    await api.order("MUG", payment_method="tok_declined")
    checked = await commands(environment, "check")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out.splitlines()[-1].endswith("checks, all hold.")
    assert all(line.startswith("✓") for line in checked.out.splitlines()[:-1])

    async with service.stores.home.database.reads.begin() as connection:
        await connection.exec_driver_sql("UPDATE inventory_items SET held = 1, available = available - 1")
    checked = await commands(environment, "check")
    assert checked.code == 1
    assert "sku MUG at default: 1 held on the shelf, 0 by reservations" in checked.out
    checked = await commands(environment, "check", "--json")
    assert checked.code == 1
    assert [finding["invariant"] for finding in checked.json["broken"]] == ["I1"]
    assert len(checked.json["checked"]) > 8

    own_sandbox.stop()
    checked = await commands(environment, "check")
    assert checked.code == 2
    assert "can't be asked what it holds" in checked.err
    assert len(checked.err.splitlines()) == 1
    assert (await commands(environment, "check", "--no-gateway", "--json")).code == 1
