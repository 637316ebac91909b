"""JSON over HTTP to the parts that we have started ourselves, as any client of theirs would speak it."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    """What was answered. `body` is the JSON document, None where there was none; header names are lower case."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


def call(
    method: str,
    url: str,
    body: object | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> Reply:
    """Send one request; whatever status it is answered with is a reply. Raises OSError where there is none."""
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:  # noqa: S310
            return _reply(answer.status, answer.headers.items(), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error.code, error.headers.items(), error.read())


def _reply(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Reply:
    lowered = {name.lower(): value for name, value in headers}
    return Reply(status, json.loads(body) if body else None, lowered)
