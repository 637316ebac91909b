"""Requests that a well-behaved client never sends, written to the socket as they are."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tests.client import Answer, Api


async def send(api: Api, request: bytes) -> Answer:
    """The answer to the bytes of one request, which must end its connection."""
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        status, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
        return Answer(int(status.split()[1]), headers, body)
    finally:
        writer.close()


async def send_at_length(api: Api, method: str, path: str, size: int, *, chunked: bool) -> Answer:
    """A request with a long body, announced by its length or in chunks."""
    head = f"{method} {path} HTTP/1.1\r\nHost: tcc\r\nIdempotency-Key: long\r\nContent-Type: application/json\r\n"
    if not chunked:
        return await send(api, f"{head}Content-Length: {size}\r\n\r\n".encode() + b" " * size)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    return await send(api, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * (size // 0x10000))
