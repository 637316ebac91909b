"""The sandbox gateway, spoken to over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from resources.payments.gateways.contract import (
    GatewayUnreachableError,
    Lookup,
    Outcome,
    Page,
    Reply,
    Standing,
)
from resources.payments.gateways.sandbox_replies import UNREADABLE, read_lookup, read_page, read_reply

Payload = dict[str, Any]
T = TypeVar("T")

TIMEOUT = "gateway_timeout"
UNREACHABLE = "gateway_unreachable"

KEPT_ALIVE_SECONDS = 4.0
"""Shorter than servers keep connections (uvicorn: 5 s), so that a call seldom meets one that is closing."""

_encode = msgspec.json.Encoder().encode
_JSON = {"Content-Type": "application/json"}


class _NoAnswerError(Exception):
    """No answer came; `code` says how."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class SandboxGateway:
    """A client of the sandbox.

    One session per client, made by the first call inside the running loop, and bound to that loop: kept
    alive, at most `connections` at once (a call waits for a free one within its timeout). Redirects are
    not followed, and nothing is retried here: that is the caller's, who knows the key.
    """

    name = "sandbox"

    def __init__(self, url: str, *, timeout_seconds: float = 5.0, connections: int = 64) -> None:
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def authorise(self, *, reference: str, amount: int, currency: str, payment_method: str, key: str) -> Reply:
        payload = {
            "reference": reference,
            "amount": amount,
            "currency": currency,
            "payment_method": payment_method,
        }
        return await self._post("authorise", "/authorisations", payload, key, {})

    async def capture(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        return await self._follow_up("capture", authorisation_id, {"amount": amount}, key)

    async def void(self, *, authorisation_id: str, key: str) -> Reply:
        return await self._follow_up("void", authorisation_id, {}, key)

    async def refund(self, *, authorisation_id: str, amount: int, key: str) -> Reply:
        return await self._follow_up("refund", authorisation_id, {"amount": amount}, key)

    async def find(self, *, reference: str) -> Lookup:
        request: Payload = {"operation": "find", "reference": reference}
        begun = perf_counter()
        try:
            return await self._send(
                "GET",
                "/authorisations?" + urlencode({"reference": reference}),
                lambda status, body, retry_after: read_lookup(
                    status=status,
                    body=body,
                    retry_after=retry_after,
                    request=request,
                    duration_seconds=perf_counter() - begun,
                ),
            )
        except _NoAnswerError as silent:
            return Lookup(
                standing=Standing.UNKNOWN,
                code=silent.code,
                request=request,
                duration_seconds=perf_counter() - begun,
            )

    async def list_changed(self, *, since: datetime, cursor: str | None = None, limit: int = 100) -> Page:
        query: dict[str, str | int] = {"changed_since": since.isoformat(), "limit": limit}
        if cursor is not None:
            query["after"] = cursor
        try:
            page, status = await self._send(
                "GET",
                "/authorisations?" + urlencode(query),
                lambda status, body, _: (read_page(status, body), status),
            )
        except _NoAnswerError as silent:
            raise GatewayUnreachableError(silent.code) from silent
        if page is None:
            raise GatewayUnreachableError(UNREADABLE if status == 200 else f"gateway_status_{status}")
        return page

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _follow_up(self, operation: str, authorisation_id: str, payload: Payload, key: str) -> Reply:
        path = f"/authorisations/{quote(authorisation_id, safe='')}/{operation}"
        return await self._post(operation, path, payload, key, {"authorisation_id": authorisation_id})

    async def _post(self, operation: str, path: str, payload: Payload, key: str, extra: Payload) -> Reply:
        request = {"operation": operation, "key": key, **extra, **payload}
        begun = perf_counter()
        try:
            return await self._send(
                "POST",
                path,
                lambda status, body, retry_after: read_reply(
                    status=status,
                    body=body,
                    retry_after=retry_after,
                    request=request,
                    duration_seconds=perf_counter() - begun,
                ),
                body=_encode(payload),
                key=key,
            )
        except _NoAnswerError as silent:
            return Reply(
                outcome=Outcome.UNKNOWN,
                code=silent.code,
                request=request,
                duration_seconds=perf_counter() - begun,
            )

    async def _send(
        self,
        method: str,
        path: str,
        read: Callable[[int, bytes, str | None], T],
        body: bytes | None = None,
        key: str | None = None,
    ) -> T:
        headers = _JSON if key is None else {**_JSON, "Idempotency-Key": key}
        try:
            async with self._opened().request(
                method, URL(self._url + path, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                return read(response.status, await response.read(), response.headers.get("Retry-After"))
        except TimeoutError as error:
            raise _NoAnswerError(TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _NoAnswerError(UNREACHABLE) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=KEPT_ALIVE_SECONDS),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
