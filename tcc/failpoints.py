"""Named places at which a process can be made to die, so that tests can prove that nothing is lost there.

In production none of this is there at all: the classes that do the work have no failpoints in them. A process whose
environment arms one is built from these subclasses instead (`tcc.service.open_service`).

    TCC_TEST_MODE=1 TCC_FAILPOINTS=after_commit@3     dies when it comes by for the third time

The idea is FreeBSD's fail(9), which TiKV made popular.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from tcc.batch import Batcher
from tcc.commands import ReservationView
from tcc.db import Database
from tcc.groups import Group, Result
from tcc.resource import Answer, External
from tcc.settings import SettingsError

FAILPOINTS: Final[Mapping[str, str]] = {
    "after_intent": "what is to be asked of a gateway is committed; it hasn't been asked",
    "after_answer": "a gateway has answered; nobody has recorded it",
    "before_commit": "a batch is applied, and its COMMIT not sent",
    "after_commit": "a batch is committed, and nobody has been told",
    "between_databases": "one database of several has committed its part; the next hasn't begun",
}


class Failpoints:
    """How often each armed failpoint may still be passed."""

    def __init__(self, armed: Mapping[str, int]) -> None:
        self._left = dict(armed)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Failpoints | None:
        """None in production. Raises `SettingsError` where one is armed outside of a test, or can't be read."""
        given = environment.get("TCC_FAILPOINTS")
        if not given:
            return None
        if environment.get("TCC_TEST_MODE") != "1":
            raise SettingsError(
                "TCC_FAILPOINTS makes this process kill itself, and is for tests: unset it "
                "(a test sets TCC_TEST_MODE=1 beside it)."
            )
        armed: dict[str, int] = {}
        for word in given.split(","):
            name, _, times = word.strip().partition("@")
            if name not in FAILPOINTS or not (times or "1").isdecimal() or times == "0":
                known = ", ".join(FAILPOINTS)
                raise SettingsError(f"TCC_FAILPOINTS has '{word}': write name@times, with a name out of {known}.")
            armed[name] = int(times or "1")
        return cls(armed)

    def passed(self, name: str) -> None:
        """Die here, if this is the time."""
        if name not in self._left:
            return
        self._left[name] -= 1
        if self._left[name] == 0:
            os.write(2, f"failpoint {name}: this process kills itself\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedDatabase(Database):
    """A database at whose commits the process may die."""

    def __init__(self, failpoints: Failpoints, url: str, *, application: str, pooler: bool) -> None:
        super().__init__(url, application=application, pooler=pooler)
        self._failpoints = failpoints

    @property
    def at_once(self) -> bool:
        """No: there is nothing between what a call does and its commit, where to die."""
        return False

    @asynccontextmanager
    async def batch(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """A batch, with death before or after its COMMIT."""
        async with super().batch(connection):
            yield
            self._failpoints.passed("before_commit")
        self._failpoints.passed("after_commit")


class DoomedBatcher(Batcher):
    """The batcher of a database that is not the coordinator's: what comes to it has begun elsewhere."""

    def __init__(self, failpoints: Failpoints, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failpoints = failpoints

    async def submit(self, group: Group) -> Result:
        """Submit, unless the process dies first."""
        self._failpoints.passed("between_databases")
        return await super().submit(group)


class DoomedExternal:
    """An outside at which the process may die before it has asked, or before it can tell."""

    def __init__(self, failpoints: Failpoints, external: External) -> None:
        self._failpoints = failpoints
        self._external = external

    async def ask(self, reservation: ReservationView, *, tenant_id: str, attempt: int) -> Answer:
        """Ask, with death before or after."""
        self._failpoints.passed("after_intent")
        answer = await self._external.ask(reservation, tenant_id=tenant_id, attempt=attempt)
        self._failpoints.passed("after_answer")
        return answer

    def claims_of_theirs(self, since: datetime) -> AsyncIterator[tuple[str, str]]:
        """As the outside has it."""
        return self._external.claims_of_theirs(since)

    async def aclose(self) -> None:
        await self._external.aclose()
