"""`tcc`: the service's own command line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from resources.registry import RESOURCES
from tcc.settings import Settings, SettingsError
from tcc.start import CannotStart, check_databases, check_outsides, check_port, migrate_databases


def one_line(command: Callable[..., None]) -> Callable[..., None]:
    """A start-up failure is one line that says what to do, and exit code 2; not a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (CannotStart, SettingsError) as error:
            click.echo(f"tcc: {error}", err=True)
            sys.exit(2)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tcc")
def main() -> None:
    """Reserve several things safely, or not at all.

    \b
    Examples:
      tcc dev                       everything on this machine, for trying out
      tcc migrate && tcc serve      one part at a time, for production
    """


@main.command()
@click.option("--port", default=8000, show_default=True, help="Where the API listens.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(".tcc"),
    show_default=True,
    help="Kept between runs.",
)
@one_line
def dev(port: int, data: Path) -> None:
    """Run everything: PostgreSQL, Valkey, sandbox gateway, API and a worker.

    TCC_DATABASE_URL and TCC_REDIS_URL replace the embedded servers.

    \b
    Example:
      tcc dev --port 8080
    """
    from tcc.dev.command import run_dev

    sys.exit(run_dev(port=port, data=data))


@main.command()
@one_line
def demo() -> None:
    """Play orders that confirm, sell out, are declined, expire and crash; then check the invariants.

    \b
    Example:
      tcc demo
    """
    from tcc.dev.demo import run_demo

    sys.exit(run_demo())


@main.command()
@one_line
def migrate() -> None:
    """Bring the schema of every database up to date.

    \b
    Example:
      TCC_DATABASE_URL=postgresql://tcc@db/tcc tcc migrate
    """
    environment = dict(os.environ)
    settings = Settings.from_environment(environment)
    asyncio.run(migrate_databases(settings, RESOURCES, environment, click.echo))


@main.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 in a container."
)
@click.option("--port", default=8000, show_default=True)
@click.option("--processes", default=1, show_default=True, help="One for each core that you can spare.")
@one_line
def serve(host: str, port: int, processes: int) -> None:
    """Serve the API.

    \b
    Example:
      TCC_DATABASE_URL=postgresql://tcc@db/tcc tcc serve --host 0.0.0.0 --processes 4
    """
    from tcc.http.serving import serve as serve_api

    environment = dict(os.environ)
    settings = Settings.from_environment(environment)
    check_port(host, port)

    async def check() -> None:
        await check_outsides(settings, RESOURCES, environment)
        await check_databases(settings, RESOURCES, environment)

    asyncio.run(check())
    serve_api(host=host, port=port, processes=processes)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8099, show_default=True, help="0 for a free one.")
@click.option("--data", type=click.Path(path_type=Path), default=Path(".tcc/sandbox"), show_default=True)
@one_line
def sandbox(host: str, port: int, data: Path) -> None:
    """Run the sandbox payment gateway: a process of its own, with a ledger of its own.

    \b
    Example:
      tcc sandbox --port 8099        and TCC_GATEWAY_URL=http://127.0.0.1:8099 for the API and the workers
    """
    from resources.payments.sandbox.serve import SandboxStartError, run_sandbox

    try:
        run_sandbox(host=host, port=port, data=data)
    except SandboxStartError as error:
        raise CannotStart(str(error)) from error
