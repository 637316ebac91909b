"""What a client is sent, it is sent in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from tcc.http.gathering import GatheringProtocol

HELLO = b"GET / HTTP/1.1\r\nhost: tcc\r\n\r\n"
BYE = b"GET / HTTP/1.1\r\nhost: tcc\r\nconnection: close\r\n\r\n"


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


class Socket(asyncio.Transport):
    """A connection's socket: what was written to it, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def _connect() -> tuple[GatheringProtocol, Socket]:
    config = uvicorn.Config(_hello, lifespan="off")
    config.load()
    protocol, socket = GatheringProtocol(config, ServerState(), {}), Socket()
    protocol.connection_made(socket)
    return protocol, socket


async def _rounds() -> None:
    """Let the event loop come round as often as an answer takes."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_head_and_body_are_one_write() -> None:
    protocol, socket = _connect()
    for _ in range(2):
        protocol.data_received(HELLO)
        await _rounds()
    assert [write.endswith(b"\r\n\r\nhello") for write in socket.writes] == [True, True]


async def test_the_last_response_is_sent_before_its_connection_is_closed() -> None:
    protocol, socket = _connect()
    protocol.data_received(BYE)
    await _rounds()
    assert [write.endswith(b"\r\n\r\nhello") for write in socket.writes] == [True]
    assert socket.closed


async def test_a_client_that_went_away_is_sent_nothing() -> None:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    protocol, socket = _connect()
    protocol.transport.write(b"half of an answer")
    socket.closed = True
    await _rounds()
    assert (socket.writes, errors) == ([], [])


async def test_a_client_that_asks_nothing_more_gets_the_answer_that_was_written() -> None:
    protocol, socket = _connect()
    protocol.transport.write(b"an answer")
    protocol.eof_received()
    socket.closed = True
    await _rounds()
    assert socket.writes == [b"an answer"]
