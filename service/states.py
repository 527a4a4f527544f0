"""The states of a job and the moves between them: the one table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class State(StrEnum):
    """Where a job is on its way."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


MOVES: dict[State, set[State]] = {
    State.QUEUED: {State.STARTING, State.CANCELLED},
    # STARTING again: its runner vanished before it reported anything, and is started once more
    State.STARTING: {State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING, State.FAILED},
    # back to STARTING: its runner vanished, and is started again from the newest checkpoint
    State.RUNNING: {State.STARTING, State.PAUSING, State.CANCELLING, State.SUCCEEDED, State.FAILED},
    State.PAUSING: {State.PAUSED, State.CANCELLING, State.SUCCEEDED, State.FAILED},
    State.PAUSED: {State.QUEUED, State.CANCELLED},
    # an accepted cancel ends CANCELLED, even if the run would have finished first
    State.CANCELLING: {State.CANCELLED},
    State.SUCCEEDED: set(),
    State.FAILED: set(),
    State.CANCELLED: set(),
}

# A runner may exist, so these count against the number of jobs that run at once.
OCCUPYING = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})


def is_final(state: State) -> bool:
    """Say whether a job in this state never moves again."""
    return not MOVES[state]


def sources(to: State, within: Iterable[State] = State) -> frozenset[State]:
    """Return the states from which ``to`` may be entered."""
    return frozenset(state for state in within if to in MOVES[state])


def cancelled_as(state: State) -> State:
    """Return the state that a cancel leads to: at once when no runner can exist, and nothing changes at the end."""
    for to in (State.CANCELLED, State.CANCELLING):
        if state is not State.CANCELLING and to in MOVES[state]:
            return to
    return state
