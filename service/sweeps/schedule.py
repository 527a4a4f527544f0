"""What ends early in a sweep, or goes on from another's state: Ray Tune's schedulers, told one result at a time.

The same calls in the same order give the same decisions, in any process. They are about configurations, each of which
is a trial to Tune: its result is the mean of its seeds', since those whose seed was lucky would win if each counted for
itself. Baselines are not for these.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pydantic import JsonValue, ValidationError

from .schedulers import Asha, Median, NoScheduler, Pbt
from .space import Domain, Values
from .spec import SweepSpec

_EPOCH, _SCORE = "epoch", "score"  # what Tune finds in a result
_WORST = 1e30  # stands for a score that is no finite number; finite itself, since Tune interpolates between scores
_RUNNING, _PAUSED, _TERMINATED = "RUNNING", "PAUSED", "TERMINATED"  # of ray.tune.experiment.Trial


@dataclass(frozen=True)
class Exploit:
    """The trial of one configuration goes on from another's state with changed values.

    Attributes:
        target: Configuration whose trial gives up its own state.
        source: Configuration whose trial's state it takes.
        epoch: Where the source is, and the target will be.
        values: The target's searched values from now on, by field path.
    """

    target: int
    source: int
    epoch: float
    values: Values


class Schedule:
    """Decides after each result whether a configuration goes on; a wrapper of one of Tune's schedulers that stop."""

    def __init__(self, spec: SweepSpec, tune: Any) -> None:
        self._seed, self._worst = spec.seed, _WORST if spec.mode == "min" else -_WORST
        self._length = spec.length_epochs or 0  # in epochs; a sweep with a scheduler has it
        self._tune, self._trials = tune, Trials()
        self._grace, self._reduction = 0.0, 0.0
        if isinstance(spec.scheduler, Asha):
            self._grace = float(spec.scheduler.grace(spec.example.evaluate.every_epochs or 1))
            self._reduction = float(spec.scheduler.reduction)

    def started(self, n: int, values: Mapping[str, JsonValue]) -> None:
        """Say that configuration ``n`` begins with these values."""
        trial = self._trials.add(n, values)
        with _seeded(self._seed, n):
            self._tune.on_trial_add(self._trials, trial)

    def result(self, n: int, epoch: float, score: float) -> bool:
        """Say what configuration ``n`` reached after so many epochs; return False if it is to stop there.

        Args:
            n: One that was started and has not ended.
            epoch: Passes over the training set so far, more than at its result before.
            score: The sweep's metric, in the mean. One that is no finite number is worse than any other.
        """
        if epoch >= self._length:
            return True  # it is at its end, and ``ended`` follows
        trial = self._trials.live[n]
        return bool(self._tune.on_trial_result(self._trials, trial, self._report(epoch, score)) != "STOP")

    def ended(self, n: int, epoch: float, score: float | None) -> None:
        """Say that configuration ``n`` is over, at its end, stopped or failed.

        Args:
            n: One that was started and has not ended.
            epoch: What it reached.
            score: Its last one, in the mean; None if nothing is known of it.
        """
        trial = self._trials.end(n)
        if score is not None and epoch >= self._length:
            self._tune.on_trial_complete(self._trials, trial, self._report(epoch, score))
        else:
            self._tune.on_trial_remove(self._trials, trial)

    def decides(self, epoch: float) -> bool:
        """Say whether one may end, or be changed, after so many epochs; between rungs, ASHA lets all go on."""
        rung = self._grace
        while 0 < rung < epoch:
            rung *= self._reduction
        return rung in (0.0, epoch)

    def exploits(self) -> list[Exploit]:
        """Return what the last round of a population decided, once; empty while trials of the round are missing."""
        return []

    def rounds(self, length_epochs: int) -> list[int]:
        """Return the epochs at which trials of this length wait for the others of their population."""
        return []

    def _report(self, epoch: float, score: float) -> dict[str, float]:
        return {_EPOCH: round(epoch, 3), _SCORE: score if math.isfinite(score) else self._worst}


