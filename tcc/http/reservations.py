"""The routes of one resource's reservations: the same for every resource, made from its claim."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath

from tcc import reads
from tcc.commands import DONE, Context, Outcome, ReservationView
from tcc.errors import Rejected, Unavailable
from tcc.groups import FORGET, Result
from tcc.http.bodies import Extend, try_type, ttl_of
from tcc.http.direct import ONE, Handler
from tcc.http.openapi import operation
from tcc.http.replies import Replies, reservation_location
from tcc.http.requests import (
    TENANT,
    claim_of,
    context_of,
    expect_no_body,
    idempotency_key,
    parse_id,
    read_body,
    required_key,
)
from tcc.http.respond import Current, replay, respond, within
from tcc.idempotency import Claim, Held, Reply
from tcc.ids import new_id
from tcc.machine import RESTING, Event, Reason
from tcc.reserver import ReservationReply
from tcc.resource import Resource
from tcc.service import Service

_encode = msgspec.json.Encoder().encode
_decode_extend = msgspec.json.Decoder(Extend)


class ReservationRoutes:
    """The handlers of one resource."""

    def __init__(self, service: Service, resource: Resource, replies: Replies) -> None:
        self._service = service
        self._resource = resource
        self._replies = replies
        self.body = try_type(resource)
        self._decoder = msgspec.json.Decoder(self.body)
        self._claim_fields = resource.claim.__struct_fields__

    async def try_(self, request: Request[Any, Any, Any]) -> Reply:
        body = await read_body(request, self._decoder)
        claim = self._resource.claim(**{name: getattr(body, name) for name in self._claim_fields})
        if errors := tuple(self._resource.check(claim)):
            raise Rejected("invalid_request", errors[0].detail, errors)
        ttl_seconds = ttl_of(body.ttl_seconds, self._service.settings)
        key = idempotency_key(request) if body.id else required_key(request)
        id = body.id or new_id()
        context = context_of(request)
        key_claim = claim_of(key, f"{self._resource.name}.try", id, _encode(body)) if key else None
        reply = self._replies.tried(context.correlation_id)
        result = await self._service.reserver.hold(
            context,
            resource=self._resource.name,
            id=id,
            raw=msgspec.Raw(_encode(claim)),
            ttl_seconds=ttl_seconds,
            reference=body.reference,
            claim=key_claim,
            reply=reply,
        )
        return await self._finish(context, key_claim, result, reply)

    async def confirm(self, request: Request[Any, Any, Any], reservation_id: str) -> Reply:
        await expect_no_body(request)
        return await self._move(request, reservation_id, Event.CONFIRM)

    async def cancel(self, request: Request[Any, Any, Any], reservation_id: str) -> Reply:
        await expect_no_body(request)
        return await self._move(request, reservation_id, Event.CANCEL)

    async def extend(self, request: Request[Any, Any, Any], reservation_id: str) -> Reply:
        body = await read_body(request, _decode_extend)
        return await self._move(request, reservation_id, Event.EXTEND, ttl_of(body.ttl_seconds, self._service.settings))

    async def show(self, _: Request[Any, Any, Any], reservation_id: str) -> Reply:
        view = await self._read(parse_id(reservation_id))
        if view is None:
            raise Rejected("not_found", "There is no reservation under this id.")
        return self._replies.reservation(view, 200)

    async def put(self, request: Request[Any, Any, Any], reservation_id: str) -> Reply:
        return _bare(await self._move(request, reservation_id, Event.CONFIRM))

    async def delete(self, request: Request[Any, Any, Any], reservation_id: str) -> Reply:
        return _bare(await self._move(request, reservation_id, Event.CANCEL))

    def direct(self, path: str) -> dict[tuple[str, str], Handler]:
        """Those that carry the load, by method and path; what posts a Try to `path` itself isn't among them."""
        one = path + ONE
        return {
            ("POST", f"{one}/confirm"): self.confirm,
            ("POST", f"{one}/cancel"): self.cancel,
            ("POST", f"{one}/extend"): self.extend,
            ("GET", one): self.show,
            ("PUT", one): self.put,
            ("DELETE", one): self.delete,
        }

    async def _move(
        self, request: Request[Any, Any, Any], reservation_id: str, event: Event, ttl_seconds: float | None = None
    ) -> Reply:
        id = parse_id(reservation_id)
        context = context_of(request)
        key = idempotency_key(request)
        operation_name = f"{self._resource.name}.{event}"
        key_claim = claim_of(key, operation_name, id, id.bytes, str(ttl_seconds).encode()) if key else None
        reply = self._replies.moved(context.correlation_id)
        result = await self._service.reserver.move(
            context,
            resource=self._resource.name,
            id=id,
            event=event,
            reason=Reason.REQUESTED if event is Event.CANCEL else None,
            ttl_seconds=ttl_seconds,
            claim=key_claim,
            reply=reply,
        )
        return await self._finish(context, key_claim, result, reply)

    async def _finish(
        self,
        context: Context,
        claim: Claim | None,
        result: Result,
        reply: ReservationReply,
    ) -> Reply:
        """Answer with what is known; where the outside must be asked, ask it first, within the time there is."""
        if result.held is not None and claim is not None:
            return await replay(self._service, self._resource.name, claim, result.held, self._current(reply))
        if result.reply is not None and result.reply is not FORGET:
            return result.reply
        outcome: Outcome[ReservationView] = result.outcomes[0]
        seconds = self._service.settings.default_wait_seconds
        answers = claim.ref if claim else None
        if outcome.code == DONE and outcome.view is not None and outcome.view.state in RESTING:
            work = self._service.reserver.settle(
                context, outcome.view, answers=answers, reply=reply, patience_seconds=seconds
            )
            with suppress(Unavailable):  # the intent is recorded, and a sweep will go on with it
                result = await within(self._service.spawn(work), seconds) or result
            if result.reply is not None and result.reply is not FORGET:
                return result.reply
            outcome = result.outcomes[0]
        if not outcome.ok or outcome.view is None:
            return self._replies.refused(outcome, context.correlation_id)
        final = reply(outcome)
        if final is None:
            final = self._replies.reservation(outcome.view, 202, reservation_location(outcome.view))
            if answers:
                final = await self._service.answer(self._resource.name, answers, final)
        return final

    def _current(self, reply: ReservationReply) -> Current:
        async def current(held: Held) -> Reply | None:
            view = await self._read(held.subject_id)
            if view is None:
                return None
            accepted = held.age_seconds > self._service.settings.default_wait_seconds or view.attention
            return reply(Outcome("repeated", view, view.updated_at)) or (
                self._replies.reservation(view, 202, reservation_location(view)) if accepted else None
            )

        return current

    async def _read(self, id: UUID) -> ReservationView | None:
        database = self._service.stores.of(self._resource.name).database
        key = (self._resource.name, id)
        return (await reads.reservations(database, TENANT, [key])).get(key)


