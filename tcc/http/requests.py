"""Reading requests: whose they are, which key they carry, and what their bodies say. Bad input ends here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec
from litestar import Request
from uuid_utils import uuid4

from tcc.commands import Context
from tcc.errors import FieldError, Rejected
from tcc.http.cards import has_card_number
from tcc.idempotency import MAX_KEY_LENGTH, Claim, KeyRef, fingerprint

T = TypeVar("T")

TENANT: Final = "default"
CALLER: Final = "anonymous"
"""Until authentication tells callers apart, everything runs as one of one tenant."""

_CORRELATION: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_NAMED_FIELD: Final = re.compile(r"(?:required|unknown) field `([^`]*)`")
_ESCAPED: Final = re.compile(rb"\\u00([23][0-9a-fA-F])")
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_LONGEST_ECHO: Final = 200
"""How much of what a client sent may be said back to it in an error."""


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that has nothing to say."""


_decode_nothing = msgspec.json.Decoder(_Nothing)


def correlation(headers: dict[bytes, bytes]) -> tuple[str, str]:
    """The correlation id of a request, and the traceparent to answer with; made up where none was sent."""
    made_up = uuid4().hex
    traced = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    trace_id = traced[1].decode() if traced else made_up
    given = headers.get(b"x-correlation-id", b"")
    usable = _CORRELATION.fullmatch(given) and not has_card_number(given)
    return given.decode() if usable else trace_id, f"00-{trace_id}-{made_up[:16]}-01"


def context_of(request: Request[Any, Any, Any]) -> Context:
    """On whose behalf a request is made, and its correlation id."""
    return Context(TENANT, "api", request.scope["state"]["correlation_id"])


def header(request: Request[Any, Any, Any], name: bytes) -> str | None:
    """A header by its name in small letters, as the edge has read them."""
    value: bytes | None = request.scope["state"]["headers"].get(name)
    return None if value is None else value.decode("latin-1")


async def read_body(request: Request[Any, Any, Any], decoder: msgspec.json.Decoder[T]) -> T:
    """The body as its type. It is JSON whatever its Content-Type says: curl's usual one is a form's.

    Raises `Rejected`, naming the field.
    """
    return decode(await request.body(), decoder)


async def expect_no_body(request: Request[Any, Any, Any]) -> None:
    """Refuse what nobody would read; an empty object is as good as nothing."""
    if body := await request.body():
        decode(body, _decode_nothing)


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON as its type. Raises `Rejected`, naming the field."""
    if not body:
        raise _malformed("The body is empty. Send JSON.")
    escapes = b"\\u00" in body
    if has_card_number(body) or (escapes and has_card_number(_ESCAPED.sub(_unescaped, body))):
        raise card_number_refused(_field_with(body, _looks_like_card))
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        detail = {RecursionError: "It is nested too deeply.", UnicodeDecodeError: "It is not UTF-8."}.get(
            type(error), f"{error}."
        )
        raise _malformed(detail) from error
    if escapes and _NUL.search(body):
        raise invalid_field(_field_with(body, _has_nul), "nul_character", "Leave out the character NUL.")
    return value


def _malformed(detail: str) -> Rejected:
    return Rejected("malformed_json", detail, (FieldError("body", "malformed_json", detail),))


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape.group(1).decode())


def _looks_like_card(text: str) -> bool:
    return has_card_number(text.encode())


def _has_nul(text: str) -> bool:
    return "\0" in text


def _field_with(body: bytes, at_fault: Callable[[str], bool]) -> str:
    """The path of the first field whose value is at fault; `body` where that can't be told."""

    def find(value: Any, path: str) -> str | None:
        if isinstance(value, dict):
            if any(at_fault(key) for key in value):
                return path
            parts = ((part, f"{path}.{key}") for key, part in value.items())
        elif isinstance(value, list):
            parts = ((part, f"{path}[{index}]") for index, part in enumerate(value))
        else:
            return path if at_fault(str(value)) else None
        return next((found for part, name in parts if (found := find(part, name)) is not None), None)

    try:
        found = find(msgspec.json.decode(body), "")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = None
    return (found or "body").removeprefix(".")


def card_number_refused(field: str) -> Rejected:
    """The refusal of what looks like a card number. Doesn't repeat it."""
    return Rejected(
        "card_number_refused",
        "Something in this request looks like a card number. Send the payment gateway's token instead.",
        (FieldError(field, "card_number_refused", "Send a token, never a card number."),),
    )


def invalid(message: str, prefix: str = "") -> Rejected:
    """A refusal from msgspec's message about a value at `prefix`; the message ends in the path of the field."""
    found = _PATH.search(message)
    sentence = message[: found.start()] if found else message
    named = _NAMED_FIELD.search(sentence)
    parts = [prefix, found.group(1) if found else "", named.group(1)[:_LONGEST_ECHO] if named else ""]
    field = ".".join(part for part in parts if part).replace(".[", "[") or "body"
    code = "invalid_value"
    if named:
        code = "unknown_field" if "unknown field" in sentence else "missing_field"
    return invalid_field(field, code, f"{sentence[:_LONGEST_ECHO]}.")


def invalid_field(field: str, code: str, detail: str) -> Rejected:
    """A refusal of one field."""
    return Rejected("invalid_request", f"{field}: {detail}", (FieldError(field, code, detail),))


def parse_id(given: str) -> UUID:
    """An id from a path. Raises `Rejected`, naming the field."""
    try:
        return msgspec.convert(given, UUID)
    except msgspec.ValidationError:
        example = "An id is a UUID, such as 019ab9ab-2b7e-7c3e-8000-1c2d3e4f5a6b."
        raise invalid_field("id", "invalid_id", example) from None


def idempotency_key(request: Request[Any, Any, Any]) -> str | None:
    """The Idempotency-Key, bare or quoted, if there is one. Raises `Rejected` where it can't be one."""
    given = header(request, b"idempotency-key")
    if given is None:
        return None
    key = given[1:-1] if len(given) >= 2 and given[0] == given[-1] == '"' else given
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable() and key == key.strip()):
        raise _wrong_key("idempotency_key_invalid", f"1 to {MAX_KEY_LENGTH} printable ASCII characters.")
    if has_card_number(key.encode()):
        raise card_number_refused("Idempotency-Key")
    return key


def required_key(request: Request[Any, Any, Any]) -> str:
    """The Idempotency-Key. Raises `Rejected` where it is missing or can't be one."""
    key = idempotency_key(request)
    if key is None:
        raise _wrong_key("idempotency_key_missing", "Send one: new for every new intent, the same for its repeats.")
    return key


def _wrong_key(code: str, detail: str) -> Rejected:
    return Rejected(code, f"Idempotency-Key: {detail}", (FieldError("Idempotency-Key", code, detail),))


def claim_of(key: str, operation: str, subject_id: UUID, *parts: bytes) -> Claim:
    """The claim on an idempotency key, for a request that is what `parts` say."""
    return Claim(KeyRef(TENANT, CALLER, operation, key), fingerprint(operation.encode(), *parts), subject_id)
