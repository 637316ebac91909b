"""Starting up: what must be there before a process begins its work, and what to do where it isn't."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tcc.db import Database
from tcc.failpoints import Failpoints
from tcc.resource import Resource
from tcc.schema import SchemaMismatch, check_schema, migrate
from tcc.settings import Settings, resource_database_url
from tcc.wakeups import redis_settings


class CannotStart(Exception):
    """Why a process can't start, and what to do, in one line."""


def databases(
    settings: Settings, resources: Sequence[Resource], environment: Mapping[str, str]
) -> list[tuple[str, list[Resource]]]:
    """Every database once, with the resources that live in it."""
    found: dict[str, list[Resource]] = {settings.database_url: []}
    for resource in resources:
        found.setdefault(resource_database_url(resource.name, settings, environment), []).append(resource)
    return list(found.items())


async def _each(
    settings: Settings,
    resources: Sequence[Resource],
    environment: Mapping[str, str],
    work: Callable[[Database, list[Resource]], Awaitable[None]],
) -> None:
    for url, here in databases(settings, resources, environment):
        database = Database(url, application="tcc-start", pooler=settings.database_pooler)
        try:
            await work(database, here)
        except SchemaMismatch as error:
            raise CannotStart(str(error)) from error
        except (TimeoutError, OSError) as error:
            raise CannotStart(
                f"No PostgreSQL answers at {database.name}: start it, or set TCC_DATABASE_URL to where it is."
            ) from error
        except Exception as error:  # the driver's own: a wrong password, no such database
            cause = getattr(error, "orig", None) or error
            raise CannotStart(f"PostgreSQL at {database.name} refuses us: {cause}. Check TCC_DATABASE_URL.") from error
        finally:
            await database.close()


async def check_databases(settings: Settings, resources: Sequence[Resource], environment: Mapping[str, str]) -> None:
    """Raise `CannotStart` unless every database can be reached and has the right schema."""

    async def work(database: Database, here: list[Resource]) -> None:
        await check_schema(database, here, resources)

    await _each(settings, resources, environment, work)


async def check_outsides(settings: Settings, resources: Sequence[Resource], environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` where what is said of Redis, of a resource's other side or of failpoints makes no sense."""
    Failpoints.from_environment(environment)
    redis_settings(settings.redis_url)
    for resource in resources:
        if resource.connect is not None:
            await resource.connect(environment).aclose()


async def migrate_databases(
    settings: Settings,
    resources: Sequence[Resource],
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Bring every database up to date, and tell. Raises `CannotStart`."""

    async def work(database: Database, here: list[Resource]) -> None:
        revisions = await migrate(database, here, resources)
        say(f"{database.name} is at {', '.join(revisions)}")

    await _each(settings, resources, environment, work)


def check_port(host: str, port: int) -> None:
    """Raise `CannotStart` where something listens on the port already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"Port {port} on {host} is taken: end what listens there, or choose another with --port."
            ) from error
