"""The blocks of the pages: each is a piece of Markdown, made of what was found out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bench.compare import CLIENTS, CURVES, NOOP, OURS, PEERS, PROCESSES, line, pgbench_line
from bench.goals import Goal, cpu_ms, goals
from bench.lasting import EMPTY, FULL, history_line
from bench.openloop import Summary
from bench.results import Line, Results, Spread, Stamp, ratio, spread
from bench.tables import markdown
from bench.workloads import HOT, SPREAD, ZIPF

NOT_YET = "*Not measured yet.*"
GOAL_HEADINGS = ("what", "at least", "aim", "measured", "reached")


def machine(found: Results) -> str:
    """Where it was measured."""
    here = found.machine
    if here is None:
        return NOT_YET
    rows = [
        ("Machine", f"{here.cpu}, {here.cores} cores, {here.memory_gigabytes:g} GiB, {here.kernel}"),
        ("Disk", f"an fdatasync of one page takes {here.sync_milliseconds:.2f} ms"),
        (
            "PostgreSQL",
            f"{here.postgresql}: " + ", ".join(f"`{key} = {value}`" for key, value in here.settings.items()),
        ),
        ("Python", f"{here.python}: " + ", ".join(f"{name} {version}" for name, version in here.packages.items())),
    ]
    return markdown(("", ""), rows, "ll")


def goal_rows(found: Results) -> list[tuple[str, ...]]:
    """The goals, and what was reached."""
    return [_goal_row(goal) for goal in goals(found)]


def _goal_row(goal: Goal) -> tuple[str, ...]:
    def written(value: float | None) -> str:
        return "report" if value is None else goal.form.format(value)

    cases = ", ".join(
        f"{written(case.median)} ({name})" if name else written(case.median) for name, case in goal.measured.items()
    )
    if goal.never is not None:
        cases += f"; {goal.never:.0f} deadlocks"
    return goal.what, written(goal.least), written(goal.aim), cases or "", goal.met


def goals_block(found: Results) -> str:
    return markdown(GOAL_HEADINGS, goal_rows(found), "lrrll")


def ceiling(found: Results) -> str:
    section = found.ceiling
    if section is None:
        return NOT_YET
    nothing = section.lines[NOOP]
    names = [NOOP, *(line(what, picks) for what in ("Try", "Try + Confirm", "order") for picks in (HOT, ZIPF, SPREAD))]
    rows = [_rate_row(_short(name), section.lines[name], nothing) for name in names]
    table = markdown(RATE_HEADINGS, rows)
    idle, loaded = section.figures["idle_megabytes"], section.figures["loaded_megabytes"]
    memory = f"An API process takes {idle:.0f} MB before its first request, {loaded:.0f} MB after this section."
    return f"{table}\n\n{_bound(found, section.lines[line('order', HOT)], nothing)}{memory}{_said(section.stamp)}"


def _bound(found: Results, order: Line, nothing: Line) -> str:
    """What this machine would come to, if none of its cores ever waited."""
    if found.machine is None:
        return ""
    most = found.machine.cores * 1000 / spread(_all_cpu_ms(order)).median
    share = most / spread(nothing.per_second).median
    return (
        f"If none of the {found.machine.cores} cores were ever idle, orders on one SKU could come to {most:,.0f} a "
        f"second at this cost, {share:.2f} of the no-op.\n\n"
    )


def _all_cpu_ms(one: Line) -> list[float]:
    """CPU of everything that shares the machine, per cycle, in each round."""
    return [sum(all) for all in zip(one.service_cpu_ms, one.postgres_cpu_ms, one.load_cpu_ms, strict=True)]


RATE_HEADINGS = (
    "64 clients, one API process", "a second", "range", "of the no-op", "p50 ms", "p99 ms",
    "CPU ms: service", "PostgreSQL", "clients", "cores busy", "failed",
)  # fmt: skip


def _rate_row(name: str, one: Line, nothing: Line) -> tuple[str, ...]:
    return (
        name,
        *_rates(one),
        f"{ratio(one, nothing).median:.2f}",
        *_milliseconds(one),
        *(f"{spread(values).median:.2f}" for values in (one.service_cpu_ms, one.postgres_cpu_ms, one.load_cpu_ms)),
        f"{spread([rate * ms / 1000 for rate, ms in zip(one.per_second, _all_cpu_ms(one), strict=True)]).median:.2f}",
        str(one.not_good),
    )


def _rates(one: Line) -> tuple[str, str]:
    rate = spread(one.per_second)
    return f"{rate.median:,.0f}", f"{rate.low:,.0f} to {rate.high:,.0f}"


def _milliseconds(one: Line) -> tuple[str, str]:
    return f"{spread(one.p50_ms).median:.1f}", f"{spread(one.p99_ms).median:.1f}"


def _short(name: str) -> str:
    return name.removesuffix(", 64 clients, 1 process")


def _said(stamp: Stamp) -> str:
    return f"\n\n{stamp.rounds} rounds of {stamp.seconds:g} s each, {_when(stamp)}."


def _when(stamp: Stamp) -> str:
    return f"on {stamp.date}, commit `{stamp.commit}`"


def _numbers() -> list[str]:
    return [f"{number} client{'s' if number > 1 else ''}" for number in CLIENTS]


def clients(found: Results) -> str:
    section = found.clients
    if section is None:
        return NOT_YET
    rows = []
    for what, picks in (("order", HOT), ("order", SPREAD), ("Try", SPREAD)):
        for processes in PROCESSES:
            lines = [section.lines[line(what, picks, number, processes)] for number in CLIENTS]
            cells = [f"{spread(one.per_second).median:,.0f} ({spread(one.p99_ms).median:.0f} ms)" for one in lines]
            rows.append((f"{what}, {picks.name}, {processes} API process{'es' if processes > 1 else ''}", *cells))
    table = markdown(("a second (p99)", *_numbers()), rows)
    return f"{table}\n\nDeadlocks: {section.figures['deadlocks']:.0f}.{_said(section.stamp)}"


def peers(found: Results) -> str:
    section = found.peers
    if section is None:
        return NOT_YET
    lines = section.lines
    names = [*PEERS, OURS]
    rows = []
    for name in names:
        cells = []
        for picks in (HOT, SPREAD):
            one, ours = lines[line(name, picks)], lines[line(OURS, picks)]
            cells += [*_rates(one), f"{ratio(ours, one).median:.2f}", f"{cpu_ms(one).median:.2f}"]
        rows.append((name, *cells))
    for what, mine in (("order", OURS), ("try", "our Try")):
        cells = []
        for picks in (HOT, SPREAD):
            name = pgbench_line(what, picks)
            one, ours = lines[name], lines[line(mine, picks)]
            cells += [*_rates(one), f"{ratio(ours, one).median:.2f}", f"{cpu_ms(one).median:.2f}"]
        best = [f"{section.figures[f'{pgbench_line(what, picks)} clients']:.0f}" for picks in (HOT, SPREAD)]
        rows.append((f"pgbench, {what} ({best[0]} and {best[1]} clients)", *cells))
    headings = ("64 clients", *(f"{picks.name}: {what}" for picks in (HOT, SPREAD) for what in (
        "a second", "range", "ours against it", "CPU ms")))  # fmt: skip
    curves = markdown(
        ("orders a second, spread", *_numbers()),
        [
            (name, *(f"{spread(lines[line(name, SPREAD, number)].per_second).median:,.0f}" for number in CLIENTS))
            for name in CURVES
        ],
    )
    return f"{markdown(headings, rows)}\n\n{curves}{_said(section.stamp)}"


def _plain(name: str) -> Callable[[Results], str]:
    """A section's lines as they are."""

    def block(found: Results) -> str:
        section = getattr(found, name)
        if section is None:
            return NOT_YET
        rows = [
            (what, *_rates(one), *_milliseconds(one), f"{cpu_ms(one).median:.2f}", str(one.not_good))
            for what, one in section.lines.items()
        ]
        return markdown(("", "a second", "range", "p50 ms", "p99 ms", "CPU ms", "failed"), rows) + _said(section.stamp)

    return block


