"""`tcc-worker`: run a worker, or do by hand what it does.

Exit codes, for scripts: 0 all is well; 1 the command did its work, and found that something isn't well; 2 it could
not do its work, and says why in one line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import click
import msgspec

if TYPE_CHECKING:  # imported where they are needed: `--help` answers at once
    from tcc.commands import ReservationView, TransactionView
    from tcc.service import Service

T = TypeVar("T")
TENANT: Final = "default"
ACTOR: Final = "operator"
SHOWN: Final = 20
"""How many findings of one check are printed; `--json` has all."""

_STUCK: Final = """
SELECT 'transaction' AS kind, id, state, attention, attention_since, attempts, created_at, correlation_id
FROM transactions
WHERE tenant_id = :tenant_id
  AND (attention IS NOT NULL OR due_at < clock_timestamp() - make_interval(secs => :late_seconds))
UNION ALL
SELECT resource, id, state, attention, attention_since, attempts, created_at, correlation_id
FROM reservations
WHERE tenant_id = :tenant_id AND transaction_id IS NULL
  AND (attention IS NOT NULL OR due_at < clock_timestamp() - make_interval(secs => :late_seconds))
ORDER BY created_at LIMIT :limit"""


class Stuck(msgspec.Struct, frozen=True):
    """Something that waits for a person, or that no worker has taken up in time."""

    kind: str
    id: UUID
    state: str
    attention: str | None
    attention_since: datetime | None
    attempts: int
    created_at: datetime
    correlation_id: str


class Standing(msgspec.Struct, frozen=True):
    """Where a transaction or a reservation stands now."""

    kind: str
    id: UUID
    state: str
    reason: str | None
    attention: str | None


class CannotDo(Exception):
    """Why a command can't do its work, in one line."""


def _run(work: Callable[[Service], Awaitable[T]], *, quiet: bool = True) -> T:
    """Open the service, do the work, close it. What can't be done says so in one line, with exit code 2."""
    from resources.registry import RESOURCES
    from tcc.errors import TccError
    from tcc.failpoints import Failpoints
    from tcc.logs import configure_logs
    from tcc.service import open_service
    from tcc.settings import Settings, SettingsError
    from tcc.start import CannotStart, check_databases
    from tcc.sweeps import OutsideUnreachable

    async def inside() -> T:
        environment = dict(os.environ)
        settings = Settings.from_environment(environment)
        if quiet:
            with redirect_stdout(sys.stderr):  # standard output is for what was asked for
                configure_logs(settings.log_format, "error")
        else:
            configure_logs(settings.log_format, settings.log_level)
        Failpoints.from_environment(environment)
        await check_databases(settings, RESOURCES, environment)
        service = open_service(settings, RESOURCES, environment, application="tcc-worker")
        try:
            return await work(service)
        finally:
            await service.close()

    try:
        return asyncio.run(inside())
    except OutsideUnreachable as error:
        click.echo(f"tcc-worker: {error} Mend that, or leave it out with --no-gateway.", err=True)
    except (CannotDo, CannotStart, SettingsError, TccError) as error:
        click.echo(f"tcc-worker: {error}", err=True)
    sys.exit(2)


def _json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON document.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tcc")
def main() -> None:
    """Drive confirms and cancels to their end, give back what was abandoned, and look after what is stuck.

    Exit codes: 0 all is well, 1 something isn't (and is shown), 2 the command couldn't do its work.

    \b
    Examples:
      tcc-worker run                 until SIGTERM
      tcc-worker stuck               what waits for a person
      tcc-worker check               whether what must always hold does hold
    """


@main.command()
@click.option("--metrics-port", type=int, help="Where Prometheus finds this worker's metrics; nowhere if not given.")
def run(metrics_port: int | None) -> None:
    """Run a worker until SIGTERM or Ctrl-C, which let it finish what is under way.

    Any number of workers may run at once. Redis may be away: it only wakes workers early.

    \b
    Example:
      TCC_DATABASE_URL=postgresql://tcc@db/tcc TCC_REDIS_URL=redis://cache/0 tcc-worker run --metrics-port 9100
    """
    from workers.run import WorkerProcess

    _run(lambda service: WorkerProcess(service, metrics_port=metrics_port).run(), quiet=False)


