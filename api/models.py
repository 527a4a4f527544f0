"""The answers of the API, as its OpenAPI document describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ..service.specs import JobSpec
from ..service.states import OCCUPYING, State
from ..service.store import Event, Job
from ..workers.plan import Count
from ..workers.settings import Settings

Data = dict[str, JsonValue]


class Answer(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(from_attributes=True)


class WorkerCount(Answer):
    """How many workers a job has, and is to have."""

    wanted: int = Field(description="at most so many: workers.max of the spec, until the job is resized")
    now: int = Field(description="in the newest generation that has made a step; 0 where none trains")


class LifeAnswer(Answer):
    """What a job, a sweep and a trial have in common."""

    id: str
    name: str
    state: State = Field(description="where it is on its way; be ready for states that come later")
    reason: str = Field(description="why it is in this state; may be empty")
    attempt: int = Field(description="number of the runner that works on it; 0 before the first")
    restarts: int = Field(description="how often its runner was started again")
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    interrupted_at: datetime | None = Field(
        description="since when Ray doesn't answer; when it is back, the job goes on or has gone on. null: it answers"
    )
    progress: Data = Field(description="step, steps and others; empty before the first report")
    result: Data | None = Field(description="what came out; null before the end")


class JobAnswer(LifeAnswer):
    """A job and where it is on its way."""

    workers: WorkerCount = Field(description="changed by resize")
    spec: JobSpec = Field(description="the job as it was asked for, with all defaults")
    sweep_id: str | None = Field(description="the sweep whose trial it is; null: it is a job of its own")


class Transition(Answer):
    """A state that the job entered."""

    state: State
    reason: str
    time: datetime


class Elastic(Answer):
    """What joins, losses, resizes and resumes have cost, over all attempts."""

    restarts: int = Field(description="how often workers or a runner were lost or paused, and the training went on")
    steps_lost: int = Field(description="steps that were computed again")
    samples_replayed: int = Field(description="rows of these steps")
    recovery_seconds: float = Field(description="how long the training stood still")
    workers: list[tuple[int, int]] = Field(description="step, and the number of workers from there on")


class WholeJobAnswer(JobAnswer):
    """A job with its past."""

    elastic: Elastic = Field(description="the elastic events, summed up")
    transitions: list[Transition] = Field(description="every state it entered, oldest first")


class JobPage(Answer):
    """Some jobs, newest first."""

    items: list[JobAnswer]
    next: str | None = Field(description="cursor of the next page; null on the last one")


class EventAnswer(Answer):
    """One entry of a job's sequence."""

    seq: int = Field(description="1, 2, 3 ... for each job, without gap")
    time: datetime
    kind: str = Field(
        description="state, task, metrics, evaluation, checkpoint, elastic, resize, interrupted, reconnected, log, and "
        "of sweeps trial, extend, retry, finished, exploit; more may come"
    )
    data: Data = Field(description="what happened; its fields depend on the kind")


class EventPage(Answer):
    """Some events, in order."""

    items: list[EventAnswer]
    last: int = Field(description="everything up to this number was looked at: the next ?after=")

    @classmethod
    def of(cls, events: list[Event], last: int) -> Self:
        return cls(items=[EventAnswer.model_validate(event) for event in events], last=last)


class Measurement(Answer):
    """What was measured at a step; further fields depend on method and task."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    seq: int
    kind: Literal["metrics", "evaluation"]
    step: int | None = None


class MetricPage(Answer):
    """Some measurements, in order."""

    items: list[Measurement]
    next: int | None = Field(description="the ?after= of the next page; null when there is no more for now")


class Checkpoint(Answer):
    """A complete state of the training, from which it can go on."""

    seq: int
    time: datetime
    step: int | None
    bytes: int | None
    path: str
    available: bool = Field(description="whether it is still there: only the newest are kept")


class CheckpointList(Answer):
    """The checkpoints of a job, oldest first."""

    items: list[Checkpoint]


class BundleAnswer(Answer):
    """The user's own code, as jobs refer to it by ``code.bundle``."""

    sha256: str
    bytes: int = Field(description="of the zip")
    unpacked_bytes: int = Field(description="of all that is in it")
    files: int
    created_at: datetime
    kept_until: datetime | None = Field(
        description="when it is dropped, unless a job refers to it or it is asked for again before; null: a job does"
    )


class Health(Answer):
    """What was checked, and what was found."""

    status: Literal["ok"]
    checks: dict[str, str]
    leader: str = Field("", description="the API process that starts and watches the jobs; empty where nobody knows")


class Resize(Settings):
    """What a resize asks for."""

    workers: Count = Field(description="at most so many workers; up to 2 x pairs, or shards")


Limit = Annotated[int, Field(ge=1, le=1000, description="how many at most")]


class Query(BaseModel):
    """The base of all sets of query parameters: a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ListQuery(Query):
    """Which jobs, or sweeps."""

    state: list[State] = Field([], description="only those in this state; may be repeated")
    name: str | None = Field(None, description="only those of this name")
    limit: int = Field(50, ge=1, le=200, description="how many at most")
    cursor: str | None = Field(None, description="next of the page before")

    def filters(self) -> dict[str, object]:
        """Return what a cursor is bound to."""
        return {"state": sorted(set(self.state)), "name": self.name}


class EventQuery(Query):
    """Which events."""

    after: int = Field(0, ge=0, lt=2**31, description="only events with a higher number")
    limit: Limit = 500
    kind: list[str] = Field([], description="only events of this kind; may be repeated")
    stream: bool = Field(False, description="true: server-sent events, like Accept: text/event-stream")


class MetricQuery(Query):
    """Which measurements."""

    after: int = Field(0, ge=0, lt=2**31, description="only events with a higher number")
    limit: Limit = 1000


def job_answer(job: Job) -> JobAnswer:
    """Return a job as lists show it."""
    return JobAnswer.model_validate({**vars(job), "workers": worker_count(job)})


def worker_count(job: Job) -> WorkerCount:
    """Return how many workers a job or trial has, and is to have."""
    training = job.state in OCCUPYING - {State.STARTING}
    return WorkerCount(wanted=job.wanted_workers, now=job.progress.get("workers", 0) if training else 0)