PERCENTILES = ("p50 ms", "p90 ms", "p99 ms", "p99.9 ms")


def _percentiles(came: Summary) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in (came.p50_ms, came.p90_ms, came.p99_ms, came.p999_ms))


def open_loop(found: Results) -> str:
    section = found.openloop
    if section is None:
        return NOT_YET
    rows = [
        (
            f"{point.share:.0%}",
            f"{point.rate:,.0f}",
            f"{point.came.offered:,}",
            *_percentiles(point.came),
            f"{point.came.offered - point.came.good}",
            f"{point.late_p99_ms:.1f}",
        )
        for point in section.points
    ]
    table = markdown(("offered", "a second", "orders", *PERCENTILES, "not confirmed", "load late by, p99 ms"), rows)
    closed = spread(section.closed.per_second).median
    return (
        f"Sustainable: {section.sustainable:,.0f} orders a second "
        f"({section.sustainable / closed:.0%} of a closed loop's {closed:,.0f} with 256 clients).\n\n"
        f"{table}{_said(section.stamp)}"
    )


def overload(found: Results) -> str:
    section = found.openloop
    if section is None:
        return NOT_YET
    over = section.overload
    during = over.during
    recovered = "not within the run" if over.recovered_seconds is None else f"{over.recovered_seconds:.2f} s"
    told = f"{during.refused_with_retry_after / during.refused:.0%}" if during.refused else "none refused"
    rows = [
        ("offered, twice the sustainable rate", f"{over.rate:,.0f} a second for {over.seconds:g} s"),
        (
            "confirmed meanwhile",
            f"{over.goodput:,.0f} a second, {over.goodput / section.sustainable:.0%} of sustainable",
        ),
        ("p50, p99 of those confirmed", f"{during.p50_ms:.0f} ms, {during.p99_ms:.0f} ms"),
        ("refused with 503", f"{during.refused / max(1, during.offered):.0%}; with Retry-After: {told}"),
        ("p99 of a refusal", f"{during.refused_p99_ms:.0f} ms"),
        ("neither confirmed nor refused", f"{during.other:,}"),
        (
            "afterwards, at half the sustainable rate",
            f"p99 {over.after.p99_ms:.0f} ms; {over.usual_p99_ms:.0f} ms before",
        ),
        ("as usual again after", recovered),
    ]
    moments = [
        (
            f"{moment.at_seconds:.0f}",
            *(f"{value:,}" for value in (moment.offered, moment.good, moment.refused, moment.completed)),
            f"{moment.p99_ms:.0f}" if moment.good else "",
        )
        for moment in over.timeline
    ]
    headings = ("second", "offered", "of those confirmed", "of those refused", "confirmed in it", "p99 ms")
    return f"{markdown(('', ''), rows, 'll')}\n\n{markdown(headings, moments)}"


