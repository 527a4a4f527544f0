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
    State.QUEUED: {State.STARTING, State.PAUSED, State.CANCELLED},
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

# What becomes of a job whose runner is to stop, once it has.
STOPPED_AS = {State.PAUSING: State.PAUSED, State.CANCELLING: State.CANCELLED}


def is_final(state: State) -> bool:
    """Say whether a job in this state never moves again."""
    return not MOVES[state]


def sources(to: State, within: Iterable[State] = State) -> frozenset[State]:
    """Return the states from which ``to`` may be entered."""
    return frozenset(state for state in within if to in MOVES[state])


def goes_on(state: State) -> bool:
    """Say whether a job in this state may still train, now or later."""
    return bool(MOVES[state] - {State.CANCELLED})


def cancelled_as(state: State) -> State:
    """Return the state that a cancel leads to: at once when no runner can exist, and nothing changes at the end."""
    return (_leads_to(state, State.CANCELLED, State.CANCELLING) if goes_on(state) else None) or state


def paused_as(state: State) -> State | None:
    """Return the state that a pause leads to: at once when no runner can exist; None where it is refused."""
    return state if state is State.PAUSING else _leads_to(state, State.PAUSED, State.PAUSING)


def resumed_as(state: State) -> State | None:
    """Return the state that a resume leads to: the same where the job is on its way; None where it is refused."""
    return state if State.PAUSING in MOVES[state] else _leads_to(state, State.QUEUED)


def _leads_to(state: State, *wanted: State) -> State | None:
    """Return the first of the wanted states that is this one, or one move away."""
    return next((to for to in wanted if to is state or to in MOVES[state]), None)