@main.command()
@click.option("--limit", default=500, show_default=True, help="At most so many of each kind.")
@as_json
def sweep(limit: int, as_json: bool) -> None:
    """Do once what a worker does all the time: expire, drive, forget old keys.

    \b
    Example:
      tcc-worker sweep --limit 1000 --json
    """

    async def work(service: Service) -> dict[str, int]:
        from tcc.sweeps import Sweeper

        sweeper = Sweeper(service, ACTOR)
        return {
            "reservations": await sweeper.reservations(limit),
            "transactions": await sweeper.transactions(limit),
            "keys": await sweeper.purge(limit),
        }

    counts = _run(work)
    if as_json:
        _json(counts)
        return
    click.echo(f"reservations  {counts['reservations']:>6}  taken up")
    click.echo(f"transactions  {counts['transactions']:>6}  taken up")
    click.echo(f"keys          {counts['keys']:>6}  forgotten")


@main.command()
@click.option("--limit", default=500, show_default=True, help="So many at a time.")
@click.option("--once", is_flag=True, help="One batch, not all of them.")
@as_json
def expire(limit: int, once: bool, as_json: bool) -> None:
    """Give back single reservations that were abandoned; all that are due.

    \b
    Example:
      tcc-worker expire --limit 1000
    """
    progress = sys.stderr.isatty()

    async def work(service: Service) -> int:
        from tcc.sweeps import Sweeper

        sweeper = Sweeper(service, ACTOR)
        total = 0
        while done := await sweeper.reservations(limit):
            total += done
            if progress:
                click.echo(f"\r{total} taken up", nl=False, err=True)
            if once:
                break
        if progress:
            click.echo("\r", nl=False, err=True)
        return total

    total = _run(work)
    if as_json:
        _json({"reservations": total})
    else:
        click.echo(f"{total} reservations taken up." if total else "Nothing is due.")


@main.command()
@click.argument("id", type=click.UUID)
@as_json
def drive(id: UUID, as_json: bool) -> None:
    """Take one transaction as far as it goes now. Exit code 1 where it then waits for a person.

    \b
    Example:
      tcc-worker drive 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b
    """

    async def work(service: Service) -> Standing:
        from tcc.sweeps import Sweeper

        return _standing("transaction", (await Sweeper(service, ACTOR).drive(TENANT, id)).view)

    _show(_run(work), as_json)


@main.command()
@click.argument("id", type=click.UUID)
@click.option("--resource", help="Of a single reservation; found out if not given.")
@as_json
def retry(id: UUID, resource: str | None, as_json: bool) -> None:
    """Take up again what waits for a person, once what stopped it is mended. Exit code 1 where it still waits.

    \b
    Examples:
      tcc-worker retry 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b
      tcc-worker retry 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b --resource payments
    """
    _show(_run(lambda service: _retry(service, id, resource)), as_json)


async def _retry(service: Service, id: UUID, resource: str | None) -> Standing:
    from tcc.commands import Context
    from tcc.errors import Rejected
    from tcc.ids import new_id
    from tcc.machine import Event
    from tcc.sweeps import Sweeper

    context = Context(TENANT, ACTOR, new_id().hex)
    if resource is None:
        with suppress(Rejected):  # no transaction then, but a reservation
            await service.coordinator.retry(context, id)
            transaction = await Sweeper(service, ACTOR).drive(TENANT, id, context.correlation_id)
            return _standing("transaction", transaction.view)
    resource = await _resource_of(service, id, resource)
    outcome = (await service.reserver.move(context, resource=resource, id=id, event=Event.RETRY)).outcomes[0]
    if outcome.view is None:
        raise CannotDo(f"There is no reservation of {resource} under this id.")
    if outcome.code == "part_of_transaction":
        raise CannotDo(
            f"It belongs to a transaction, which alone decides for it: tcc-worker retry {outcome.view.transaction_id}"
        )
    if outcome.code != "done":
        return _standing(resource, outcome.view)
    settled = (await service.reserver.settle(context, outcome.view)).outcomes[0]
    return _standing(resource, settled.view or outcome.view)