def backlogs(found: Results) -> str:
    section = found.backlogs
    if section is None:
        return NOT_YET
    served, before = section.serving_meanwhile, section.serving_before
    rows = [
        (
            f"{section.tries:,} abandoned tries given back",
            f"{section.tries_seconds:.1f} s",
            f"{section.tries / section.tries_seconds:,.0f}",
        ),
        (
            f"{section.transactions:,} undriven orders driven to their end",
            f"{section.transactions_seconds:.1f} s",
            f"{section.transactions / section.transactions_seconds:,.0f}",
        ),
    ]
    return (
        f"{markdown(('one worker', 'took', 'a second'), rows)}\n\n"
        f"While the tries were given back the API was sent {section.serving_rate:,.0f} Tries a second, a quarter of "
        f"what it can take: {served.good:,} of {served.offered:,} were held, p50 {served.p50_ms:.1f} ms, p99 "
        f"{served.p99_ms:.1f} ms. Without the backlog: p50 {before.p50_ms:.1f} ms, p99 {before.p99_ms:.1f} ms."
        f"\n\nMeasured {_when(section.stamp)}."
    )


def history(found: Results) -> str:
    section = found.history
    if section is None:
        return NOT_YET
    rows = []
    for what in ("Try", "order"):
        for picks in (HOT, SPREAD):
            full, empty = (section.lines[history_line(what, picks.name, name)] for name in (FULL, EMPTY))
            both: Spread = ratio(full, empty)
            cells = (
                f"{spread(one.per_second).median:,.0f} (p99 {spread(one.p99_ms).median:.0f} ms)"
                for one in (full, empty)
            )
            rows.append((f"{what}, {picks.name}", *cells, f"{both.median:.2f}", f"{both.low:.2f} to {both.high:.2f}"))
    table = markdown(("a second", f"after {section.reservations:,}", "empty", "ratio", "range"), rows)
    tables = markdown(
        ("table", "rows", "MB", "MB after the rounds", "dead rows", "after", "updates", "of those HOT", "autovacuums"),
        [
            (
                one.name,
                *(
                    f"{value:,.0f}"
                    for value in (one.rows, one.megabytes, one.megabytes_after, one.dead, one.dead_after)
                ),
                f"{one.updated:,}",
                f"{one.hot / one.updated:.0%}" if one.updated else "",
                str(one.autovacuums),
            )
            for one in section.tables
        ],
    )
    rate = section.purged_keys / max(1e-9, section.purge_seconds)
    return (
        f"{table}\n\n{tables}\n\n"
        f"{section.purged_keys:,} idempotency keys that were too old were forgotten in {section.purge_seconds:.1f} s, "
        f"{rate:,.0f} a second.{_said(section.stamp)}"
    )


