"""Reading requests: whose they are, which key they carry, and what their bodies say. Bad input ends here."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import msgspec
from litestar import Request

from tcc.commands import Context
from tcc.errors import FieldError, Rejected
from tcc.http.cards import has_card_number
from tcc.idempotency import MAX_KEY_LENGTH, Claim, KeyRef, fingerprint

T = TypeVar("T")

TENANT: Final = "default"
CALLER: Final = "anonymous"
"""Until authentication tells callers apart, everything runs as one of one tenant."""

_encode = msgspec.json.Encoder().encode
_CORRELATION: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_KEY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")


def correlation(headers: dict[bytes, bytes]) -> tuple[str, str]:
    """The correlation id of a request, and the traceparent to answer with; made up where none was sent."""
    traced = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b"").decode("latin-1"))
    trace_id = traced.group(1) if traced else uuid4().hex
    given = headers.get(b"x-correlation-id", b"").decode("latin-1")
    usable = _CORRELATION.fullmatch(given) and not has_card_number(given.encode())
    return given if usable else trace_id, f"00-{trace_id}-{trace_id[:16]}-01"


def context_of(request: Request[Any, Any, Any]) -> Context:
    """On whose behalf a request is made, and its correlation id."""
    return Context(TENANT, "api", request.scope["state"]["correlation_id"])


def decode(body: bytes, decoder: msgspec.json.Decoder[T], *, prefix: str = "") -> T:
    """A body, or a part of one at `prefix`, as its type. Raises `Rejected`, naming the field."""
    if has_card_number(body):
        raise card_number_refused()
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error), prefix) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        detail = "It is nested too deeply." if isinstance(error, RecursionError) else str(error)
        raise Rejected("malformed_json", detail, (FieldError(prefix or "body", "malformed_json", detail),)) from error
    if b"\\" in body:
        plain = _encode(value)
        if has_card_number(plain):
            raise card_number_refused()
        if b"\\u0000" in plain:
            raise Rejected(
                "invalid_request",
                "A string contains the character NUL, which can't be stored.",
                (FieldError(prefix or "body", "nul_character", "Leave out the character NUL."),),
            )
    return value


def card_number_refused() -> Rejected:
    """The refusal of what looks like a card number. Doesn't repeat it."""
    return Rejected(
        "card_number_refused",
        "Something in this request looks like a card number. Send the payment gateway's token instead.",
        (FieldError("body", "card_number_refused", "Send a token, never a card number."),),
    )


def invalid(message: str, prefix: str = "") -> Rejected:
    """A refusal from msgspec's message, which ends in the path of the field."""
    found = _PATH.search(message)
    path = found.group(1) if found else ""
    sentence = message[: found.start()] if found else message
    missing = re.search(r"(?:required|unknown) field `([^`]*)`", sentence)
    parts = [prefix, path, missing.group(1) if missing else ""]
    field = ".".join(part for part in parts if part).replace(".[", "[") or "body"
    code = "invalid_value"
    if missing:
        code = "unknown_field" if "unknown field" in sentence else "missing_field"
    return invalid_field(field, code, f"{sentence}.")


def invalid_field(field: str, code: str, detail: str) -> Rejected:
    """A refusal of one field."""
    return Rejected("invalid_request", f"{field}: {detail}", (FieldError(field, code, detail),))


def parse_id(given: str) -> UUID:
    """An id from a path. Raises `Rejected`, naming the field."""
    try:
        if len(given) != 36:
            raise ValueError
        return UUID(given)
    except ValueError:
        raise invalid_field("id", "invalid_id", "An id is a UUID, such as 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b.") from None


def idempotency_key(request: Request[Any, Any, Any], *, required: bool) -> str | None:
    """The Idempotency-Key, bare or quoted. Raises `Rejected` where it is missing or can't be one."""
    given = request.headers.get("idempotency-key")
    if given is None:
        if required:
            raise Rejected("idempotency_key_missing", "Send a header Idempotency-Key, new for every new intent.")
        return None
    key = given[1:-1] if len(given) >= 2 and given[0] == given[-1] == '"' else given
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise Rejected(
            "idempotency_key_invalid",
            f"An Idempotency-Key is 1 to {MAX_KEY_LENGTH} printable ASCII characters.",
            (FieldError("Idempotency-Key", "idempotency_key_invalid", f"1 to {MAX_KEY_LENGTH} printable characters."),),
        )
    if has_card_number(key.encode()):
        raise card_number_refused()
    return key


def claim_of(key: str | None, operation: str, subject_id: UUID, *parts: bytes) -> Claim | None:
    """The claim on an idempotency key, for a request that is what `parts` say."""
    if key is None:
        return None
    return Claim(KeyRef(TENANT, CALLER, operation, key), fingerprint(operation.encode(), *parts), subject_id)
