"""The tables of moves keep what the states promise."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sampa.service.states import (
    MOVES,
    OCCUPYING,
    REOPENED,
    STOPPED_AS,
    TRIAL_MOVES,
    Kind,
    State,
    cancelled_as,
    goes_on,
    is_final,
    paused_as,
    resumed_as,
    sources,
)

ENDS = {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.STOPPED}
OF_TRIALS = {State.QUEUED, State.STARTING, State.RUNNING, *ENDS}


def test_every_state_has_its_moves_and_only_the_ends_are_final() -> None:
    assert set(MOVES) == set(State)
    assert {state for state in State if is_final(state)} == ENDS


def test_every_state_can_be_reached_and_an_end_can_be_reached_from_every_state() -> None:
    assert _reachable(State.QUEUED) == set(State) - {State.STOPPED}, "only a trial is stopped"
    assert all(_reachable(state) & ENDS for state in State)


def test_a_trial_has_states_of_its_own_choice_and_the_same_ends() -> None:
    assert set(TRIAL_MOVES) == _reachable(State.QUEUED, TRIAL_MOVES) == OF_TRIALS
    assert {state for state, moves in TRIAL_MOVES.items() if not moves} == ENDS
    assert all(_reachable(state, TRIAL_MOVES) & ENDS for state in OF_TRIALS)


def test_a_trial_may_wait_again_and_end_at_once_which_a_job_may_not() -> None:
    more = {(a, b) for a, moves in TRIAL_MOVES.items() for b in moves} - {(a, b) for a in MOVES for b in MOVES[a]}
    going = (State.STARTING, State.RUNNING)
    assert more == {
        *((state, State.QUEUED) for state in going),
        *((state, State.CANCELLED) for state in going),
        *((state, State.STOPPED) for state in (State.QUEUED, *going)),
    }


def test_only_a_sweep_and_its_trials_come_back_from_an_end() -> None:
    assert REOPENED[Kind.JOB] == frozenset()
    assert all(is_final(state) for kind in Kind for state in REOPENED[kind])
    assert State.SUCCEEDED not in REOPENED[Kind.TRIAL], "a finished trial is never repeated"


def test_an_accepted_cancel_ends_as_cancelled() -> None:
    assert MOVES[State.CANCELLING] == {State.CANCELLED}


@pytest.mark.parametrize("state", State)
def test_a_cancel_is_one_move_of_the_table_or_nothing(state: State) -> None:
    to = cancelled_as(state)
    assert to is state or to in MOVES[state]
    assert is_final(to) or to is State.CANCELLING
    assert (to is State.CANCELLING) == (state in OCCUPYING)  # where a runner may exist, it is ended first


@pytest.mark.parametrize(
    ("state", "paused", "resumed"),
    [
        (State.QUEUED, State.PAUSED, State.QUEUED),
        (State.STARTING, State.PAUSING, State.STARTING),
        (State.RUNNING, State.PAUSING, State.RUNNING),
        (State.PAUSING, State.PAUSING, None),
        (State.PAUSED, State.PAUSED, State.QUEUED),
        (State.CANCELLING, None, None),
        *((state, None, None) for state in ENDS),
    ],
)
def test_a_pause_and_a_resume_are_one_move_or_nothing_or_refused(
    state: State, paused: State | None, resumed: State | None
) -> None:
    assert (paused_as(state), resumed_as(state)) == (paused, resumed)
    assert all(to is None or to is state or to in MOVES[state] for to in (paused, resumed))


def test_what_is_to_stop_has_one_way_to_go_but_by_a_cancel_or_an_end_of_its_own() -> None:
    assert all(to in MOVES[state] and to not in OCCUPYING for state, to in STOPPED_AS.items())
    assert MOVES[State.PAUSING] - {State.CANCELLING, State.SUCCEEDED, State.FAILED} == {STOPPED_AS[State.PAUSING]}


def test_only_a_job_that_ends_trains_no_more() -> None:
    assert {state for state in State if not goes_on(state)} == ENDS | {State.CANCELLING}


def test_the_sources_of_a_state_are_those_that_may_enter_it() -> None:
    assert sources(State.STARTING) == {State.QUEUED, State.STARTING, State.RUNNING}
    assert sources(State.SUCCEEDED, {State.CANCELLING, State.RUNNING}) == {State.RUNNING}
    assert sources(State.QUEUED, kind=Kind.TRIAL) == {State.STARTING, State.RUNNING}
    assert sources(State.PAUSED, kind=Kind.TRIAL) == frozenset()


def _reachable(state: State, moves: Mapping[State, set[State]] = MOVES) -> set[State]:
    found, new = {state}, {state}
    while new:
        new = set().union(*(moves[each] for each in new)) - found
        found |= new
    return found
