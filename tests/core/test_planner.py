"""The planner: whatever the branches answer, and in whatever order, they all end alike."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tcc.machine import RESERVATION, TERMINAL, TRANSACTION, Event, State
from tcc.protocols.tcc import (
    AskBranch,
    Branch,
    Known,
    MoveBranch,
    MoveWhole,
    Park,
    Step,
    TryBranch,
    assume,
    plan,
)

ROUNDS = 200


def known(*branches: tuple[bool, State | None], state: State = State.TRYING, auto: bool = True) -> Known:
    numbered = tuple(Branch(i, f"r{i}", external, s) for i, (external, s) in enumerate(branches))
    return Known(state, auto, False, numbered)


def test_local_branches_are_tried_before_anybody_outside_is_asked() -> None:
    steps = plan(known((True, None), (False, None)))
    assert [step.branch.index for step in steps if isinstance(step, TryBranch)] == [1]
    assert len(steps) == 1


def test_a_refused_branch_cancels_the_whole_and_asks_nobody() -> None:
    steps = plan(known((True, None), (False, State.REFUSED)))
    assert steps == [MoveWhole(Event.CANCEL, steps[0].reason)]  # type: ignore[union-attr]


def test_a_manual_transaction_waits_to_be_told() -> None:
    held = known((False, State.TRIED), state=State.TRIED, auto=False)
    assert plan(held) == []


def test_a_branch_that_went_its_own_way_calls_a_person() -> None:
    mixed = known((False, State.CANCELLED), (False, State.TRIED), state=State.CONFIRMING)
    assert isinstance(plan(mixed)[0], Park)


def test_a_branch_never_tried_is_cancelled_too_so_that_a_late_try_finds_a_tombstone() -> None:
    steps = plan(known((False, None), state=State.CANCELLING))
    assert isinstance(steps[0], MoveBranch)
    assert steps[0].event is Event.CANCEL


class World:
    """Branches that answer as they like, with a transaction that is cancelled or expires whenever it likes."""

    def __init__(self, draw: st.DataObject, start: Known) -> None:
        self._draw = draw
        self.known = start

    def take(self, step: Step) -> None:
        match step:
            case TryBranch(branch) if self._draw.draw(st.integers(0, 3)) == 0 and not branch.external:
                self._set(branch.index, State.REFUSED)
            case AskBranch(branch):
                self._answer(branch)
            case _:
                self.known = assume(self.known, step)

    def _answer(self, branch: Branch) -> None:
        answer = self._draw.draw(st.sampled_from(["unknown", "yes", "no"]))
        state = self.known.branches[branch.index].state
        if answer == "unknown" or state is None:
            return
        events = {
            State.TRYING: Event.TRY_SUCCEEDED if answer == "yes" else Event.TRY_REFUSED,
            State.CONFIRMING: Event.CONFIRM_SUCCEEDED,
            State.CANCELLING: Event.CANCEL_SUCCEEDED,
        }
        target = RESERVATION.target(events[state], state)
        assert target is not None
        self._set(branch.index, target)

    def _set(self, index: int, state: State) -> None:
        branches = list(self.known.branches)
        branches[index] = msgspec.structs.replace(branches[index], state=state)
        self.known = msgspec.structs.replace(self.known, branches=tuple(branches))

    def interfere(self) -> None:
        event = self._draw.draw(st.sampled_from([None, None, None, Event.CANCEL, Event.EXPIRE, Event.CONFIRM]))
        target = event and TRANSACTION.target(event, self.known.state)
        if target:
            self.known = msgspec.structs.replace(self.known, state=target)


@given(st.data())
def test_all_branches_end_alike_whatever_happens(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=4))
    auto = data.draw(st.booleans())
    world = World(data, known(*((external, None) for external in kinds), auto=auto))
    for _ in range(ROUNDS):
        if world.known.state in TERMINAL:
            break
        steps = plan(world.known)
        assert not any(isinstance(step, Park) for step in steps)
        for step in data.draw(st.permutations(steps)):
            world.take(step)
        world.interfere()
    ends = {branch.state for branch in world.known.branches}
    if world.known.state is State.CONFIRMED:
        assert ends == {State.CONFIRMED}
    elif world.known.state is State.CANCELLED:
        assert ends <= {State.CANCELLED, State.REFUSED}
