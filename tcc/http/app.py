"""The API as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin

from tcc.errors import CODES, FieldError, Rejected, TccError
from tcc.http.direct import Direct, Handler
from tcc.http.draining import Draining
from tcc.http.edge import Edge
from tcc.http.health import health_handlers
from tcc.http.problems import Problems
from tcc.http.replies import Replies
from tcc.http.reservations import ReservationRoutes, reservation_handlers, try_path
from tcc.http.respond import respond
from tcc.http.transactions import BEGIN_PATH, TransactionRoutes, transaction_handlers
from tcc.idempotency import Reply
from tcc.service import Service

log = structlog.get_logger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""What Litestar itself may find wrong with a request, by its statuses."""


def create_app(open_service: Callable[[], Service], *, version: str, max_body_bytes: int, draining: Draining) -> Any:
    """The application. The service is opened when it starts, in its event loop, and closed when it ends."""
    return _Starting(open_service, version, max_body_bytes, draining)


class _Starting:
    """Builds the application inside the running loop, since batchers are tasks of it."""

    def __init__(
        self, open_service: Callable[[], Service], version: str, max_body_bytes: int, draining: Draining
    ) -> None:
        self._open_service = open_service
        self._version = version
        self._max_body_bytes = max_body_bytes
        self._draining = draining
        self._application: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._application is None:
            self._application = build_app(
                self._open_service(), self._version, self._max_body_bytes, draining=self._draining
            )
            self._draining.watch()
            log.info("api_started")
        await self._application(scope, receive, send)


def build_app(
    service: Service,
    version: str,
    max_body_bytes: int,
    *,
    draining: Draining | None = None,
    owns_service: bool = True,
) -> Any:
    """The application around an open service, which it closes at its end if it owns it."""
    draining = draining or Draining(0)
    resources = list(service.stores.resources.values())
    replies = Replies(Problems(resources))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        if owns_service:
            await service.close()

    on_error, on_http = _error_handlers(service, replies)
    transactions = TransactionRoutes(service, replies)
    reservations = [(ReservationRoutes(service, resource, replies), resource) for resource in resources]
    beginning: dict[str, Handler] = {BEGIN_PATH: transactions.begin}
    others = transactions.direct()
    for routes, resource in reservations:
        beginning[try_path(resource)] = routes.try_
        others |= routes.direct(try_path(resource))
    direct = Direct(beginning, others, on_error, max_body_bytes, service.crowded)
    application = Litestar(
        route_handlers=[
            *health_handlers(service, draining),
            *transaction_handlers(transactions),
            *(handler for routes, resource in reservations for handler in reservation_handlers(routes, resource)),
            *(handler for resource in resources for handler in resource.handlers(service)),
        ],
        exception_handlers={
            HTTPException: on_http,
            Exception: lambda request, error: respond(on_error(request, error)),
        },
        lifespan=[lifespan],
        request_max_body_size=max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="tcc: Try, Confirm, Cancel",
            version=version,
            description="Reserve stock, card authorisations and orders; alone, or several together as one transaction.",
            render_plugins=[ScalarRenderPlugin()],
        ),
        logging_config=None,
    )
    return Edge(application, replies, direct, draining)


def _error_handlers(
    service: Service, replies: Replies
) -> tuple[Callable[[Any, Exception], Reply], Callable[[Any, HTTPException], Response[bytes]]]:
    """What to answer to an error of ours, or any that nobody foresaw, which is logged; and to one of Litestar's."""

    def on_error(request: Any, error: Exception) -> Reply:
        correlation_id = correlation_of(request)
        if not isinstance(error, TccError):
            log.error("request_failed", correlation_id=correlation_id, path=request.scope["path"], exc_info=error)
            error = TccError("internal_error")
        return replies.of_error(error, correlation_id)

    def on_http(request: Any, error: HTTPException) -> Response[bytes]:
        code = _CODES.get(error.status_code)
        response = respond(on_error(request, _missing(service, request.scope["path"], code) if code else error))
        if code and error.headers and (allow := error.headers.get("allow")):
            response.headers["Allow"] = allow
        return response

    return on_error, on_http


def _missing(service: Service, path: str, code: str) -> TccError:
    """What Litestar found wrong with a request; an unknown resource is more than an unknown path."""
    _, _, resource, *rest = [*path.split("/"), "", ""]
    detail = None
    if code == "not_found" and rest[0] == "reservations" and resource not in service.stores.resources:
        code, detail = "unknown_resource", f"There is: {', '.join(sorted(service.stores.resources))}."
    field = "body" if code == "body_too_large" else "path"
    return Rejected(code, detail, (FieldError(field, code, CODES[code].title),))


def correlation_of(request: Request[Any, Any, Any]) -> str:
    """The correlation id that the edge gave a request."""
    return str(request.scope["state"]["correlation_id"])
