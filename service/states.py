"""The states of jobs, sweeps and trials, and the moves between them: the one table, and what trials and sweeps add."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class State(StrEnum):
    """Where a job, a sweep or a trial is on its way."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    STOPPED = "STOPPED"  # a trial, ended early on purpose, by its sweep's scheduler


class Kind(StrEnum):
    """What is stored, with a life of states and events."""

    JOB = "job"
    SWEEP = "sweep"
    TRIAL = "trial"


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
    State.STOPPED: set(),
}
"""The life of a job, and of a sweep, which has a runner as a job has."""

TRIAL_MOVES: dict[State, set[State]] = {
    # STOPPED at once: what was decided may come after the trial had to make room
    State.QUEUED: {State.STARTING, State.STOPPED, State.CANCELLED},
    # QUEUED again: it made room, or its sweep paused or lost its runner; it waits, and goes on from its checkpoint
    State.STARTING: {
        *(State.QUEUED, State.STARTING, State.RUNNING),
        *(State.FAILED, State.STOPPED, State.CANCELLED),
    },
    State.RUNNING: {
        *(State.QUEUED, State.STARTING),
        *(State.SUCCEEDED, State.FAILED, State.STOPPED, State.CANCELLED),
    },
    **{state: set() for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.STOPPED)},
}
"""The life of a trial. Its runner is that of its sweep, so it is neither paused nor cancelled by itself, and ends at
once: whoever still works on it is refused at its next write."""

REOPENED: dict[Kind, frozenset[State]] = {
    Kind.JOB: frozenset(),
    Kind.SWEEP: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    Kind.TRIAL: frozenset({State.FAILED, State.CANCELLED}),
}
"""The ends out of which there is one way, to QUEUED: a sweep is extended or retried, and with it go on the trials that
were cancelled as it ended and, on a retry, those that failed."""

# A runner may exist, so these count against the number of jobs and sweeps that run at once.
OCCUPYING = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})

# What becomes of a job whose runner is to stop, once it has.
STOPPED_AS = {State.PAUSING: State.PAUSED, State.CANCELLING: State.CANCELLED}


def is_final(state: State) -> bool:
    """Say whether this state is an end: a job never moves again, a sweep by ``REOPENED`` only."""
    return not MOVES[state]


def moves_of(kind: Kind) -> dict[State, set[State]]:
    """Return the table of what is of this kind."""
    return TRIAL_MOVES if kind is Kind.TRIAL else MOVES


def sources(to: State, within: Iterable[State] = State, kind: Kind = Kind.JOB) -> frozenset[State]:
    """Return the states from which ``to`` may be entered."""
    return frozenset(state for state in within if to in moves_of(kind).get(state, ()))


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
