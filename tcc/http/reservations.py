"""The routes of one resource's reservations: the same for every resource, made from its claim."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath
from msgspec import Meta

from tcc import reads
from tcc.batch import Result
from tcc.commands import DONE, Context, Outcome, ReservationView
from tcc.errors import Rejected, Unavailable
from tcc.http.openapi import operation
from tcc.http.replies import Replies, reservation_location
from tcc.http.requests import (
    claim_of,
    context_of,
    decode,
    idempotency_key,
    invalid_field,
    parse_id,
)
from tcc.http.respond import first, replay, respond, within
from tcc.idempotency import Claim, Held, Reply
from tcc.ids import new_id
from tcc.machine import RESTING, Event, Reason
from tcc.reserver import ReservationReply
from tcc.resource import Resource
from tcc.service import Service

Reference = Annotated[str, Meta(min_length=1, max_length=255)]
TtlSeconds = Annotated[float, Meta(ge=1)]


class ExtendBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long from now it shall be held, in seconds. Never shortens a hold."""

    ttl_seconds: TtlSeconds


_encode = msgspec.json.Encoder().encode
_decode_extend = msgspec.json.Decoder(ExtendBody)


def ttl_of(given: float | None, service: Service) -> float:
    """The time to live asked for, or the usual one. Raises `Rejected` beyond the longest allowed."""
    longest = service.settings.max_ttl_seconds
    if given is not None and given > longest:
        raise invalid_field("ttl_seconds", "out_of_bounds", f"At most {longest:g} seconds.")
    return service.settings.default_ttl_seconds if given is None else given