async def _resource_of(service: Service, id: UUID, said: str | None) -> str:
    """The resource that a reservation is of. Raises `CannotDo` where there is no such resource or reservation."""
    from tcc import reads

    there_are = ", ".join(service.stores.resources)
    if said is not None:
        if said not in service.stores.resources:
            raise CannotDo(f"There is no resource {said}: there is {there_are}.")
        return said
    for resource in service.stores.resources:
        if await reads.reservations(service.stores.of(resource).database, TENANT, [(resource, id)]):
            return resource
    raise CannotDo(f"There is no transaction under this id, and no reservation of {there_are}.")


def _standing(kind: str, view: TransactionView | ReservationView) -> Standing:
    return Standing(kind, view.id, view.state, view.reason, view.attention)


def _show(standing: Standing, as_json: bool) -> None:
    """Print where something stands; exit code 1 where it waits for a person."""
    if as_json:
        _json(standing)
    else:
        reason = f" ({standing.reason})" if standing.reason else ""
        click.echo(f"{standing.kind} {standing.id} is {standing.state}{reason}")
        if standing.attention:
            click.echo(f"It waits for a person: {standing.attention}")
    sys.exit(1 if standing.attention else 0)


@main.command()
@click.option("--late", default=60.0, show_default=True, help="Seconds overdue before something counts as stuck.")
@click.option("--limit", default=100, show_default=True, help="At most so many, oldest first.")
@as_json
def stuck(late: float, limit: int, as_json: bool) -> None:
    """List what waits for a person, and what no worker has taken up in time. Exit code 1 if there is any.

    \b
    Example:
      tcc-worker stuck --json | jq -r '.[].id'
    """

    async def work(service: Service) -> list[Stuck]:
        from sqlalchemy import text

        parameters = {"tenant_id": TENANT, "late_seconds": late, "limit": limit}
        found: list[Stuck] = []
        for batcher, _ in service.stores.distinct():
            rows = await batcher.database.read(text(_STUCK), parameters)
            found += [msgspec.convert(row, Stuck, from_attributes=True) for row in rows]
        return sorted(found, key=lambda one: one.created_at)[:limit]

    found = _run(work)
    if as_json:
        _json(found)
    elif found:
        _table(found)
    else:
        click.echo("Nothing is stuck.")
    sys.exit(1 if found else 0)


def _table(found: list[Stuck]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("kind", "id", "state", "since", "attempts"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in found:
        since = f"{one.attention_since or one.created_at:%F %T}"
        why = one.attention or "Overdue: is a worker running?"
        table.add_row(one.kind, str(one.id), one.state, since, str(one.attempts), why)
    # A pipe has no width of its own: then every row is one line, for grep.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False).print(table)
    click.echo("\nOnce what stopped it is mended: tcc-worker retry ID. What happened: GET /v1/transactions/ID/log")


@main.command()
@click.option(
    "--recent", default=20_000, show_default=True, help="How many transactions to look through, newest first."
)
@click.option("--no-gateway", is_flag=True, help="Don't ask the gateway what it holds.")
@as_json
def check(recent: int, no_gateway: bool, as_json: bool) -> None:
    """Verify the invariants on the live databases, and say what breaks them. Exit code 1 if anything does.

    \b
    Example:
      tcc-worker check --recent 100000
    """

    async def work(service: Service) -> list[tuple[str, list[Any]]]:
        from tcc.checks import findings

        done = []
        async for promise, found in findings(service, tenant_id=TENANT, recent=recent, reconcile=not no_gateway):
            done.append((promise, found))
            if not as_json:
                _show_check(promise, found)
        return done

    done = _run(work)
    broken = [finding for _, found in done for finding in found]
    if as_json:
        _json({"checked": [promise for promise, _ in done], "broken": broken})
    else:
        failed = sum(1 for _, found in done if found)
        click.echo(f"{len(done)} checks, {failed} of them broken." if failed else f"{len(done)} checks, all hold.")
    sys.exit(1 if broken else 0)


def _show_check(promise: str, found: list[Any]) -> None:
    click.echo(f"{click.style('✗', fg='red') if found else click.style('✓', fg='green')} {promise}")
    for finding in found[:SHOWN]:
        click.echo(f"    {finding.subject}: {finding.detail}")
    if len(found) > SHOWN:
        click.echo(f"    … and {len(found) - SHOWN} more: --json has them all")
