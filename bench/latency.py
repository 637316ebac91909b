"""The section of open-loop load: how latency grows with what is offered, and what becomes of twice too much."""

from __future__ import annotations

import msgspec

from bench.compare import OURS
from bench.openloop import OpenLoad, Phase, Sample, recovered_after, summary, timeline
from bench.results import Offered, OpenLoop, Overload, spread
from bench.section import Run
from bench.stage import Server
from bench.throughput import race
from bench.workloads import SPREAD, order

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
HALF = 0.5
CAPACITY_CLIENTS = 256
SUSTAINED_P99_MS = 500.0
"""A rate is sustainable if every order offered at it is confirmed, and this holds."""
USUAL_TIMES = 2.0
"""After an overload it is as usual again once the p99 is within so many times that of half the sustainable rate."""
_STEP = 0.1


def open_loop(run: Run) -> OpenLoop:
    """Whole orders, on units spread evenly, to one API process."""
    with run.stage() as stage:
        api = stage.api(stage.database("openloop"))
        course = run.course()
        course.warm(order(SPREAD), [api], CAPACITY_CLIENTS)
        contestant = course.http(OURS, order(SPREAD), [api], CAPACITY_CLIENTS)
        closed = race([contestant], run.sizes.rounds, run.tell)[OURS]
        sustainable = _sustainable(run, api, spread(closed.per_second).median)
        points = _points(run, api, sustainable)
        usual = next(point for point in points if point.share == HALF)
        overload = _overload(run, api, sustainable, usual.came.p99_ms)
    return OpenLoop(run.stamp(), closed, sustainable, points, overload)


def _offer(run: Run, api: Server, *phases: Phase) -> tuple[list[Sample], float]:
    return run.generator.open(OpenLoad(order(SPREAD), (api.port,), phases))


def _sustainable(run: Run, api: Server, most: float) -> float:
    """The highest rate, in tenths of what a closed loop reached, that can be offered for long."""
    share = 1.0
    while share > _STEP:
        run.tell(f"whether {share:.0%} of the closed loop's rate can be sustained")
        came = summary(_offer(run, api, Phase(most * share, 2 * run.sizes.seconds))[0])
        if came.good == came.offered and came.p99_ms < SUSTAINED_P99_MS:
            break
        share -= _STEP
    return most * share


def _points(run: Run, api: Server, sustainable: float) -> list[Offered]:
    """Every share in every round; the samples of all rounds together."""
    seconds = 2 * run.sizes.seconds
    samples: dict[float, list[Sample]] = {share: [] for share in SHARES}
    late = dict.fromkeys(SHARES, 0.0)
    for number in range(run.sizes.rounds):
        for share in SHARES:
            run.tell(f"open loop at {share:.0%}, round {number + 1} of {run.sizes.rounds}")
            came, lag = _offer(run, api, Phase(sustainable * share, seconds))
            samples[share] += came
            late[share] = max(late[share], lag)
    return [Offered(share, sustainable * share, late[share], summary(samples[share])) for share in SHARES]


def _overload(run: Run, api: Server, sustainable: float, usual_p99_ms: float) -> Overload:
    run.tell("overload")
    lasts = run.sizes.overload_seconds
    ends = lasts * 1.5
    samples, _ = _offer(run, api, Phase(sustainable * 2, lasts), Phase(sustainable / 2, ends - lasts))
    moments = timeline(samples, ends)
    during = summary(samples, 0, lasts)
    completed = sum(moment.completed for moment in timeline(samples, lasts))
    return Overload(
        rate=sustainable * 2,
        seconds=lasts,
        usual_p99_ms=usual_p99_ms,
        goodput=completed / lasts,
        during=during,
        after=summary(samples, lasts, ends),
        recovered_seconds=recovered_after(samples, lasts, ends, usual_p99_ms * USUAL_TIMES),
        timeline=[msgspec.structs.replace(moment, p99_ms=round(moment.p99_ms, 1)) for moment in moments],
    )