def body_of(resource: Resource) -> type[msgspec.Struct]:
    """The body of a Try: the claim's fields, and how to hold it."""
    return msgspec.defstruct(
        f"{resource.name.capitalize()}Try",
        [("id", UUID | None, None), ("ttl_seconds", TtlSeconds | None, None), ("reference", Reference | None, None)],
        bases=(resource.claim,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


class ReservationRoutes:
    """The handlers of one resource."""

    def __init__(self, service: Service, resource: Resource, replies: Replies) -> None:
        self._service = service
        self._resource = resource
        self._replies = replies
        self._body = body_of(resource)
        self._decoder = msgspec.json.Decoder(self._body)
        self._claim_fields = resource.claim.__struct_fields__

    async def try_(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        raw = await request.body()
        body: Any = decode(raw, self._decoder)
        claim = self._resource.claim(**{name: getattr(body, name) for name in self._claim_fields})
        if errors := tuple(self._resource.check(claim)):
            raise Rejected("invalid_request", errors[0].detail, errors)
        ttl_seconds = ttl_of(body.ttl_seconds, self._service)
        key = idempotency_key(request, required=body.id is None)
        id = body.id or new_id()
        context = context_of(request)
        key_claim = claim_of(key, f"{self._resource.name}.try", id, _encode(body))
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
        return await self._finish(request, context, key_claim, result, reply, accepted=202)

    async def confirm(self, request: Request[Any, Any, Any], reservation_id: str) -> Response[bytes]:
        return await self._move(request, reservation_id, Event.CONFIRM)

    async def cancel(self, request: Request[Any, Any, Any], reservation_id: str) -> Response[bytes]:
        return await self._move(request, reservation_id, Event.CANCEL)

    async def extend(self, request: Request[Any, Any, Any], reservation_id: str) -> Response[bytes]:
        body = decode(await request.body(), _decode_extend)
        return await self._move(request, reservation_id, Event.EXTEND, ttl_of(body.ttl_seconds, self._service))

    async def show(self, reservation_id: str) -> Response[bytes]:
        view = await self._read(parse_id(reservation_id))
        if view is None:
            raise Rejected("not_found", "There is no reservation under this id.")
        return respond(self._replies.reservation(view, 200))

    async def put(self, request: Request[Any, Any, Any], reservation_id: str) -> Response[bytes]:
        return _bare(await self._move(request, reservation_id, Event.CONFIRM))

    async def delete(self, request: Request[Any, Any, Any], reservation_id: str) -> Response[bytes]:
        return _bare(await self._move(request, reservation_id, Event.CANCEL))

    async def _move(
        self, request: Request[Any, Any, Any], reservation_id: str, event: Event, ttl_seconds: float | None = None
    ) -> Response[bytes]:
        id = parse_id(reservation_id)
        context = context_of(request)
        key = idempotency_key(request, required=False)
        operation_name = f"{self._resource.name}.{event}"
        key_claim = claim_of(key, operation_name, id, id.bytes, str(ttl_seconds).encode())
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
        return await self._finish(request, context, key_claim, result, reply, accepted=202)

    async def _finish(
        self,
        request: Request[Any, Any, Any],
        context: Context,
        claim: Claim | None,
        result: Result,
        reply: ReservationReply,
        *,
        accepted: int,
    ) -> Response[bytes]:
        """Answer with what is known; where the outside must be asked, ask it first, within the time there is."""
        if result.held is not None and claim is not None:
            return await replay(self._service, self._resource.name, claim, result.held, self._current(reply))
        if result.reply is not None and result.reply.status:
            return respond(result.reply)
        outcome: Outcome[ReservationView] = first(result)
        if not outcome.ok or outcome.view is None:
            return respond(self._replies.refused(outcome, context.correlation_id))
        seconds = self._service.settings.default_wait_seconds
        answers = claim.ref if claim else None
        if outcome.code == DONE and outcome.view.state in RESTING:
            task = self._service.spawn(
                self._service.reserver.settle(
                    context, outcome.view, answers=answers, reply=reply, patience_seconds=seconds
                )
            )
            outcome = await within(task, seconds) or outcome
        final = reply(outcome)
        if final is None and outcome.view is not None:
            final = self._replies.reservation(outcome.view, accepted, reservation_location(outcome.view))
            if answers:
                final = await self._service.answer(self._resource.name, answers, final)
        if final is None:
            raise Unavailable("request_in_flight")
        return respond(final)

    def _current(self, reply: ReservationReply) -> Any:
        async def current(held: Held) -> Reply | None:
            view = await self._read(held.subject_id)
            return None if view is None else reply(Outcome("repeated", view, view.updated_at))

        return current

    async def _read(self, id: UUID) -> ReservationView | None:
        database = self._service.stores.of(self._resource.name).database
        return (await reads.reservations(database, "default", self._resource.name, [id])).get(id)


def _bare(response: Response[bytes]) -> Response[bytes]:
    """The same, without a body where all is done: what TCC-for-REST coordinators expect."""
    if response.status_code != 200:
        return response
    return Response(b"", status_code=204, headers=response.headers)


def reservation_handlers(service: Service, resource: Resource, replies: Replies) -> list[Any]:
    """Litestar handlers for a resource's reservations."""
    routes = ReservationRoutes(service, resource, replies)
    base = f"/v1/{resource.name}/reservations"
    tags = [resource.name]
    resting = {202: ("The outside is still being asked.", ReservationView)}
    described = {"tags": tags, "include_in_schema": True}

    @post(
        base,
        status_code=201,
        summary=f"Try: hold {resource.name}",
        operation_class=operation(
            body=routes._body,
            replies={201: ("Held.", ReservationView), **resting},
            problems={409: "Refused, or in contradiction with what is.", 422: "Something in the claim is wrong."},
            keyed=False,
        ),
        **described,
    )
    async def try_(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await routes.try_(request)

    @post(
        f"{base}/{{reservation_id:str}}/confirm",
        status_code=200,
        summary="Confirm: make the hold final",
        operation_class=operation(replies={200: ("Confirmed.", ReservationView), **resting}, keyed=False),
        **described,
    )
    async def confirm(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.confirm(request, reservation_id)

    @post(
        f"{base}/{{reservation_id:str}}/cancel",
        status_code=200,
        summary="Cancel: give the hold back; of an id never tried, forbid a late Try",
        operation_class=operation(replies={200: ("Cancelled.", ReservationView), **resting}, keyed=False),
        **described,
    )
    async def cancel(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.cancel(request, reservation_id)

    @post(
        f"{base}/{{reservation_id:str}}/extend",
        status_code=200,
        summary="Extend: hold it longer",
        operation_class=operation(body=ExtendBody, replies={200: ("Extended.", ReservationView)}, keyed=False),
        **described,
    )
    async def extend(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.extend(request, reservation_id)

    @get(
        f"{base}/{{reservation_id:str}}",
        summary="Show a reservation",
        operation_class=operation(replies={200: ("The reservation.", ReservationView)}),
        **described,
    )
    async def show(reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.show(reservation_id)

    @put(
        f"{base}/{{reservation_id:str}}",
        status_code=200,
        summary="Confirm, for TCC-for-REST coordinators",
        operation_class=operation(replies={204: ("Confirmed.", None), **resting}),
        **described,
    )
    async def put_(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.put(request, reservation_id)

    @delete(
        f"{base}/{{reservation_id:str}}",
        status_code=200,
        summary="Cancel, for TCC-for-REST coordinators",
        operation_class=operation(replies={204: ("Cancelled.", None), **resting}),
        **described,
    )
    async def delete_(request: Request[Any, Any, Any], reservation_id: FromPath[str]) -> Response[bytes]:
        return await routes.delete(request, reservation_id)

    return [try_, confirm, cancel, extend, show, put_, delete_]