def profile(found: Results) -> str:
    section = found.profile
    if section is None:
        return NOT_YET
    rows = [
        (
            one.what,
            f"{one.calls:.2f}",
            f"{one.milliseconds:.3f}",
            f"{one.milliseconds / max(1e-9, one.calls):.3f}",
            f"{one.rows:.1f}",
            f"{one.wal_bytes:,.0f}",
        )
        for one in section.statements
    ]
    headings = ("statement", "calls", "ms", "ms a call", "rows", "bytes of WAL")
    return f"For each of {section.orders:,} orders:\n\n{markdown(headings, rows)}\n\nMeasured {_when(section.stamp)}."


def summary(found: Results) -> str:
    """What the README says."""
    if found.ceiling is None:
        return NOT_YET
    return markdown(("64 clients, one API process", "a second", ""), list(_summary_rows(found)))


def _summary_rows(found: Results) -> Iterable[tuple[str, ...]]:
    section = found.ceiling
    assert section is not None
    nothing = section.lines[NOOP]
    yield "no-op: an endpoint that does nothing", f"{spread(nothing.per_second).median:,.0f}", ""
    for what, picks, said in (
        ("Try", HOT, "Try, one hot SKU"),
        ("Try", SPREAD, "Try, 1,000 SKUs"),
        ("order", HOT, "order: stock, card and order, one hot SKU"),
        ("order", SPREAD, "order: stock, card and order, 1,000 SKUs"),
    ):
        one = section.lines[line(what, picks)]
        yield said, f"{spread(one.per_second).median:,.0f}", f"{ratio(one, nothing).median:.2f} of the no-op"
    if found.peers:
        lines = found.peers.lines
        for name in CURVES:
            one = lines[line(name, SPREAD)]
            times = f"ours is {ratio(lines[line(OURS, SPREAD)], one).median:.1f} x as fast"
            yield f"the same order, 1,000 SKUs, with {name}", f"{spread(one.per_second).median:,.0f}", times


BLOCKS: Mapping[str, Callable[[Results], str]] = {
    "machine": machine,
    "goals": goals_block,
    "ceiling": ceiling,
    "clients": clients,
    "peers": peers,
    "alone": _plain("alone"),
    "sandbox": _plain("sandbox"),
    "reads": _plain("reads"),
    "open-loop": open_loop,
    "overload": overload,
    "backlogs": backlogs,
    "history": history,
    "profile": profile,
    "summary": summary,
}
