"""The network between the service and its databases, its gateway, and its clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tests.faults.fleet import Fleet
from tests.faults.proxy import Proxy
from tests.faults.stage import Fault, Stage

Play = Callable[[Stage], Awaitable[None]]
Links = Callable[[Stage], list[Proxy]]


def databases(stage: Stage) -> list[Proxy]:
    """To one of the databases, or to both."""
    home, payments = stage.fleet.to_home, stage.fleet.to_payments
    chosen: list[Proxy] = stage.choose([home], [payments], [home, payments])
    return chosen


def gateway(stage: Stage) -> list[Proxy]:
    return [stage.fleet.to_gateway]


def slow(links: Links) -> Play:
    async def play(stage: Stage) -> None:
        stage.hit()
        for link in links(stage):
            link.delay_seconds = stage.random.uniform(0.02, 0.3)
        await stage.hold(2, 4)
        heal(stage.fleet)

    return play


def reset(links: Links) -> Play:
    """Every connection is reset, and so are the new ones for a while."""

    async def play(stage: Stage) -> None:
        for _ in range(3):
            stage.hit()
            for link in links(stage):
                link.refusing = True
                link.reset()
            await stage.hold(0.1, 1)
            heal(stage.fleet)
            await stage.hold(0.1, 0.5)

    return play


def cut(links: Links, on: bytes) -> Play:
    """What was asked is done, and the connection is gone before the answer."""

    async def play(stage: Stage) -> None:
        chosen = links(stage)
        before = sum(link.cuts for link in chosen)
        stage.hit()
        for link in chosen:
            link.cut_on, link.cut_share = on, 0.3
        await stage.hold(3, 5)
        stage.hit()
        heal(stage.fleet)
        if sum(link.cuts for link in chosen) == before:
            stage.diary.violate("harness", f"nothing with {on!r} passed, so nothing was cut")

    return play


def black_hole(links: Links) -> Play:
    """Nothing comes through, and nobody is told; then the network is back, or the connections are found to be dead."""

    async def play(stage: Stage) -> None:
        chosen = links(stage)
        stage.hit()
        for link in chosen:
            link.swallow()
        await stage.hold(3, 8)
        if stage.choose(True, False):
            for link in chosen:
                link.reset()
        heal(stage.fleet)

    return play


def clients(habit: str) -> Play:
    """Most clients have a bad habit for a while: each request `twice` at once, or those of one id `scrambled`."""

    async def play(stage: Stage) -> None:
        before = getattr(stage.shoppers, habit)
        setattr(stage.shoppers, habit, 0.9)
        stage.hit()
        await stage.hold(3, 5)
        stage.hit()
        setattr(stage.shoppers, habit, before)

    return play


def heal(fleet: Fleet) -> None:
    """The network is well again."""
    for link in (fleet.to_home, fleet.to_payments, fleet.to_gateway):
        link.heal()


FAULTS: Final = (
    Fault("database link: slow", slow(databases)),
    Fault("database link: reset", reset(databases)),
    Fault("database link: cut after COMMIT", cut(databases, b"COMMIT")),
    Fault("database link: black hole", black_hole(databases)),
    Fault("gateway link: slow", slow(gateway)),
    Fault("gateway link: reset", reset(gateway)),
    Fault("gateway link: cut before the reply", cut(gateway, b"POST /")),
    Fault("gateway link: black hole", black_hole(gateway)),
    Fault("requests duplicated", clients("twice")),
    Fault("requests reordered", clients("scrambled")),
)