def _bare(reply: Reply) -> Reply:
    """The same, without a body where all is done: what TCC-for-REST coordinators expect."""
    return msgspec.structs.replace(reply, status=204, body=b"") if reply.status == 200 else reply


def try_path(resource: Resource) -> str:
    """Where a Try is posted to."""
    return f"/v1/{resource.name}/reservations"


def reservation_handlers(routes: ReservationRoutes, resource: Resource) -> list[Any]:
    """Litestar handlers for a resource's reservations."""
    base = try_path(resource)
    tags = [resource.name]
    resting = {202: ("The outside is still being asked.", ReservationView)}

    @post(
        base,
        status_code=201,
        summary=f"Try: hold {resource.name}",
        operation_class=operation(
            body=routes.body,
            replies={201: ("Held.", ReservationView), **resting},
            problems={409: "Refused, or in contradiction with what is.", 422: "Something in the claim is wrong."},
            keyed=False,
        ),
        tags=tags,
    )
    async def try_(request: Request[Any, Any, Any]) -> Response[bytes]:
        return respond(await routes.try_(request))

    @post(
        f"{base}/{{reservation_id:str}}/confirm",
        status_code=200,
        summary="Confirm: make the hold final",
        operation_class=operation(replies={200: ("Confirmed.", ReservationView), **resting}, keyed=False),
        tags=tags,
    )
    async def confirm(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.confirm(request, reservation_id))

    @post(
        f"{base}/{{reservation_id:str}}/cancel",
        status_code=200,
        summary="Cancel: give the hold back; of an id never tried, forbid a late Try",
        operation_class=operation(replies={200: ("Cancelled.", ReservationView), **resting}, keyed=False),
        tags=tags,
    )
    async def cancel(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.cancel(request, reservation_id))

    @post(
        f"{base}/{{reservation_id:str}}/extend",
        status_code=200,
        summary="Extend: hold it longer",
        operation_class=operation(body=Extend, replies={200: ("Extended.", ReservationView)}, keyed=False),
        tags=tags,
    )
    async def extend(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.extend(request, reservation_id))

    @get(
        f"{base}/{{reservation_id:str}}",
        summary="Show a reservation",
        operation_class=operation(replies={200: ("The reservation.", ReservationView)}),
        tags=tags,
    )
    async def show(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.show(request, reservation_id))

    @put(
        f"{base}/{{reservation_id:str}}",
        status_code=200,
        summary="Confirm, for TCC-for-REST coordinators",
        operation_class=operation(replies={204: ("Confirmed.", None), **resting}),
        tags=tags,
    )
    async def put_(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.put(request, reservation_id))

    @delete(
        f"{base}/{{reservation_id:str}}",
        status_code=200,
        summary="Cancel, for TCC-for-REST coordinators",
        operation_class=operation(replies={204: ("Cancelled.", None), **resting}),
        tags=tags,
    )
    async def delete_(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return respond(await routes.delete(request, reservation_id))

    return [try_, confirm, cancel, extend, show, put_, delete_]
