"""What a line of the log looks like."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import structlog

from tcc.ids import new_id
from tcc.logs import configure_logs

Lines = Callable[[], list[Any]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The lines that are written as JSON, at the level info."""
    output = io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    configure_logs("json", "info")
    buffer: Any = output.buffer
    yield lambda: [msgspec.json.decode(line) for line in buffer.getvalue().splitlines()]
    structlog.reset_defaults()


def test_a_line_says_what_happened_when_and_how_bad_it_is(written: Lines) -> None:
    id, at = new_id(), datetime.now(UTC)
    log = structlog.get_logger()
    log.info("request", status=201, id=id)
    log.warning("attention", why=ValueError("odd"))
    log.debug("nothing")
    first, second = written()
    assert list(first) == ["status", "id", "event", "level", "timestamp"]
    assert (first["status"], first["id"], first["event"], first["level"]) == (201, str(id), "request", "info")
    assert (second["event"], second["level"], second["why"]) == ("attention", "warning", "odd")
    assert first["timestamp"].endswith("Z")
    assert 0 <= (datetime.fromisoformat(first["timestamp"]) - at).total_seconds() < 5


def test_an_error_is_written_with_its_traceback(written: Lines) -> None:
    log = structlog.get_logger()
    try:
        int("odd")
    except ValueError as error:
        log.exception("failed")
        log.error("failed", exc_info=error)
    for line in written():
        assert (line["event"], line["level"]) == ("failed", "error")
        assert line["exception"].startswith("Traceback")
        assert "ValueError: " in line["exception"]
        assert "exc_info" not in line
