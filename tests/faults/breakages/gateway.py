"""The card gateway: it works, and says nothing; it says 500, and has worked; it is slow, too busy, late, or refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tests.faults.breakages.network import heal
from tests.faults.stage import Fault, Stage


def favouring(method: str) -> Callable[[Stage], Awaitable[None]]:
    """Most cards are of one kind for a while."""

    async def play(stage: Stage) -> None:
        stage.shoppers.favourite = method
        try:
            await stage.hold(2, 4)
            stage.hit()
            await stage.hold(1, 2)
        finally:
            stage.shoppers.favourite = None

    return play


async def overworked(stage: Stage) -> None:
    """It wants to be asked again at once, soon, or tomorrow: nobody may be parked for that, or held past its time."""
    before = stage.fleet.to_gateway.refusals
    stage.hit()
    stage.fleet.to_gateway.overworked = (0, 1, 86400)
    await stage.hold(2, 4)
    heal(stage.fleet)
    if stage.fleet.to_gateway.refusals == before:
        stage.diary.violate("harness", "nobody asked the gateway while it was too busy")


async def killed(stage: Stage) -> None:
    stage.hit()
    await stage.fleet.kill("sandbox")
    await stage.hold(0.5, 3)
    await stage.fleet.start_process("sandbox")


async def late_news(stage: Stage) -> None:
    """What it says of its changes is old when we hear it: no money may be moved for it, and nobody be alarmed."""
    stage.fleet.to_gateway.late_on = (b"GET /authorisations?changed_since", 3.0)
    await stage.hold(2, 4)
    stage.hit()
    await stage.hold(4, 6)
    heal(stage.fleet)


FAULTS: Final = (
    Fault("gateway: works, never answers", favouring("tok_lost_reply")),
    Fault("gateway: 500 after success", favouring("tok_500_after_success")),
    Fault("gateway: 429", overworked),
    Fault("gateway: slow", favouring("tok_slow")),
    Fault("gateway: capture fails twice", favouring("tok_capture_fails_twice")),
    Fault("gateway: capture refused", favouring("tok_capture_refused")),
    Fault("gateway: authorisation expires", favouring("tok_auth_expires")),
    Fault("gateway: killed", killed),
    Fault("gateway: news comes late", late_news),
)
