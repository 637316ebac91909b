"""The requests that carry nearly all of the load, answered without the framework's request cycle.

To try, begin, confirm, cancel, extend and show are routes of the application like any other: it describes them in
OpenAPI, and would answer them the same way. But a framework's cycle of routing, arguments and response objects costs
about as much as the reservation itself (`make bench-quick` measures it), so the edge hands these straight to their
handlers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

from tcc.errors import FieldError, Overloaded, Rejected
from tcc.idempotency import Reply


class Gone(Exception):
    """The client went away before its request was complete."""


class Call:
    """What our handlers use of a request."""

    def __init__(self, scope: Any, receive: Any, max_body_bytes: int) -> None:
        self.scope = scope
        self._receive = receive
        self._max_body_bytes = max_body_bytes

    @property
    def query_params(self) -> Mapping[str, str]:
        """The query, the last value of each name."""
        query: bytes = self.scope["query_string"]
        return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}

    async def body(self) -> bytes:
        """The whole body, which can be had once. Raises `Rejected` (`body_too_large`), and `Gone`."""
        length = self.scope["state"]["headers"].get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise _too_large()
        body: bytes = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise _too_large()
            if not message.get("more_body"):
                return body


def _too_large() -> Rejected:
    detail = "The body is larger than the service accepts."
    return Rejected("body_too_large", detail, (FieldError("body", "body_too_large", detail),))


Handler = Callable[..., Awaitable[Reply]]
"""Takes a `Call`, and the id in the path where there is one."""

ONE: Final = "/{id}"
"""Where a path of `Direct` has an id. What isn't one in the path of a request is left to the framework."""

_ID: Final = re.compile(r"/([0-9A-Fa-f-]{32,36})(?=/|$)")


class Direct:
    """Handlers by method and path, and what to answer when they raise.

    `beginning` are those that begin something. While the service is `crowded` they are refused, without a look at the
    body, so that to refuse costs far less than to serve.
    """

    def __init__(
        self,
        beginning: Mapping[str, Handler],
        others: Mapping[tuple[str, str], Handler],
        on_error: Callable[[Any, Exception], Reply],
        max_body_bytes: int,
        crowded: Callable[[], bool],
    ) -> None:
        self._beginning = {path: partial(self._begin, handler) for path, handler in beginning.items()}
        self._others = others
        self._on_error = on_error
        self._max_body_bytes = max_body_bytes
        self._crowded = crowded

    def handler(self, scope: Any) -> Handler | None:
        """The handler of a request, if it is one of ours."""
        method, path = scope["method"], scope["path"]
        if method == "POST" and (beginning := self._beginning.get(path)):
            return beginning
        if not (found := _ID.search(path)):
            return None
        handler = self._others.get((method, path[: found.start()] + ONE + path[found.end() :]))
        return handler and (lambda call: handler(call, found[1]))

    async def _begin(self, handler: Handler, call: Call) -> Reply:
        if self._crowded():
            raise Overloaded
        return await handler(call)

    async def reply(self, handler: Handler, scope: Any, receive: Any) -> Reply | None:
        """The reply to a request, whatever comes of it; None where nobody waits for one."""
        call = Call(scope, receive, self._max_body_bytes)
        try:
            return await handler(call)
        except Gone:
            return None
        except Exception as error:  # noqa: BLE001 - every error is answered, and logged where it is ours
            return self._on_error(call, error)
