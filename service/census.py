"""What the store holds in numbers, for those who watch the service: counts, waits, what changes of workers have cost.

How long a job has waited, and what a change of workers has cost, is written once and stays, so each is read once;
everything else is counted anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, String, and_, case, func, or_, select, type_coerce

from .rows import Row, Transaction
from .states import Kind, State
from .tables import events, jobs

MOST_IDS = 500  # that one query names
T = TypeVar("T")


@dataclass
class Costs:
    """What the changes of workers of one cause have cost."""

    changes: int = 0
    pause_s: float = 0.0
    steps_lost: int = 0

    def add(self, event: Mapping[str, Any]) -> None:
        """Add the data of an ``elastic`` event; a number that was not finite is stored as null."""
        self.changes += 1
        self.pause_s += event.get("recovery_seconds") or 0.0
        self.steps_lost += event.get("steps_lost") or 0


@dataclass(frozen=True)
class Pace:
    """How far a job or a trial is, and how fast; None: it has not told yet."""

    id: str
    step: int | None
    steps_per_second: float | None
    samples_per_second: float | None
    exchange_s: float | None


@dataclass(frozen=True)
class Numbers:
    """What was found.

    Attributes:
        states: How many there are, by kind and state.
        waits_s: For each job and sweep that has begun: seconds from its submission to its first RUNNING.
        oldest_s: Seconds that the job or sweep has waited which waits longest now; 0 if none waits.
        starting_s: The same of those whose workers are being started, or wait for nodes.
        running: Jobs and trials that are RUNNING.
        elastic: What changes of workers have cost, by cause.
    """

    states: Mapping[tuple[Kind, State], int]
    waits_s: Sequence[float]
    oldest_s: float
    starting_s: float
    running: Sequence[Pace]
    elastic: Mapping[str, Costs]


class Census:
    """Counts what is in a store; may be shared between threads.

    Args:
        read: Begins a transaction that only reads.
    """

    def __init__(self, read: Transaction) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}  # of each job, the event up to which its changes are added up
        self._elastic: dict[str, Costs] = {}
        self._waits_s: dict[str, float] = {}  # by job

    def take(self) -> Numbers:
        """Return the numbers of this moment.

        It reads a few columns of each job, and of the events those that are new: 10,000 jobs with 1,000,000 events take
        0.05 s of the processor, and once, after the start, 1 s (``make bench-metrics``).
        """
        with self._lock, self._read() as connection:
            self._look(connection)
            oldest_s = _oldest_s(connection)
            return Numbers(
                _states(connection),
                [*self._waits_s.values()],
                oldest_s.get(State.QUEUED, 0.0),
                oldest_s.get(State.STARTING, 0.0),
                _running(connection),
                {cause: replace(costs) for cause, costs in self._elastic.items()},
            )

    def _look(self, connection: Connection) -> None:
        """Take in what is new of each job."""
        changed = {}
        for job_id, kind, created_at, started_at, last_event in connection.execute(_LIVES):
            if last_event > self._seen.get(job_id, 0):
                changed[job_id] = last_event
            if started_at is not None and kind != Kind.TRIAL and job_id not in self._waits_s:
                wait = datetime.fromisoformat(started_at) - datetime.fromisoformat(created_at)
                self._waits_s[job_id] = max(0.0, wait.total_seconds())  # several machines' clocks
        self._add_up(connection, changed)

    def _add_up(self, connection: Connection, changed: Mapping[str, int]) -> None:
        """Add what jobs have changed since they were last looked at, to their events of these numbers."""
        after = {job_id: self._seen.get(job_id, 0) for job_id in changed}
        new = list(_changes(connection, after))  # whatever may fail comes first
        for job_id, seq, data in new:
            if seq <= changed[job_id]:  # a later one may be there by now
                self._elastic.setdefault(str(data["cause"]), Costs()).add(data)
        self._seen |= changed


_LIVES = select(
    jobs.c.id,
    jobs.c.kind,
    type_coerce(jobs.c.created_at, String),  # most are not looked at, and reading a time costs
    type_coerce(jobs.c.started_at, String),
    jobs.c.last_event,
)


def _states(connection: Connection) -> dict[tuple[Kind, State], int]:
    counted = select(jobs.c.kind, jobs.c.state, func.count()).group_by(jobs.c.kind, jobs.c.state)
    return {(Kind(kind), State(state)): count for kind, state, count in connection.execute(counted)}


def _changes(connection: Connection, after: Mapping[str, int]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the elastic events of these jobs after a number of each, with their numbers."""
    query = select(events.c.job_id, events.c.seq, events.c.data).where(events.c.kind == "elastic")
    first = [job_id for job_id, seq in after.items() if not seq]  # looked at for the first time: half the cost
    again = [and_(events.c.job_id == job_id, events.c.seq > seq) for job_id, seq in after.items() if seq]
    for which in (*map(events.c.job_id.in_, _parts(first)), *(or_(*some) for some in _parts(again))):
        for row in connection.execute(query.where(which)):
            yield row.job_id, row.seq, row.data


def _parts(found: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield as many at a time as one query may name."""
    return (found[at : at + MOST_IDS] for at in range(0, len(found), MOST_IDS))


def _oldest_s(connection: Connection) -> dict[State, float]:
    """Return how long the job or sweep has been QUEUED, and STARTING, that has been so longest; one may have come there
    again."""
    entered = select(func.max(events.c.time)).where(events.c.job_id == jobs.c.id, events.c.kind == "state")
    since = case((jobs.c.version == 1, jobs.c.created_at), else_=entered.scalar_subquery())
    query = select(jobs.c.state, func.min(since)).where(
        jobs.c.state.in_((State.QUEUED, State.STARTING)), jobs.c.kind != Kind.TRIAL
    )
    now = datetime.now(UTC)
    return {
        State(state): max(0.0, (now - oldest).total_seconds())
        for state, oldest in connection.execute(query.group_by(jobs.c.state))
        if oldest is not None
    }


def _running(connection: Connection) -> list[Pace]:
    query = select(jobs.c.id, jobs.c.progress, jobs.c.spec).where(
        jobs.c.state == State.RUNNING, jobs.c.kind != Kind.SWEEP
    )
    return [_pace(row) for row in connection.execute(query.order_by(jobs.c.id)).mappings()]


def _pace(row: Row) -> Pace:
    progress = row["progress"]
    step_s = progress.get("seconds_per_step")
    steps = 1.0 / step_s if step_s else None
    samples = None if steps is None else steps * row["spec"]["batch_size"]
    return Pace(row["id"], progress.get("step"), steps, samples, progress.get("exchange_seconds"))