class Population(Schedule):
    """Population based training: trials wait at each round, and its worst go on from its best.

    A population has one seed, so that a configuration is a trial. A round is decided once all trials of the sweep have
    started and each that hasn't ended has its result there. One that ends leaves the population. In which order the
    results of a round come is of no matter. One whose changed values contradict each other keeps its own.
    """

    def __init__(self, spec: SweepSpec, pbt: Pbt) -> None:
        super().__init__(spec, _population_of(spec, pbt, self._exploit))
        self._spec, self._pbt = spec, pbt
        self._started: set[int] = set()
        self._waiting: dict[int, tuple[float, float]] = {}  # epoch and score of those that are at the round
        self._exploits: list[Exploit] = []

    def started(self, n: int, values: Mapping[str, JsonValue]) -> None:
        super().started(n, values)
        self._started.add(n)

    def result(self, n: int, epoch: float, score: float) -> bool:
        """Say what configuration ``n`` reached; always True. Between rounds, and at the end, it changes nothing."""
        if round(epoch, 3) in self.rounds(self._length):
            self._waiting[n] = epoch, score
            self._decide()
        return True

    def ended(self, n: int, epoch: float, score: float | None) -> None:
        """Say that configuration ``n`` is over. If the others waited for it alone, their round is decided now."""
        self._trials.end(n)
        self._waiting.pop(n, None)
        self._decide()

    def exploits(self) -> list[Exploit]:
        found, self._exploits = self._exploits, []
        return found

    def decides(self, epoch: float) -> bool:
        return epoch % self._pbt.every_epochs == 0

    def rounds(self, length_epochs: int) -> list[int]:
        return [*range(self._pbt.every_epochs, length_epochs, self._pbt.every_epochs)]

    def _decide(self) -> None:
        """Tell Tune of the round, if it is complete: the last of its results makes it decide."""
        live = self._trials.live
        if len(self._started) < self._spec.configurations or not live or set(self._waiting) != set(live):
            return
        for trial in live.values():
            trial.status = _PAUSED
        for n in sorted(live):
            epoch, score = self._waiting[n]
            with _seeded(self._seed, round(epoch)):
                self._tune.on_trial_result(self._trials, live[n], self._report(epoch, score))
        for trial in live.values():
            trial.status = _RUNNING
        self._waiting.clear()

    def _exploit(self, target: Trial, source: Trial, before: dict[str, Any]) -> None:
        changed = clipped(target.config, self._spec.space)
        target.config = changed if self._means_something(target.n, changed) else before
        self._exploits.append(Exploit(target.n, source.n, self._waiting[source.n][0], dict(target.config)))

    def _means_something(self, n: int, values: Values) -> bool:
        try:
            self._spec.trial(self._spec.numbers_of(n)[0], values)
        except ValidationError:
            return False
        return True


def schedule_of(spec: SweepSpec) -> Schedule | None:
    """Return the scheduler that a sweep asks for, as it is before its first trial; None if trials never end early."""
    chosen = spec.scheduler
    if isinstance(chosen, NoScheduler):
        return None
    if isinstance(chosen, Pbt):
        return Population(spec, chosen)
    return Schedule(spec, _stopping_of(spec, chosen))


def clipped(values: Mapping[str, JsonValue], space: Mapping[str, Domain]) -> Values:
    """Return the values, each within its domain."""
    return {path: space[path].clip(value) for path, value in values.items()}


# What Tune's schedulers see


@dataclass(eq=False)
class Trial:
    """As much of Tune's Trial as its schedulers look at: a configuration."""

    n: int
    config: dict[str, Any]
    status: str = _RUNNING
    experiment_tag: str = ""
    evaluated_params: dict[str, Any] = field(default_factory=dict)
    checkpoint: Any = "its newest"  # of which there always is one at a round
    temporary_state: Any = field(default_factory=lambda: SimpleNamespace(saving_to=None))
    run_metadata: Any = field(
        default_factory=lambda: SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )
    )

    @property
    def trial_id(self) -> str:
        return str(self.n)

    def is_finished(self) -> bool:
        return self.status == _TERMINATED

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class Trials:
    """As much of Tune's controller: the trials that have not ended, in the order of their starts."""

    search_alg = None

    def __init__(self) -> None:
        self.live: dict[int, Trial] = {}

    def add(self, n: int, values: Mapping[str, JsonValue]) -> Trial:
        self.live[n] = Trial(n, dict(values))
        return self.live[n]

    def end(self, n: int) -> Trial:
        trial = self.live.pop(n)
        trial.status = _TERMINATED
        return trial

    def get_trials(self) -> Sequence[Trial]:
        return [*self.live.values()]

    get_live_trials = get_trials


def _stopping_of(spec: SweepSpec, chosen: Asha | Median) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    grace = chosen.grace(spec.example.evaluate.every_epochs or 1)
    common = {"time_attr": _EPOCH, "metric": _SCORE, "mode": spec.mode, "grace_period": grace}
    if isinstance(chosen, Median):
        return MedianStoppingRule(**common, min_samples_required=chosen.min_trials)
    return AsyncHyperBandScheduler(**common, max_t=spec.length_epochs, reduction_factor=chosen.reduction)


def _population_of(spec: SweepSpec, pbt: Pbt, on_exploit: Any) -> Any:
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers import pbt as its_module

    from .search import tune_domain

    class Telling(PopulationBasedTraining):  # type: ignore[misc]
        """Tune's own, which says what it did."""

        def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
            before = trial.config
            super()._exploit(tune_controller, trial, trial_to_clone)
            on_exploit(trial, trial_to_clone, before)

    its_module.logger.setLevel(logging.WARNING)  # it tells of each exploit; the sweep has an event for that
    return Telling(
        time_attr=_EPOCH,
        metric=_SCORE,
        mode=spec.mode,
        perturbation_interval=pbt.every_epochs,
        hyperparam_mutations={path: domain.listed or tune_domain(domain) for path, domain in spec.space.items()},
        quantile_fraction=pbt.quantile,
        resample_probability=pbt.resample,
        perturbation_factors=pbt.factors,
        log_config=False,
        synch=True,
    )


@contextmanager
def _seeded(seed: int, moment: int) -> Iterator[None]:
    """Give Tune, which draws from the process's own generators, numbers of a moment; leave those as they were."""
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(f"{seed}/{moment}")
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
