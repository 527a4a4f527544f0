"""What the routes of sweeps take and answer, as the OpenAPI document describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ..service.specs import JobSpec, Name
from ..service.states import State
from ..service.store import Job, Sweep
from ..service.sweeps.rules import MOST_TRIALS
from ..service.sweeps.spec import Budget, SweepSpec
from ..workers.plan import Count
from ..workers.settings import Settings
from .models import (
    Answer,
    Data,
    Elastic,
    JobAnswer,
    LifeAnswer,
    Limit,
    ListQuery,
    Query,
    Transition,
    WorkerCount,
    worker_count,
)


class SweepAnswer(LifeAnswer):
    """A sweep and where it is on its way."""

    progress: Data = Field(
        description="trials, ended, running, failed, stopped, best, seconds, gradients and others; empty at first"
    )
    spec: SweepSpec = Field(description="what it is to do now: as it was asked for, with all defaults, and extended")


class WholeSweepAnswer(SweepAnswer):
    """A sweep with its past."""

    transitions: list[Transition] = Field(description="every state it entered, oldest first")


class SweepPage(Answer):
    """Some sweeps, newest first."""

    items: list[SweepAnswer]
    next: str | None = Field(description="cursor of the next page; null on the last one")


class TrialAnswer(LifeAnswer):
    """One training run of a sweep: a configuration, or a baseline, with one seed."""

    sweep_id: str
    number: int = Field(description="in the sweep, from 0; those of the baselines come first")
    configuration: int | None = Field(description="index of the configuration; null for a baseline")
    baseline: str | None = Field(description="label of the baseline; null for a configuration")
    values: Data = Field(description="the searched fields' values; empty for a baseline")
    seed: int
    workers: WorkerCount = Field(description="changed by the sweep, as room comes and goes")


class WholeTrialAnswer(TrialAnswer):
    """A trial with its past, and what it trains."""

    spec: JobSpec = Field(description="the job that it trains")
    elastic: Elastic = Field(description="the elastic events, summed up")
    transitions: list[Transition] = Field(description="every state it entered, oldest first")


class TrialPage(Answer):
    """Some trials, by number."""

    items: list[TrialAnswer]
    next: int | None = Field(description="the ?after= of the next page; null when there is no more for now")


class PromotedJobs(Answer):
    """The jobs that were made of the recommended configuration, one for each seed."""

    items: list[JobAnswer]


class SweepQuery(ListQuery):
    """Which sweeps."""

    def filters(self) -> dict[str, object]:
        """Return what a cursor is bound to."""
        return {**super().filters(), "of": "sweeps"}


class TrialQuery(Query):
    """Which trials."""

    after: int = Field(-1, ge=-1, lt=2**31, description="only trials with a higher number")
    limit: Limit = 200
    state: list[State] = Field([], description="only those in this state; may be repeated")


class Extend(Settings):
    """The new totals that an extension asks for, each at least what the sweep has."""

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(None, description="number of configurations")
    budget: Budget = Field(Budget(), description="where it starts no more trials; what is left out stays as it is")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.trials is None and self.budget == Budget():
            raise PydanticCustomError("empty", "give trials, budget.wall_s or budget.gradients")
        return self


class Promote(Settings):
    """How the recommended configuration is trained on; what is left out is as in the sweep's base."""

    name: Name | None = Field(None, description="of the jobs; the sweep's name when left out")
    epochs: Count | None = Field(None, description="length of the jobs")
    steps: Count | None = Field(None, description="length of the jobs, instead of epochs")
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(3, description="how many jobs, each with a seed of its own")


def sweep_answer(sweep: Sweep) -> SweepAnswer:
    """Return a sweep as lists show it."""
    return SweepAnswer.model_validate(sweep)


def trial_answer(trial: Job) -> TrialAnswer:
    """Return a trial as lists show it."""
    assert trial.part is not None, "a job of a sweep has its part"
    return TrialAnswer.model_validate({**vars(trial), **vars(trial.part), "workers": worker_count(trial)})


def trial_page(found: Sequence[Job], limit: int) -> TrialPage:
    """Return a page of the first ``limit`` trials of those found."""
    items = [trial_answer(trial) for trial in found[:limit]]
    return TrialPage(items=items, next=items[-1].number if len(found) > limit else None)
