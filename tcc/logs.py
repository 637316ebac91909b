"""Structured logs: JSON lines in production, something readable for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure_logs(form: str, level: str) -> None:
    """Set up this process's logs, once, at its start. `form` is `json` or `console`."""
    processors: list[Any] = [_json]
    factory: Any = structlog.BytesLoggerFactory(sys.stdout.buffer)
    if form == "console":
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the usual one prints local variables
            ),
        ]
        factory = structlog.WriteLoggerFactory(sys.stdout)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.INFO)),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _json(logger: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
    """A line of JSON, in one step instead of structlog's usual five: every request writes one."""
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    return _encode(event)
