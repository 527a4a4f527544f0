"""How the fields of a sweep may contradict each other, once its space and its base are known to be good."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import JsonValue

from ...workers.tasks import BUILT_IN
from ..specs import JobSpec
from .schedulers import NoScheduler, Pbt, Stopping

if TYPE_CHECKING:
    from .spec import SweepSpec

Found = Iterator[tuple[str, str]]
_CHANGEABLE = ("label_smoothing", "clip_norm")  # besides those of method and optimizer
MOST_TRIALS = 10_000  # all of which a runner that begins again reads
_OF_WIDTH = ("method", "method.name", "pairs", "shards")  # fields which decide how many workers are of use
_OF_EVALUATIONS = ("step", "epoch", "split")  # what an evaluation says of itself, besides its measures


def contradictions(spec: SweepSpec, example: JobSpec) -> Found:
    """Yield (field, sentence) for each contradiction; ``example`` is the job of the first values."""
    if example.seed + spec.seeds > 2**31:
        yield "base/seed", f"seed {example.seed} leaves no room for {spec.seeds} seeds; lower base.seed"
    yield from _of_metric(spec, example)
    yield from _of_workers(spec)
    yield from _of_total(spec)
    yield from _of_grid(spec) if spec.search == "grid" else _of_sampling(spec)
    if not isinstance(spec.scheduler, NoScheduler):
        yield from _of_scheduler(spec, example)


def _of_metric(spec: SweepSpec, example: JobSpec) -> Found:
    task = example.task
    if spec.metric in _OF_EVALUATIONS:
        yield "metric", f"metric {spec.metric} says when something was measured, not what; name a measure of the task"
        return
    if task.entrypoint not in BUILT_IN or "task.entrypoint" in spec.space:
        return
    known = ("loss",) if task.params.get("regression") else ("accuracy", "loss")
    if spec.metric not in known:
        reports = " and ".join(known)
        yield (
            "metric",
            f"metric {spec.metric!r} is not among what {task.entrypoint} reports: {reports}; name one of those",
        )


def _of_workers(spec: SweepSpec) -> Found:
    """Yield that the workers of all trials together are too few for one that comes first in the sweep's checks."""
    if spec.workers is None:
        return
    widths = [path for path in _OF_WIDTH if path in spec.space]
    least = max(job.workers.min for job in spec.examples(widths))
    if spec.workers < least:
        message = (
            f"workers {spec.workers} is fewer than a trial waits for, {least}; raise it, or lower base.workers.min"
        )
        yield "workers", message


def _of_total(spec: SweepSpec) -> Found:
    total, configurations = spec.trial_count, spec.configurations
    if total > MOST_TRIALS >= configurations:
        each = f"{configurations} configurations and {len(spec.baselines)} baselines, each with {spec.seeds} seeds"
        field = "seeds" if spec.seeds > 1 else "trials"
        yield field, f"{each}, are {total} trials, but at most {MOST_TRIALS} can be trained; lower trials or seeds"


def _of_grid(spec: SweepSpec) -> Found:
    ranges = [path for path, domain in spec.space.items() if domain.ends]
    listed = math.prod(len(domain.listed) for domain in spec.space.values() if domain.listed)
    if len(ranges) > 1:
        message = f"a grid can cut one range, {ranges[0]}, but {ranges[1]} is another; give it as a grid"
        yield f"space/{ranges[1]}", message
    elif ranges:
        yield from _of_cut(spec, ranges[0], listed)
    elif listed > MOST_TRIALS:
        yield "space", f"the grid of this space has {listed} points, but at most {MOST_TRIALS} can be trained"
    elif spec.trials not in (None, listed):
        yield "trials", f"the grid has {listed} points, but trials is {spec.trials}; leave trials out"


def _of_cut(spec: SweepSpec, path: str, listed: int) -> Found:
    """Yield why the one range among a grid can't be cut into as many points as trials asks for."""
    domain = spec.space[path]
    if spec.trials is None:
        yield "trials", f"trials is missing; give it, it says into how many values the grid cuts {path}"
        return
    count, rest = divmod(spec.trials, listed)
    if rest or count < 2:
        message = (
            f"trials {spec.trials} is not 2 or more times {listed}, the number of combinations of the other fields"
        )
        if listed == 1:
            message = f"trials {spec.trials} cuts {path} into a constant; give 2 or more"
        yield "trials", message
    elif domain.integer and count > domain.integer[1] - domain.integer[0] + 1:
        yield f"space/{path}", f"{path} has fewer than {count} whole numbers; lower trials, or widen it"


def _of_sampling(spec: SweepSpec) -> Found:
    for path, domain in spec.space.items():
        if domain.grid is not None:
            other = "choice" if isinstance(spec.scheduler, Pbt) else "choice, or set search: grid"
            yield f"space/{path}", f"{path} is a grid, but search: {spec.search} doesn't try each value; say {other}"
    if spec.trials is None:
        yield "trials", f"trials is missing; give it, it says how many configurations {spec.search} tries"


def _of_scheduler(spec: SweepSpec, example: JobSpec) -> Found:
    name, every = spec.scheduler.name, example.evaluate.every_epochs
    if example.epochs is None:
        yield "base/epochs", f"scheduler {name} compares trials epoch by epoch; give base.epochs instead of steps"
    elif "epochs" in spec.space:
        yield (
            "space/epochs",
            f"epochs can't be searched under scheduler {name}, which compares trials at the same epoch",
        )
    elif every is None:
        message = f"scheduler {name} needs evaluations; set base.evaluate.every_epochs, which is null"
        yield "base/evaluate/every_epochs", message
    elif isinstance(spec.scheduler, Stopping):
        grace = spec.scheduler.grace(every)
        if grace >= example.epochs:
            message = f"{name} would end no trial: grace_epochs is {grace}, and trials have {example.epochs}; lower it"
            yield "scheduler/grace_epochs", message
    elif isinstance(spec.scheduler, Pbt):
        yield from _of_pbt(spec, spec.scheduler, every, example.epochs)


def _of_pbt(spec: SweepSpec, pbt: Pbt, every: int, epochs: int) -> Found:
    if pbt.every_epochs % every:
        message = f"every_epochs {pbt.every_epochs} falls between evaluations; make it a multiple of {every}"
        yield "scheduler/every_epochs", message
    elif pbt.every_epochs >= epochs:
        message = f"every_epochs {pbt.every_epochs} leaves no round before the end at epoch {epochs}; lower it"
        yield "scheduler/every_epochs", message
    if spec.seeds != 1:
        yield "seeds", f"pbt trains one population, so seeds is 1, but it is {spec.seeds}"
    if spec.search != "random":
        yield "search", f"pbt starts from random values; set search: random instead of {spec.search}"
    if spec.trials is not None and spec.trials < 2:
        yield "trials", f"pbt needs a population of two trials or more, but trials is {spec.trials}"
    for path, domain in spec.space.items():
        root = path.split(".")[0]
        if (root not in ("method", "optimizer") and path not in _CHANGEABLE) or not all(map(_number, domain.samples)):
            yield f"space/{path}", f"{path} can't change while a trial trains; pbt is for numbers like method.rho"


def _number(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
