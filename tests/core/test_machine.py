"""The tables of transitions: every state, every event."""

from __future__ import annotations

import pytest

from tcc.machine import OPEN, RESERVATION, RESTING, TERMINAL, TRANSACTION, Event, Machine, State

MACHINES = (RESERVATION, RESERVATION.local(), TRANSACTION)

# One line for each state, one column for each event: where it leads; = repeated; or the contradiction's code.
EVENTS = ("confirm", "cancel", "expire", "extend")
TABLE = """
trying      not_ready          cancelling         cancelling         not_ready
tried       confirming         cancelling         cancelling         tried
refused     already_refused    =                  already_refused    already_refused
confirming  =                  already_confirmed  already_confirmed  already_confirmed
confirmed   =                  already_confirmed  already_confirmed  already_confirmed
cancelling  already_cancelled  =                  =                  already_cancelled
cancelled   already_cancelled  =                  =                  already_cancelled
"""
LINES = [
    (State(line.split()[0]), Event(event), cell)
    for line in TABLE.strip().splitlines()
    for event, cell in zip(EVENTS, line.split()[1:], strict=True)
]


@pytest.mark.parametrize(("state", "event", "expected"), LINES, ids=str)
def test_a_reservation_answers_every_event_in_every_state(state: State, event: Event, expected: str) -> None:
    target = RESERVATION.target(event, state)
    said = target or RESERVATION.code(event, state, None)
    assert said == ("repeated" if expected == "=" else expected)


@pytest.mark.parametrize("state", sorted(set(State) - set(RESTING)))
def test_to_ask_again_later_contradicts_nobody_who_was_answered_meanwhile(state: State) -> None:
    assert RESERVATION.code(Event.POSTPONE, state, None) == "repeated"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_nothing_leads_out_of_a_terminal_state(machine: Machine) -> None:
    assert [t for t in machine.transitions if t.source in TERMINAL] == []


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_decision_is_never_turned_back(machine: Machine) -> None:
    towards = {State.CONFIRMING: State.CONFIRMED, State.CANCELLING: State.CANCELLED}
    for transition in machine.transitions:
        if transition.source in towards:
            assert transition.target in (transition.source, towards[transition.source])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_an_event_has_one_meaning_in_a_state(machine: Machine) -> None:
    pairs = [(t.event, t.source) for t in machine.transitions]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_an_event_that_can_happen_is_not_also_a_repeat(machine: Machine) -> None:
    for event, states in machine.satisfied.items():
        assert [state for state in states if machine.target(event, state)] == []


def test_local_effects_never_rest() -> None:
    machine = RESERVATION.local()
    assert {t.source for t in machine.transitions} & set(RESTING) == set()
    assert {t.target for t in machine.transitions} & set(RESTING) == set()


def test_every_open_state_can_come_to_an_end() -> None:
    for machine in (RESERVATION, TRANSACTION):
        reached = set(TERMINAL)
        while more := {t.source for t in machine.transitions if t.target in reached} - reached:
            reached |= more
        assert reached >= (OPEN - {State.REFUSED})


def test_what_was_cancelled_for_its_age_says_expired() -> None:
    assert RESERVATION.code(Event.CONFIRM, State.CANCELLED, "expired") == "expired"
    assert RESERVATION.code(Event.CONFIRM, State.CANCELLED, "requested") == "already_cancelled"


def test_the_sql_has_a_target_for_each_transition() -> None:
    for machine in MACHINES:
        assert machine.sql_target("event", "state").count("THEN '") == len(machine.transitions)


def test_an_event_has_the_same_guard_in_every_state() -> None:
    for machine in MACHINES:
        assert len({(t.event, t.guard) for t in machine.transitions}) == len({t.event for t in machine.transitions})
