"""A client as users have one: JSON over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import uvicorn

from tcc.http.app import build_app
from tcc.service import Service


class Answer(msgspec.Struct, frozen=True):
    """A reply: status, headers, the body's bytes, and what they say."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


class Api:
    """Requests to one API."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request. `body` is sent as it is where it is bytes, else as JSON."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            sent["Idempotency-Key"] = key
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        async with self._session.request(method, self.url + path, data=data, headers=sent) as reply:
            lowered = {name.lower(): value for name, value in reply.headers.items()}
            return Answer(reply.status, lowered, await reply.read())

    async def get(self, path: str, **kwargs: Any) -> Answer:
        return await self.ask("GET", path, **kwargs)

    async def post(self, path: str, body: Any = None, **kwargs: Any) -> Answer:
        return await self.ask("POST", path, body, **kwargs)

    async def put(self, path: str, body: Any = None, **kwargs: Any) -> Answer:
        return await self.ask("PUT", path, body, **kwargs)

    async def delete(self, path: str, **kwargs: Any) -> Answer:
        return await self.ask("DELETE", path, **kwargs)

    async def stock(self, sku: str, on_hand: int, **more: Any) -> Answer:
        """Put units on the shelf."""
        return await self.put(f"/v1/inventory/items/{sku}", {"on_hand": on_hand, **more})

    async def hold(self, sku: str, quantity: int = 1, *, key: str | None = None, **more: Any) -> Answer:
        """Try stock, under a new key unless one is given."""
        body = {"lines": [{"sku": sku, "quantity": quantity}], **more}
        return await self.post("/v1/inventory/reservations", body, key=key or new_key())

    async def order(
        self,
        sku: str,
        *,
        payment_method: str = "tok_ok",
        confirm: str = "auto",
        quantity: int = 1,
        key: str | None = None,
        query: str = "",
        **more: Any,
    ) -> Answer:
        """A whole order: stock, a card and the order itself."""
        body = {"branches": whole_order(sku, payment_method, quantity), "confirm": confirm, **more}
        return await self.post(f"/v1/transactions{query}", body, key=key or new_key())


def new_key() -> str:
    """A key for a new intent."""
    return str(uuid4())


def whole_order(sku: str, payment_method: str = "tok_ok", quantity: int = 1) -> list[dict[str, Any]]:
    """The branches of an order at 12.50 EUR a unit."""
    amount = 1250
    return [
        {"resource": "inventory", "claim": {"lines": [{"sku": sku, "quantity": quantity}]}},
        {
            "resource": "payments",
            "claim": {"amount": amount * quantity, "currency": "EUR", "payment_method": payment_method},
        },
        {
            "resource": "orders",
            "claim": {
                "customer": "ada",
                "currency": "EUR",
                "lines": [{"sku": sku, "quantity": quantity, "unit_amount": amount}],
            },
        },
    ]


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Api]:
    """The API of a service that stays open, on a free port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = build_app(service, "test", service.settings.max_body_bytes, owns_service=False)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none", lifespan="on"))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Api(session, f"http://127.0.0.1:{listening.getsockname()[1]}")
    server.should_exit = True
    await running
    listening.close()
