"""The sandbox's HTTP side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.params import Parameter

from resources.payments.sandbox.behaviour import Delivery, Timings, payment_methods
from resources.payments.sandbox.desk import Desk
from resources.payments.sandbox.ledger import Ledger
from resources.payments.sandbox.lost_reply import LostReply
from resources.payments.sandbox.wire import (
    AmountBody,
    AnswerBody,
    AuthoriseBody,
    Call,
    NoBody,
    Operation,
    authorisation_id,
    encode,
)

B = TypeVar("B")
Incoming = Request[Any, Any, State]
Limit = Annotated[int, Parameter(ge=1, le=1000)]

LARGEST_BODY = 64 * 1024
LONGEST_KEY = 255

_authorise_body = msgspec.json.Decoder(AuthoriseBody)
_amount_body = msgspec.json.Decoder(AmountBody)
_no_body = msgspec.json.Decoder(NoBody)
_broken = encode(AnswerBody(code="internal_error", message="something went wrong on our side"))


class BadRequestError(Exception):
    """A request that is not one: nothing is written down, and the key stays free."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message


@post("/authorisations")
async def authorise(request: Incoming) -> Response[Any]:
    """Hold an amount on a card."""
    key, body = await _read(request, _authorise_body)
    call = Call(
        operation=Operation.AUTHORISE,
        key=key,
        authorisation_id=authorisation_id(key),
        reference=body.reference,
        amount=body.amount,
        currency=body.currency,
        payment_method=body.payment_method,
    )
    return await _serve(request, call)


@post("/authorisations/{auth_id:str}/capture")
async def capture(request: Incoming, auth_id: str) -> Response[Any]:
    """Take some or all of what is held, once."""
    key, body = await _read(request, _amount_body)
    call = Call(operation=Operation.CAPTURE, key=key, authorisation_id=auth_id, amount=body.amount)
    return await _serve(request, call)


@post("/authorisations/{auth_id:str}/void")
async def void(request: Incoming, auth_id: str) -> Response[Any]:
    """Let go of what is held."""
    key, _ = await _read(request, _no_body)
    return await _serve(request, Call(operation=Operation.VOID, key=key, authorisation_id=auth_id))


@post("/authorisations/{auth_id:str}/refund")
async def refund(request: Incoming, auth_id: str) -> Response[Any]:
    """Give back some or all of what was captured."""
    key, body = await _read(request, _amount_body)
    call = Call(operation=Operation.REFUND, key=key, authorisation_id=auth_id, amount=body.amount)
    return await _serve(request, call)


@get("/authorisations")
async def authorisations(
    request: Incoming,
    reference: str | None = None,
    changed_since: datetime | None = None,
    after: int = 0,
    limit: Limit = 100,
) -> Response[bytes]:
    """By reference, or all that changed since a moment, a page at a time."""
    if reference is not None:
        return _json(200, encode(await _desk(request).find(reference)))
    if changed_since is None or changed_since.tzinfo is None:
        raise BadRequestError(400, "invalid_request", "give reference, or changed_since with its offset from UTC")
    return _json(200, encode(await _ledger(request).list_changed(changed_since, after, limit)))


@get("/ledger")
async def ledger(
    request: Incoming, reference: str | None = None, after: int = 0, limit: Limit = 1000
) -> Response[bytes]:
    """All that was ever asked, and what has become of every authorisation."""
    return _json(200, encode(await _ledger(request).read(reference, after, limit)))


@get("/healthz")
async def healthz() -> Response[bytes]:
    """Alive."""
    return _json(200, b'{"status":"ok"}')


def create_app(data: Path, timings: Timings) -> Litestar:
    """Make the application; the ledger in directory `data` is open while it runs."""

    @asynccontextmanager
    async def open_desk(app: Litestar) -> AsyncIterator[None]:
        methods = payment_methods(timings)
        app.state.ledger = Ledger(data / "ledger.sqlite3", methods)
        app.state.desk = Desk(app.state.ledger, methods)
        app.state.held_reply_seconds = timings.held_reply_seconds
        try:
            yield
        finally:
            await app.state.ledger.aclose()

    return Litestar(
        route_handlers=[authorise, capture, void, refund, authorisations, ledger, healthz],
        lifespan=[open_desk],
        exception_handlers={BadRequestError: _refused, HTTPException: _http_error},
        request_max_body_size=LARGEST_BODY,
        openapi_config=None,
        logging_config=None,
    )


async def _serve(request: Incoming, call: Call) -> Response[Any]:
    answer = await _desk(request).serve(call)
    match answer.delivery:
        case Delivery.LOST:
            return LostReply(request.app.state.held_reply_seconds)
        case Delivery.BROKEN:
            return _json(500, _broken)
        case Delivery.PROMPT:
            headers = {"Idempotency-Replayed": "true"} if answer.replayed else {}
            if answer.retry_after_seconds is not None:
                headers["Retry-After"] = str(answer.retry_after_seconds)
            return _json(answer.status, answer.body, headers)


async def _read(request: Incoming, decoder: msgspec.json.Decoder[B]) -> tuple[str, B]:
    key = request.headers.get("idempotency-key")
    if not key:
        raise BadRequestError(400, "idempotency_key_missing", "send an Idempotency-Key")
    if len(key) > LONGEST_KEY:
        raise BadRequestError(400, "idempotency_key_too_long", f"at most {LONGEST_KEY} characters")
    try:
        return key, decoder.decode(await request.body() or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse_body(error)


def _refuse_body(error: Exception) -> NoReturn:
    raise BadRequestError(422, "invalid_request", str(error)) from error


def _desk(request: Incoming) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _ledger(request: Incoming) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)


def _refused(_: Incoming, error: BadRequestError) -> Response[bytes]:
    return _json(error.status, encode(AnswerBody(code=error.code, message=error.message, permanent=True)))


def _http_error(_: Incoming, error: HTTPException) -> Response[bytes]:
    """Litestar's own: no such path, a query that does not parse, a body too large."""
    code = "invalid_request" if error.status_code < 500 else "internal_error"
    return _json(
        error.status_code,
        encode(AnswerBody(code=code, message=error.detail, permanent=error.status_code < 500)),
    )
