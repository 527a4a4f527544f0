"""What the store gives back, and what it raises.

Ids are unique over jobs, sweeps and trials; where an error is about any of them, its ``what`` is the word for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .specs import JobSpec
from .states import Kind, State, is_final
from .sweeps.spec import Part, SweepSpec


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a job and a sweep have in common: their life. Times are aware, in UTC."""

    id: str
    name: str
    state: State
    reason: str
    attempt: int
    """0 before its first runner, and higher for each one; whoever writes as an older one is refused."""
    restarts: int
    """How often a vanished runner was started again, counted against ``spec.max_restarts``."""
    losses: int
    """How often it was started again since its whole Ray cluster was lost, which is no fault of its own."""
    launched: bool
    """Whether Ray is known to have accepted the runner of this attempt."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    interrupted_at: datetime | None = None
    """Since when Ray, where its runner is, doesn't answer; None: it does, or nothing of this attempt could be there."""
    progress: dict[str, Any]
    result: dict[str, Any] | None
    last_event: int
    version: int
    """Grows with every change that this record shows."""


@dataclass(frozen=True, kw_only=True)
class Job(Stored):
    """One job as it is stored, or one trial of a sweep."""

    spec: JobSpec
    workers: int | None
    """The most workers that it is to have, once it was resized; None: as its spec says."""
    sweep_id: str | None = None
    """The sweep whose trial it is; None: it is a job of its own."""
    part: Part | None = None
    """Its place in that sweep."""

    @property
    def wanted_workers(self) -> int:
        """The most workers that it is to have."""
        return self.workers or self.spec.max_workers


@dataclass(frozen=True, kw_only=True)
class Sweep(Stored):
    """One sweep as it is stored; ``spec`` says what it is to do now, extensions included."""

    spec: SweepSpec


@dataclass(frozen=True)
class Event:
    """One entry of a job's sequence; ``seq`` is 1, 2, 3 ... without gap."""

    seq: int
    time: datetime
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """The user's own code as it is stored: a zip, by its SHA-256."""

    sha256: str
    bytes: int
    unpacked_bytes: int
    files: int
    created_at: datetime
    used_at: datetime
    """When it was last uploaded or asked for."""
    in_use: bool
    """Whether a job refers to it: then it stays."""


class StoreError(Exception):
    """Whatever the store refuses or can't do."""

    def __reduce__(self) -> tuple[Callable[..., StoreError], tuple[object, ...]]:
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[StoreError], args: tuple[object, ...], values: dict[str, object]) -> StoreError:
    """Return an error as it was in another process."""
    error = kind.__new__(kind, *args)
    vars(error).update(values)
    return error


class NoSuchJob(StoreError):
    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"there is no job {job_id}; list the jobs to see which exist")


class NoSuchSweep(StoreError):
    def __init__(self, sweep_id: str) -> None:
        self.sweep_id = sweep_id
        super().__init__(f"there is no sweep {sweep_id}; list the sweeps to see which exist")


class NoSuchTrial(StoreError):
    def __init__(self, sweep_id: str, number: int) -> None:
        self.sweep_id, self.number = sweep_id, number
        super().__init__(f"sweep {sweep_id} has no trial {number} yet; list its trials to see which have begun")


class PartOfSweep(StoreError):
    def __init__(self, job_id: str, sweep_id: str, asked: str) -> None:
        self.job_id, self.sweep_id, self.asked = job_id, sweep_id, asked
        super().__init__(
            f"{job_id} is a trial of sweep {sweep_id} and can't be {asked} by itself; steer the sweep instead"
        )


class NoSuchBundle(StoreError):
    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        super().__init__(f"there is no bundle {sha256}; upload it again, since one that no job refers to is dropped")


class CodeMissing(StoreError):
    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        super().__init__(
            f"code.bundle {sha256} is not on this server; upload it first, with sampa submit --code or POST /v1/bundles"
        )


class KeyReused(StoreError):
    def __init__(self, key: str, job_id: str, what: str = Kind.JOB) -> None:
        self.key, self.job_id, self.what = key, job_id, what
        super().__init__(
            f"the idempotency key {key!r} was used for {what} {job_id} with another spec; "
            "use a new key for each new job or sweep, and the same one only to repeat a request"
        )


class MoveRefused(StoreError):
    def __init__(self, job_id: str, current: State, to: State, what: str = Kind.JOB) -> None:
        self.job_id, self.current, self.to, self.what = job_id, current, to, what
        what_to_do = (
            f"it has ended; submit it again as a new {what}" if is_final(current) else "read its state and decide anew"
        )
        super().__init__(f"{what} {job_id} is {current} and can't become {to}; {what_to_do}")


class NotNow(StoreError):
    def __init__(self, job_id: str, state: State, asked: str, what: str = Kind.JOB) -> None:
        self.job_id, self.state, self.asked, self.what = job_id, state, asked, what
        anew = "extend it, or retry its failed trials" if what == Kind.SWEEP else "submit it again as a new job"
        advice = "wait until it is PAUSED"
        if is_final(state):
            advice = f"it has ended; {anew}"
        elif state is State.CANCELLING:
            advice = f"it ends as CANCELLED; {'then ' if what == Kind.SWEEP else ''}{anew}"
        super().__init__(f"{what} {job_id} is {state} and can't be {asked}; {advice}")


class NotExtended(StoreError):
    """What a sweep can't be extended by; ``field`` is the one that is wrong."""

    def __init__(self, sweep_id: str, field: str, why: str) -> None:
        self.sweep_id, self.field = sweep_id, field
        super().__init__(f"sweep {sweep_id} can't be extended: {field} {why}")


class Changed(StoreError):
    def __init__(self, job_id: str, version: int, current: int, what: str = Kind.JOB) -> None:
        self.job_id, self.version, self.current, self.what = job_id, version, current, what
        super().__init__(
            f"{what} {job_id} has changed since it was read at version {version}, it is at {current}; "
            "read it again and decide anew"
        )


class TooManyWorkers(StoreError):
    def __init__(self, job_id: str, workers: int, most: int, limit: str) -> None:
        self.job_id, self.workers, self.most = job_id, workers, most
        super().__init__(
            f"workers must be at most {limit} = {most}, since more can't be of use to job {job_id}, but is {workers}"
        )


class Superseded(StoreError):
    def __init__(self, job_id: str, attempt: int, current: int, state: State, what: str = Kind.JOB) -> None:
        self.job_id, self.attempt, self.current, self.state, self.what = job_id, attempt, current, state, what
        super().__init__(
            f"attempt {attempt} of {what} {job_id} may not write: the {what} is {state} at attempt {current}; "
            f"this runner has been replaced or its {what} has ended, and should exit"
        )


class StoreUnavailable(StoreError):
    def __init__(self, url: str, cause: str) -> None:
        self.url, self.cause = url, cause
        super().__init__(
            f"the store at {url} doesn't answer ({cause}); nothing was changed. "
            "Check that its disk or server is there, then try again"
        )


class StoreTooNew(StoreError):
    def __init__(self, url: str, revision: str) -> None:
        self.url, self.revision = url, revision
        super().__init__(
            f"the store at {url} has the layout {revision!r} of a newer sampa; "
            "install that version, or use another store"
        )
