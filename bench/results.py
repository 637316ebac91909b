"""What a run found out, as it is kept in `bench/results.json`."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from bench.openloop import Moment, Summary

FILE = Path(__file__).parent / "results.json"


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_gigabytes: float
    kernel: str
    sync_milliseconds: float
    """What making a page durable on this disk costs: the median of an fdatasync."""
    python: str
    postgresql: str
    settings: dict[str, str]
    packages: dict[str, str]


class Stamp(msgspec.Struct, frozen=True):
    """On which code a section was measured, when, and how long."""

    commit: str
    date: str
    rounds: int
    seconds: float


class Spread(msgspec.Struct, frozen=True):
    """Median and range of the rounds."""

    median: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    """One contestant, round by round. CPU is in milliseconds per cycle that ended well: of the measured service, of
    PostgreSQL with all its processes, and of the load itself."""

    per_second: list[float] = []
    p50_ms: list[float] = []
    p99_ms: list[float] = []
    service_cpu_ms: list[float] = []
    postgres_cpu_ms: list[float] = []
    load_cpu_ms: list[float] = []
    not_good: int = 0


class Throughput(msgspec.Struct, frozen=True):
    """A section in which contestants are run one after the other, round by round. `figures` are what else was seen."""

    stamp: Stamp
    lines: dict[str, Line]
    figures: dict[str, float] = {}


class Offered(msgspec.Struct, frozen=True):
    """An open loop at a share of the sustainable rate."""

    share: float
    rate: float
    late_p99_ms: float
    """How late the load itself was in sending."""
    came: Summary


class Overload(msgspec.Struct, frozen=True):
    """What came of twice the sustainable rate, and after it."""

    rate: float
    seconds: float
    usual_p99_ms: float
    """At half the sustainable rate, before."""
    goodput: float
    """Good replies per second that came while it lasted."""
    during: Summary
    after: Summary
    recovered_seconds: float | None
    timeline: list[Moment]


class OpenLoop(msgspec.Struct, frozen=True):
    """Whole orders, spread over all units, that come whether or not the ones before are answered."""

    stamp: Stamp
    closed: Line
    sustainable: float
    points: list[Offered]
    overload: Overload


class Backlogs(msgspec.Struct, frozen=True):
    """What one worker does with what was left lying."""

    stamp: Stamp
    tries: int
    tries_seconds: float
    serving_rate: float
    serving_before: Summary
    serving_meanwhile: Summary
    transactions: int
    transactions_seconds: float


class Table(msgspec.Struct, frozen=True):
    """A table of the database with the history, before and after the rounds."""

    name: str
    rows: int
    megabytes: float
    megabytes_after: float
    dead: int
    dead_after: int
    updated: int
    """Updates in the rounds; `hot` of them touched no index."""
    hot: int
    autovacuums: int
    """Since the table was made."""


class History(msgspec.Struct, frozen=True):
    """The same work after many past reservations, and on empty tables."""

    stamp: Stamp
    reservations: int
    fill_seconds: float
    lines: dict[str, Line]
    tables: list[Table]
    purged_keys: int
    purge_seconds: float


class Statement(msgspec.Struct, frozen=True):
    """What one statement cost PostgreSQL, for each order."""

    what: str
    calls: float
    milliseconds: float
    rows: float
    wal_bytes: float


class Profile(msgspec.Struct, frozen=True):
    """Where PostgreSQL spends its time on orders."""

    stamp: Stamp
    orders: int
    statements: list[Statement]


class Results(msgspec.Struct):
    """All sections; those not measured yet are None."""

    machine: Machine | None = None
    ceiling: Throughput | None = None
    clients: Throughput | None = None
    peers: Throughput | None = None
    alone: Throughput | None = None
    sandbox: Throughput | None = None
    reads: Throughput | None = None
    openloop: OpenLoop | None = None
    backlogs: Backlogs | None = None
    history: History | None = None
    profile: Profile | None = None


SECTIONS = tuple(name for name in Results.__struct_fields__ if name != "machine")


def load(file: Path = FILE) -> Results:
    """What was found out before; nothing where there is no such file."""
    return msgspec.json.decode(file.read_bytes(), type=Results) if file.exists() else Results()


def save(results: Results, file: Path = FILE) -> None:
    """Keep it, in a form whose changes can be read."""

    def rounded(value: object) -> object:
        match value:
            case float():
                return float(f"{value:.4g}") if abs(value) < 1000 else round(value)
            case dict():
                return {key: rounded(one) for key, one in value.items()}
            case list():
                return [rounded(one) for one in value]
            case _:
                return value

    document = rounded(msgspec.to_builtins(results, str_keys=True))
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def spread(values: list[float]) -> Spread:
    """Of the rounds of something."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Line, theirs: Line) -> Spread:
    """How many times the throughput of another: the rounds' ratios, since what disturbs a round disturbs both."""
    return spread([a / b if b else 0.0 for a, b in zip(ours.per_second, theirs.per_second, strict=True)])
