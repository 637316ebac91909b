"""`tcc-worker`: run a worker, or do by hand what it does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import click
import msgspec
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from resources.registry import RESOURCES
from tcc.checks import findings
from tcc.commands import Context
from tcc.errors import TccError
from tcc.ids import new_id
from tcc.logs import configure_logs
from tcc.machine import Event
from tcc.service import Service, open_service
from tcc.settings import Settings, SettingsError
from tcc.start import CannotStart, check_databases
from tcc.sweeps import Sweeper

T = TypeVar("T")
ACTOR: Final = "operator"
BATCH_SIZE: Final = 256
"""Workers have backlogs to work off, and nobody waiting for a single answer: larger batches than the API's."""

_STUCK = text(
    """
SELECT 'transaction' AS kind, id, state, attention, attention_since, attempts, created_at, correlation_id
FROM transactions WHERE attention IS NOT NULL OR due_at < clock_timestamp() - make_interval(secs => :late_seconds)
UNION ALL
SELECT resource, id, state, attention, attention_since, attempts, created_at, correlation_id
FROM reservations
WHERE transaction_id IS NULL
  AND (attention IS NOT NULL OR due_at < clock_timestamp() - make_interval(secs => :late_seconds))
ORDER BY created_at LIMIT :limit"""
)


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


def _run(work: Callable[[Service], Awaitable[T]], *, quiet: bool = True, check: bool = True) -> T:
    """Open the service, do the work, close it. What can't start says so in one line, with exit code 2."""

    async def inside() -> T:
        environment = dict(os.environ)
        settings = Settings.from_environment(environment)
        configure_logs(settings.log_format, "error" if quiet else settings.log_level)
        if check:
            await check_databases(settings, RESOURCES, environment)
        service = open_service(settings, RESOURCES, environment, application="tcc-worker", batch_size=BATCH_SIZE)
        try:
            return await work(service)
        finally:
            await service.close()

    try:
        return asyncio.run(inside())
    except (CannotStart, SettingsError, TccError) as error:
        click.echo(f"tcc-worker: {error}", err=True)
        sys.exit(2)


def _json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON document.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tcc")
def main() -> None:
    """Drive confirms and cancels to their end, give back what was abandoned, and look after what is stuck.

    \b
    Examples:
      tcc-worker run                 until SIGTERM
      tcc-worker stuck               what waits for a person
      tcc-worker check               whether what must always hold does hold
    """


@main.command()
def run() -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Any number of workers may run at once. Redis may be away: it only wakes workers early.

    \b
    Example:
      TCC_DATABASE_URL=postgresql://tcc@db/tcc TCC_REDIS_URL=redis://cache/0 tcc-worker run
    """
    from workers.run import WorkerProcess

    _run(lambda service: WorkerProcess(service).run(), quiet=False)


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
        sweeper = Sweeper(service, ACTOR)
        return {
            "reservations": await sweeper.reservations(limit),
            "transactions": await sweeper.transactions(limit),
            "keys": await sweeper.purge(limit),
        }

    _show_counts(_run(work), as_json)


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

    async def work(service: Service) -> dict[str, int]:
        sweeper = Sweeper(service, ACTOR)
        total = 0
        while done := await sweeper.reservations(limit):
            total += done
            if not as_json:
                click.echo(f"\r{total} taken up", nl=False, err=True)
            if once:
                break
        return {"reservations": total}

    _show_counts(_run(work), as_json)


def _show_counts(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        _json(counts)
        return
    for name, count in counts.items():
        click.echo(f"\r{name}: {count} taken up")


@main.command()
@click.argument("id", type=click.UUID)
@as_json
def drive(id: UUID, as_json: bool) -> None:
    """Take one transaction as far as it goes now.

    \b
    Example:
      tcc-worker drive 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b
    """
    state = _run(lambda service: Sweeper(service, ACTOR).drive("default", id))
    if as_json:
        _json({"id": id, "state": state})
    else:
        click.echo(f"{id} is {state}")


@main.command()
@click.option("--late", default=60.0, show_default=True, help="Seconds overdue before something counts as stuck.")
@click.option("--limit", default=100, show_default=True)
@as_json
def stuck(late: float, limit: int, as_json: bool) -> None:
    """List what waits for a person, and what no worker has taken up in time.

    \b
    Example:
      tcc-worker stuck --json | jq '.[].id'
    """

    async def work(service: Service) -> list[Stuck]:
        found = []
        for batcher, _ in service.stores.distinct():
            rows = await batcher.database.read(_STUCK, {"late_seconds": late, "limit": limit})
            found += [Stuck(**row._mapping) for row in rows]
        return found[:limit]

    found = _run(work)
    if as_json:
        _json(found)
        return
    if not found:
        click.echo("Nothing is stuck.")
        return
    table = Table("kind", "id", "state", "why", "since", "attempts")
    for one in found:
        why = one.attention or "overdue: is a worker running?"
        table.add_row(
            one.kind, str(one.id), one.state, why, f"{one.attention_since or one.created_at:%F %T}", str(one.attempts)
        )
    Console().print(table)


@main.command()
@click.argument("id", type=click.UUID)
@click.option("--resource", help="Of a single reservation; a transaction if not given.")
@as_json
def retry(id: UUID, resource: str | None, as_json: bool) -> None:
    """Take up again what waits for a person, once what stopped it is mended.

    \b
    Examples:
      tcc-worker retry 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b
      tcc-worker retry 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b --resource payments
    """

    async def work(service: Service) -> str:
        context = Context("default", ACTOR, new_id().hex)
        if resource is None:
            result = await service.coordinator.decide(context, id, Event.RETRY)
            code = result.outcomes[0].code
            return await Sweeper(service, ACTOR).drive("default", id) if code == "done" else code
        if resource not in service.stores.resources:
            raise CannotStart(f"There is no resource {resource}: there is {', '.join(service.stores.resources)}.")
        result = await service.reserver.move(context, resource=resource, id=id, event=Event.RETRY)
        outcome = result.outcomes[0]
        if outcome.code != "done" or outcome.view is None:
            return str(outcome.code)
        settled = await service.reserver.settle(context, outcome.view)
        return settled.view.state if settled.view else settled.code

    state = _run(work)
    if as_json:
        _json({"id": id, "state": state})
    else:
        click.echo(f"{id} is {state}")


@main.command()
@click.option("--recent", default=20_000, show_default=True, help="How many transactions to look through, newest first.")
@click.option("--no-gateway", is_flag=True, help="Don't ask the gateway what it holds.")
@as_json
def check(recent: int, no_gateway: bool, as_json: bool) -> None:
    """Verify the invariants on the live databases, and say what breaks them. Exit code 1 if anything does.

    \b
    Example:
      tcc-worker check --recent 100000
    """

    async def work(service: Service) -> list[tuple[str, list[Any]]]:
        done = []
        async for promise, found in findings(
            service, tenant_id="default", recent=recent, reconcile=not no_gateway
        ):
            done.append((promise, found))
            if not as_json:
                click.echo(f"{click.style('✗', fg='red') if found else click.style('✓', fg='green')} {promise}")
                for finding in found[:20]:
                    click.echo(f"    {finding.subject}: {finding.detail}")
        return done

    done = _run(work)
    broken = [finding for _, found in done for finding in found]
    if as_json:
        _json({"checked": [promise for promise, _ in done], "broken": broken})
    else:
        click.echo(f"{len(done)} checks, {len(broken)} broken." if broken else f"{len(done)} checks, all hold.")
    sys.exit(1 if broken else 0)
