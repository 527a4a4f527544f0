"""A sweep as it is asked for: frozen, checked before it is stored, with the numbers and the jobs of its trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from ...workers.settings import Settings
from ..fields import Holds
from ..specs import Code, JobSpec
from .checks import Fault, composed, moved, refusals, refused
from .rules import MOST_TRIALS, contradictions
from .schedulers import AnyScheduler, Count, NoScheduler
from .space import Domain, Values, compose, fitted
from .storable import MOST, no_bool, unstorable

Name = Annotated[str, Field(min_length=1, max_length=90, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


@dataclass(frozen=True)
class Part:
    """What makes a trial the one that it is.

    Attributes:
        number: Its place in the sweep, from 0.
        configuration: Index of the point of the space, from 0; None for a baseline's trial.
        baseline: The baseline's label; None for a configuration's trial.
        values: The searched fields' values by path; empty for a baseline's trial.
        seed: What the trial is trained with, ``base.seed`` and more.
    """

    number: int
    configuration: int | None
    baseline: str | None
    values: Values
    seed: int


LENGTHS = ("epochs", "steps")  # a job has one of them
LEAST_PARALLEL, MOST_PARALLEL = 4, 1000
_ONE_GRADIENT = frozenset({"sgd", "msam"})  # methods with one a step; all others are counted with two


class Budget(Settings):
    """Where a sweep starts no more trials; what is None is not limited."""

    wall_s: Annotated[float, Field(gt=0), BeforeValidator(no_bool)] | None = Field(
        None, description="seconds that it has run, pauses not counted; what trains then is stopped with what it has"
    )
    gradients: Annotated[int, Field(ge=1, le=MOST), BeforeValidator(no_bool)] | None = Field(
        None,
        description="gradients of a whole batch, added up over all trials: two for each step, one for those of sgd and "
        "msam; what other methods save is not counted",
    )


class SweepSpec(Settings):
    """A job to start from, the fields that are searched, and how."""

    name: Name = Field(description="letters, digits, dots, dashes and underscores; need not be unique")
    base: Annotated[dict[str, JsonValue], Holds(JobSpec)] = Field(
        description="a job without name; searched fields may be left out, and their values here don't count"
    )
    space: Annotated[dict[str, Domain], Field(max_length=50)] = Field(
        description="what is searched, by a field's path in the job: method.rho, optimizer.lr, method.name ..."
    )
    scheduler: AnyScheduler = Field(NoScheduler(), description="which trials end early")
    search: Literal["grid", "random", "tpe", "gp"] = Field(
        "tpe",
        description="how configurations are found. grid: all of them; random; tpe: tree-structured Parzen estimator; "
        "gp: Gaussian process. Left out: grid if a field is a grid, random for pbt, else tpe",
    )
    trials: Annotated[Count, Field(le=MOST_TRIALS)] | None = Field(
        None, description="number of configurations; may be left out where all fields are grids and choices"
    )
    seeds: Annotated[Count, Field(le=100)] = Field(
        1, description="trials of each configuration and baseline; the first is trained with base.seed, the next + 1"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(no_bool)] = Field(0, description="of the search itself")
    metric: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")] = Field(
        "accuracy", description="measure of the task that is compared, as its evaluations report it"
    )
    mode: Literal["max", "min"] = Field(
        "max", description="whether more or less of the metric is better; left out: min for loss, else max"
    )
    budget: Budget = Field(Budget(), description="where it starts no more trials")
    baselines: Annotated[list[JsonValue], Field(max_length=20)] = Field(
        ["sgd", "sam"],
        description="methods to compare with, by name or as {name: ..., settings}, trained with all else as in base. "
        "sam without rho takes base.method.rho; where base has none, it is trained with its own default, 0.05, also if "
        "rho is searched: name the rho that you would use, {name: sam, rho: 0.1}",
    )
    margin: Annotated[float, Field(ge=0), BeforeValidator(no_bool)] = Field(
        0.005, description="by how much SAMPa must beat SGD to be worth it, in units of the metric"
    )
    parallel: Annotated[Count, Field(le=MOST_PARALLEL)] = Field(
        LEAST_PARALLEL,
        description="trials that are undecided at once, where a search or a scheduler looks at results: suggestions "
        "depend on it, but not on the number of workers. Left out: an eighth of the trials of all configurations, so "
        f"that most of what is suggested knows of most, and at least {LEAST_PARALLEL}. It stays so when the sweep is "
        "extended",
    )
    workers: Count | None = Field(None, description="most workers of all trials together; null: what the cluster has")
    max_restarts: Annotated[int, Field(ge=0), BeforeValidator(no_bool)] = Field(
        3, description="how often the sweep's runner, if it vanished, is started again"
    )

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, data: Any) -> Any:
        found = [refused("/".join(path), message) for path, message in unstorable(data) if path]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return {**_usual_of(data), **data} if isinstance(data, dict) else data

    @field_validator("scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = list(self._faults())
        if found:
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self

    def _faults(self) -> Iterator[InitErrorDetails]:
        """Yield what is wrong: first with the space and the base, then with baselines and the rest."""
        if not self.space:
            yield refused("space", "space is empty; name a field to search, method.rho for example")
            return
        if "name" in self.base:
            yield refused("base/name", "base has a name, but trials are named after the sweep; leave it out")
            return
        found = refusals(f"{self.name}-0", self.base, self.space)
        yield from found
        if not found:
            yield from self._baseline_faults()
            yield from (refused(field, message) for field, message in contradictions(self, self.example))

    def _baseline_faults(self) -> Iterator[InitErrorDetails]:
        for index, given in enumerate(self.baselines):
            if not _is_method(given):
                message = f"baselines.{index} must be the name of a method, or {{name: ..., settings}}"
                yield refused(f"baselines/{index}", message)
                continue
            for fault in self._composed_baseline(self._method_of(given)):
                if fault.path[:1] == ("method",) and fault.plain:
                    yield moved(fault.error, "baselines", index, *fault.path[1:])
                else:
                    needed = self._needed(fault)
                    message = f"needs {needed}, which only the space gives; give base.{needed} too"
                    yield refused(f"baselines/{index}", f"baselines.{index} {message if needed else fault.sentence}")

    def _needed(self, fault: Fault) -> str:
        """Return the field that a baseline lacks since only the space gives it; empty if it fails otherwise."""
        missing = fault.error["type"] in ("missing", "union_tag_not_found")
        lacking = [".".join(fault.path)] if missing else list(LENGTHS) if fault.path == LENGTHS[:1] else []
        given = [name for name in lacking for path in self.space if path == name or path.startswith(f"{name}.")]
        return next(iter(given), "")

    def _composed_baseline(self, method: Mapping[str, JsonValue]) -> list[Fault]:
        job = composed(f"{self.name}-0", fitted({**self.base, "method": dict(method)}), {})
        return [] if isinstance(job, JobSpec) else job

    # What is trained

    @property
    def configurations(self) -> int:
        """How many points of the space are trained, each with all seeds."""
        return self.trials or math.prod(len(domain.listed) for domain in self.space.values())

    @cached_property
    def baseline_methods(self) -> list[tuple[str, Values]]:
        """The baselines, each as (label, method); a label is the method's name, or sam-2 where a name comes again."""
        methods = [self._method_of(given) for given in self.baselines]
        names = [str(method["name"]) for method in methods]
        again = [names[:index].count(name) for index, name in enumerate(names)]
        return [
            (f"{name}-{before + 1}" if before else name, method)
            for name, before, method in zip(names, again, methods, strict=True)
        ]

    @property
    def trial_count(self) -> int:
        """How many trials there are, those of baselines included."""
        return (len(self.baselines) + self.configurations) * self.seeds

    @cached_property
    def example(self) -> JobSpec:
        """The job of the first value of each field, for what all trials have in common."""
        return self._example({})

    def examples(self, paths: Iterable[str]) -> Iterator[JobSpec]:
        """Yield the job of the first values, then of each sample of these fields and the first values of all others."""
        yield self.example
        yield from (self._example({path: value}) for path in paths for value in self.space[path].samples[1:])

    def _example(self, others: Values) -> JobSpec:
        values = {path: domain.samples[0] for path, domain in self.space.items()} | others
        return JobSpec.model_validate({**compose(self.base, values), "name": f"{self.name}-0"})

    @cached_property
    def length_epochs(self) -> int | None:
        """Length of every trial; None where it is given in steps, or searched."""
        return None if "epochs" in self.space else self.example.epochs

    @property
    def grid(self) -> dict[str, list[JsonValue]]:
        """The values of each field of a grid search, by path; a range is cut into evenly spaced ones."""
        assert self.search == "grid"
        listed = math.prod(len(domain.listed) for domain in self.space.values() if domain.listed)
        count = (self.trials or 0) // listed
        return {path: domain.listed or domain.cut(count) for path, domain in self.space.items()}

    def numbers_of(self, configuration: int) -> range:
        """Return the numbers of the trials of a configuration, in the order of their seeds."""
        first = (len(self.baselines) + configuration) * self.seeds
        return range(first, first + self.seeds)

    def part(self, number: int, values: Mapping[str, JsonValue] | None = None) -> Part:
        """Return what trial ``number`` is: a baseline's, for the first ones, or a configuration's of these values."""
        group, index = divmod(number, self.seeds)
        seed, baselines = self.example.seed + index, self.baseline_methods
        if group < len(baselines):
            return Part(number, None, baselines[group][0], {}, seed)
        return Part(number, group - len(baselines), None, dict(values or {}), seed)

    def job_of(self, part: Part) -> JobSpec:
        """Return what a trial trains, under the name ``NAME-NUMBER``.

        Raises:
            ValidationError: If the values contradict each other in a way that the sweep's checks didn't foresee.
        """
        if part.baseline is None:
            job = compose(self.base, part.values)
        else:
            job = fitted({**self.base, "method": dict(self.baseline_methods)[part.baseline]})
        return JobSpec.model_validate({**job, "name": f"{self.name}-{part.number}", "seed": part.seed})

    def trial(self, number: int, values: Mapping[str, JsonValue] | None = None) -> JobSpec:
        """Return the job of trial ``number``; raises as ``job_of``."""
        return self.job_of(self.part(number, values))

    def _method_of(self, given: JsonValue) -> Values:
        method: Values = dict(given) if isinstance(given, Mapping) else {"name": given}
        own = self.base.get("method")
        if method.get("name") == "sam" and "rho" not in method and isinstance(own, Mapping) and "rho" in own:
            method["rho"] = own["rho"]
        return method

    # What it needs

    @property
    def bundle(self) -> str | None:
        """SHA-256 of the bundle that all trials refer to."""
        return self.example.bundle

    @property
    def pip(self) -> list[str]:
        """Packages that are installed for the workers of all trials."""
        return self.example.pip

    def with_pip(self, pip: list[str]) -> SweepSpec:
        """Return the same sweep with other packages."""
        code = Code(bundle=self.bundle, pip=pip).model_dump(mode="json")
        return self.model_copy(update={"base": {**self.base, "code": code}})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, unchecked, that computes anew what follows from its fields."""
        copied = super().model_copy(update=update, deep=deep)
        for name in vars(copied).keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied


def _usual_of(asked: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return the search, the mode and the places of a sweep that doesn't say them, from its fields as given."""
    space, scheduler = asked.get("space"), asked.get("scheduler")
    domains = space.values() if isinstance(space, Mapping) else ()
    grids = any(
        (domain.get("grid") if isinstance(domain, Mapping) else getattr(domain, "grid", None)) for domain in domains
    )
    name = scheduler.get("name") if isinstance(scheduler, Mapping) else getattr(scheduler, "name", scheduler)
    search = "grid" if grids else "random" if name == "pbt" else "tpe"
    mode = "min" if asked.get("metric") == "loss" else "max"
    return {"search": search, "mode": mode, "parallel": _usual_parallel(asked)}


def _usual_parallel(asked: Mapping[str, Any]) -> int:
    trials, seeds = asked.get("trials"), asked.get("seeds", 1)
    if not isinstance(trials, int) or not isinstance(seeds, int):
        return LEAST_PARALLEL
    return min(max(LEAST_PARALLEL, trials * seeds // 8), MOST_PARALLEL)


def _is_method(given: JsonValue) -> bool:
    return isinstance(given, str) or (isinstance(given, Mapping) and isinstance(given.get("name"), str))


def gradients_of(spec: JobSpec) -> int:
    """Return how many gradients of a whole batch a step is counted with."""
    return 1 if spec.method.name in _ONE_GRADIENT else 2
