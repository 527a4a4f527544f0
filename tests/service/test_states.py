"""The table of moves keeps what the states promise."""

from __future__ import annotations

import pytest
from sampa.service.states import MOVES, OCCUPYING, State, cancelled_as, is_final, sources

ENDS = {State.SUCCEEDED, State.FAILED, State.CANCELLED}


def test_every_state_has_its_moves_and_only_the_three_ends_are_final() -> None:
    assert set(MOVES) == set(State)
    assert {state for state in State if is_final(state)} == ENDS


def test_every_state_can_be_reached_and_an_end_can_be_reached_from_every_state() -> None:
    assert _reachable(State.QUEUED) == set(State)
    assert all(_reachable(state) & ENDS for state in State)


def test_an_accepted_cancel_ends_as_cancelled() -> None:
    assert MOVES[State.CANCELLING] == {State.CANCELLED}


@pytest.mark.parametrize("state", State)
def test_a_cancel_is_one_move_of_the_table_or_nothing(state: State) -> None:
    to = cancelled_as(state)
    assert to is state or to in MOVES[state]
    assert is_final(to) or to is State.CANCELLING
    assert (to is State.CANCELLING) == (state in OCCUPYING)  # where a runner may exist, it is ended first


def test_the_sources_of_a_state_are_those_that_may_enter_it() -> None:
    assert sources(State.STARTING) == {State.QUEUED, State.STARTING, State.RUNNING}
    assert sources(State.SUCCEEDED, {State.CANCELLING, State.RUNNING}) == {State.RUNNING}


def _reachable(state: State) -> set[State]:
    found, new = {state}, {state}
    while new:
        new = set().union(*(MOVES[each] for each in new)) - found
        found |= new
    return found
