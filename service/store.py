"""The single truth about jobs and sweeps: their records, and one durable sequence of events for each.

Every change is one transaction with one conditional UPDATE, so of two writers that contradict each other one is
refused. Any process may be killed at any time: what was written stays, and what was not is not there in part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select, text, update
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .bundle_table import BundleTable
from .census import Census
from .lease import LeaseTable
from .migrations import upgrade
from .records import (
    Changed,
    CodeMissing,
    Event,
    Job,
    KeyReused,
    MoveRefused,
    NoSuchBundle,
    NoSuchJob,
    NoSuchSweep,
    NoSuchTrial,
    NotExtended,
    NotNow,
    PartOfSweep,
    StoreError,
    StoreUnavailable,
    Superseded,
    Sweep,
    TooManyWorkers,
)
from .rows import (
    RESTARTED_FROM,
    UNFINISHED,
    Position,
    Row,
    change,
    lead,
    listed,
    move,
    submit,
    superseded,
    there,
    to_event,
    to_job,
    to_record,
    why_not_moved,
)
from .specs import JobSpec
from .states import OCCUPYING, Kind, State, cancelled_as, goes_on, paused_as, resumed_as
from .sweep_table import SweepTable
from .tables import events, jobs, open_engine, show_url

__all__ = [
    "Changed",
    "CodeMissing",
    "Event",
    "Job",
    "KeyReused",
    "MoveRefused",
    "NoSuchBundle",
    "NoSuchJob",
    "NoSuchSweep",
    "NoSuchTrial",
    "NotExtended",
    "NotNow",
    "PartOfSweep",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Superseded",
    "Sweep",
    "TooManyWorkers",
]

CLAIM_LOCK = 7_265_401  # advisory lock of PostgreSQL; any number that is ours alone


class Store:
    """A store on SQLite or PostgreSQL; may be shared between threads.

    Attributes:
        bundles: The users' own code.
        sweeps: Sweeps and their trials.
        census: How much there is of what.
        leases: Which process does what only one may do.

    Raises:
        ValueError: If the URL names another kind of database.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._writing = self._engine.execution_options(writes=True)
        self.url = show_url(self._engine.url)
        self.bundles = BundleTable(self._read, self._write)
        self.sweeps = SweepTable(self._read, self._write)
        self.census = Census(self._read)
        self.leases = LeaseTable(self._write)

    def migrate(self) -> None:
        """Bring the tables to the layout of this version; safe when several processes do it at once.

        Raises:
            StoreTooNew: If a newer version was here before.
        """
        with self._available():
            upgrade(self._writing)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def reachable(self) -> bool:
        """Say whether the store answers and has its tables."""
        try:
            with self._read() as connection:
                connection.execute(select(jobs.c.id).limit(1))
        except StoreUnavailable:
            return False
        return True

    # Reading

    def job(self, job_id: str) -> Job:
        """Return one job, or one trial; raises NoSuchJob."""
        with self._read() as connection:
            return to_job(_job(connection, job_id))

    def jobs(
        self,
        states: Collection[State] = (),
        name: str | None = None,
        before: Position | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Return jobs, newest first; ``before`` is the creation time and id of the last one of the previous page."""
        with self._read() as connection:
            return [to_job(row) for row in connection.execute(listed(Kind.JOB, states, name, before, limit)).mappings()]

    def record(self, some_id: str) -> Job | Sweep:
        """Return a job, a trial or a sweep; raises NoSuchJob."""
        with self._read() as connection:
            return to_record(there(connection, some_id))

    def occupying(self) -> list[Job | Sweep]:
        """Return the jobs and sweeps of which a runner may exist, newest first."""
        query = select(jobs).where(jobs.c.kind != Kind.TRIAL, jobs.c.state.in_(OCCUPYING))
        with self._read() as connection:
            found = connection.execute(query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc())).mappings()
            return [to_record(row) for row in found]

    def events(self, job_id: str, after: int = 0, limit: int = 1000, kinds: Collection[str] = ()) -> list[Event]:
        """Return the events that follow number ``after``, in order; raises NoSuchJob."""
        query = select(events).where(events.c.job_id == job_id, events.c.seq > after)
        if kinds:
            query = query.where(events.c.kind.in_(kinds))
        with self._read() as connection:
            rows = connection.execute(query.order_by(events.c.seq).limit(limit)).mappings().all()
            if not rows:
                there(connection, job_id)
        return [to_event(row) for row in rows]

    def transitions(self, job_id: str) -> list[dict[str, Any]]:
        """Return every state that the job has entered: state, reason, time; raises NoSuchJob."""
        entered = self.events(job_id, limit=10_000, kinds=("state",))
        return [{"state": e.data["state"], "reason": e.data["reason"], "time": e.time} for e in entered]

    # Writing

    def submit(self, spec: JobSpec, key: str | None = None) -> tuple[Job, bool]:
        """Store a new job as QUEUED; return it, and whether it is new: a repeated key returns the job of its first use.

        Raises:
            KeyReused: If the key belongs to a job with another spec.
            CodeMissing: If the spec refers to a bundle that isn't there.
        """
        row, created = submit(self._write, Kind.JOB, spec, key)
        return to_job(row), created

    def move(
        self,
        job_id: str,
        to: State,
        *,
        reason: str = "",
        attempt: int | None = None,
        version: int | None = None,
        next_attempt: bool = False,
        cluster_lost: bool = False,
        result: dict[str, Any] | None = None,
    ) -> Job | Sweep:
        """Bring a job, a trial or a sweep into a state, if its present one allows that.

        The trials of a sweep go with it: they end when it does, and wait where its runner is gone.

        Args:
            job_id: Which one.
            to: The state to enter.
            reason: One sentence for the user; empty where the state says it all.
            attempt: Only if this is still its attempt.
            version: Only if nothing has changed since this version was read.
            next_attempt: A new runner is to be launched, and its predecessor may write no more.
            cluster_lost: Its predecessor went down with its Ray cluster: one of ``losses``, not of ``restarts``.
            result: What the run gives back.

        Raises:
            NoSuchJob: If there is none of this id.
            Superseded: If it is at another attempt.
            MoveRefused: If its state doesn't allow the move.
            Changed: If it is at another version.
        """
        with self._write() as connection:
            row = move(
                connection,
                job_id,
                to,
                reason=reason,
                attempt=attempt,
                version=version,
                next_attempt=next_attempt,
                cluster_lost=cluster_lost,
                result=result,
            )
            if row is None:
                raise why_not_moved(there(connection, job_id), to, attempt, version)
            return to_record(row)

    def cancel(self, job_id: str, reason: str = "cancelled by request") -> Job:
        """End the job: at once when no runner can exist, else by CANCELLING; one that has ended stays as it is.

        Raises:
            NoSuchJob: If there is no such job.
            PartOfSweep: If it is a trial.
        """
        return self._lead(job_id, cancelled_as, "cancelled", reason)

    def pause(self, job_id: str, reason: str = "paused by request") -> Job:
        """Let the job rest: at once when no runner can exist, else by PAUSING; one that rests stays as it is.

        Raises:
            NoSuchJob: If there is no such job.
            PartOfSweep: If it is a trial.
            NotNow: If it has ended or is being cancelled.
        """
        return self._lead(job_id, paused_as, "paused", reason)

    def resume(self, job_id: str) -> Job:
        """Queue a job that was paused; one that is queued or goes already stays as it is.

        Raises:
            NoSuchJob: If there is no such job.
            PartOfSweep: If it is a trial.
            NotNow: If it has ended, is being cancelled, or is not yet PAUSED.
        """
        return self._lead(job_id, resumed_as, "resumed", "resumed by request")

    def _lead(self, job_id: str, leads_to: Callable[[State], State | None], asked: str, reason: str) -> Job:
        return to_job(lead(self._write, lambda c: _steerable(c, job_id, asked), leads_to, asked, reason))

    def resize(self, job_id: str, workers: int) -> Job:
        """From now on, the job is to have at most so many workers; nothing changes if it is that many already.

        Raises:
            NoSuchJob: If there is no such job.
            PartOfSweep: If it is a trial.
            NotNow: If it has ended or is being cancelled.
            TooManyWorkers: If more than ``most_workers`` are asked for.
        """
        while True:
            with self._write() as connection:
                job = to_job(_steerable(connection, job_id, "resized"))
                if not goes_on(job.state):
                    raise NotNow(job_id, job.state, "resized")
                if workers > job.spec.most_workers:
                    limit = "2 x pairs" if job.spec.method.paired else "shards"
                    raise TooManyWorkers(job_id, workers, job.spec.most_workers, limit)
                if workers == job.wanted_workers:
                    return job
                row = _resize(connection, job, workers)
                if row is not None:  # else, on PostgreSQL, another transaction has just changed it
                    return to_job(row)

    def claim(self, max_running: int) -> Job | Sweep | None:
        """Take the oldest queued job or sweep into STARTING as its next attempt, unless enough run already.

        Counting and taking are one transaction of which only one runs at a time, so several reconcilers on one store
        neither start a job twice nor start too many.
        """
        with self._write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CLAIM_LOCK})
            own_runner = jobs.c.kind != Kind.TRIAL
            occupying = select(func.count()).select_from(jobs).where(own_runner, jobs.c.state.in_(OCCUPYING))
            running = connection.scalar(occupying)
            if running is None or running >= max_running:
                return None
            queued = select(jobs.c.id).where(own_runner, jobs.c.state == State.QUEUED)
            oldest = connection.scalar(queued.order_by(jobs.c.created_at, jobs.c.id).limit(1))
            if oldest is None:
                return None
            row = move(connection, oldest, State.STARTING, next_attempt=True, only_from=State.QUEUED)
            return None if row is None else to_record(row)

    def mark_launched(self, job_id: str, attempt: int) -> None:
        """Note that Ray has accepted the runner of this attempt; without effect when the job is at another one."""
        mine = and_(jobs.c.id == job_id, jobs.c.attempt == attempt)
        with self._write() as connection:
            connection.execute(update(jobs).where(mine).values(launched=True))

    def interrupt(self, job_id: str, attempt: int, reason: str) -> bool:
        """Note that Ray, and with it perhaps the runner of this attempt, is away; return whether that was news.

        The state stays, since nobody knows what has become of the runner; any move ends it.
        """
        values = {"interrupted_at": datetime.now(UTC), "reason": reason}
        return self._note(job_id, attempt, jobs.c.interrupted_at.is_(None), values, "interrupted", reason)

    def reconnect(self, job_id: str, attempt: int, reason: str) -> bool:
        """Note that Ray is back, and the runner of this attempt has gone on meanwhile; return whether that was news."""
        values = {"interrupted_at": None, "reason": ""}
        return self._note(job_id, attempt, jobs.c.interrupted_at.is_not(None), values, "reconnected", reason)

    def _note(self, job_id: str, attempt: int, if_so: Any, values: dict[str, Any], kind: str, reason: str) -> bool:
        mine = [jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state.in_(RESTARTED_FROM), if_so]
        with self._write() as connection:
            return change(connection, mine, values, [(kind, {"reason": reason, "attempt": attempt})]) is not None

    def append(
        self,
        job_id: str,
        batch: Sequence[tuple[str, dict[str, Any]]],
        *,
        attempt: int,
        progress: dict[str, Any] | None = None,
    ) -> int:
        """Add events of (kind, data) to the sequence of a job, trial or sweep, replace its progress if given; return
        the last number.

        A number that is not finite is stored as null.

        Raises:
            NoSuchJob: If there is none of this id.
            Superseded: If it is at another attempt or has ended.
        """
        mine = [jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state.in_(UNFINISHED)]
        values: dict[str, Any] = {} if progress is None else {"progress": progress}
        with self._write() as connection:
            row = change(connection, mine, values, batch)
            if row is None:
                raise superseded(there(connection, job_id), attempt)
            return int(row["last_event"])

    # Transactions

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._available(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._available(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            raise StoreUnavailable(self.url, " ".join(str(error.orig).split())) from error
        except PoolTimeoutError as error:
            raise StoreUnavailable(self.url, "all connections are in use") from error


def _job(connection: Connection, job_id: str) -> Row:
    row = there(connection, job_id)
    if row["kind"] == Kind.SWEEP:
        raise NoSuchJob(job_id)
    return row


def _steerable(connection: Connection, job_id: str, asked: str) -> Row:
    row = _job(connection, job_id)
    if row["sweep_id"] is not None:
        raise PartOfSweep(job_id, row["sweep_id"], asked)
    return row


def _resize(connection: Connection, job: Job, workers: int) -> Row | None:
    """Write the number and its event, or return None and change nothing if the job has changed."""
    same = [jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.workers.is_not_distinct_from(job.workers)]
    return change(connection, same, {"workers": workers}, [("resize", {"workers": workers})])
