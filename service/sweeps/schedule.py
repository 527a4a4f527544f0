"""Which trials end early, or go on from another's state: Ray Tune's schedulers behind one small class.

They are given what Tune's controller would give them, in the order of the study. What they draw at random comes from
the sweep's seed and the number of the call, so it is the same when the calls are repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from .schedulers import Asha, Median, NoScheduler, Pbt
from .search import plain, tune_domain
from .space import Domain, Values

if TYPE_CHECKING:
    from .spec import SweepSpec


@dataclass(frozen=True)
class Exploit:
    """A trial goes on from the state of another, at the end of a round, with other values.

    Attributes:
        target: Number of the trial.
        source: Number of the one whose state it takes.
        epoch: Where both stand.
        values: Of the searched fields, from there on.
    """

    target: int
    source: int
    epoch: float
    values: Values


def schedule_of(spec: SweepSpec) -> Schedule | None:
    """Return the scheduler of a sweep, at its beginning, or None if every trial is trained to its end."""
    return None if isinstance(spec.scheduler, NoScheduler) else Schedule(spec)


@dataclass(eq=False)
class _Trial:
    """What Tune's schedulers ask of a trial."""

    number: int
    config: dict[str, Any]
    status: str = "PAUSED"  # a population's trials are held whenever they are looked at
    over: bool = False
    trial_id: str = ""
    experiment_tag: str = ""
    run_metadata: SimpleNamespace = field(default_factory=lambda: _metadata(None))

    @property
    def checkpoint(self) -> _Trial:
        return self

    @property
    def temporary_state(self) -> SimpleNamespace:
        return SimpleNamespace(saving_to=None)

    def is_finished(self) -> bool:
        return self.over

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None: ...


def _metadata(copied: Any) -> SimpleNamespace:
    manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=copied)
    return SimpleNamespace(checkpoint_manager=manager)


class Schedule:
    """One of Tune's schedulers, and what stands for its controller and its trials."""

    search_alg = None  # Tune's population based training looks whether there is one

    def __init__(self, spec: SweepSpec) -> None:
        self._spec, self._calls = spec, 0
        self._trials: dict[int, _Trial] = {}
        self._tune = _tune_scheduler(spec)
        self._epoch = 0.0

    def started(self, number: int, values: Values) -> None:
        """A trial begins."""
        trial = self._trials[number] = _Trial(number, dict(values), trial_id=str(number))
        with self._drawing():
            self._tune.on_trial_add(self, trial)

    def result(self, number: int, epoch: float, score: float) -> bool:
        """Take a result; return whether the trial is to go on."""
        trial = self._trials[number]
        self._epoch = epoch
        with self._drawing():
            answer = self._tune.on_trial_result(self, trial, self._result(epoch, score))
        return bool(answer != "STOP")

    def ended(self, number: int, epoch: float, score: float | None) -> None:
        """A trial has trained to its end, was ended early, or failed, then without a score."""
        trial = self._trials.pop(number)
        trial.over = True
        with self._drawing():
            if score is None:
                self._tune.on_trial_error(self, trial)
            else:
                self._tune.on_trial_complete(self, trial, self._result(epoch, score))

    def exploits(self) -> list[Exploit]:
        """Return who goes on from whose state, after the last result of a round; each is returned once."""
        found = []
        for trial in self._trials.values():
            manager = trial.run_metadata.checkpoint_manager
            if manager._latest_checkpoint_result is None:
                continue
            source = manager._latest_checkpoint_result.checkpoint
            manager._latest_checkpoint_result = None
            trial.config = {path: self._inside(path, value) for path, value in trial.config.items()}
            found.append(Exploit(trial.number, source.number, self._epoch, dict(trial.config)))
        return found

    def rounds(self, length_epochs: int) -> list[float]:
        """Return after which epochs a population is held; empty for other schedulers."""
        own = self._spec.scheduler
        if not isinstance(own, Pbt):
            return []
        return [float(epoch) for epoch in range(own.every_epochs, length_epochs, own.every_epochs)]

    def decides(self, epoch: float) -> bool:
        """Say whether a trial may be ended, or changed, after these epochs."""
        own = self._spec.scheduler
        if isinstance(own, Pbt):
            return epoch % own.every_epochs == 0
        if not isinstance(own, Asha):
            return True
        rung: float = own.grace(self._spec.example.evaluate.every_epochs or 1)
        while rung < epoch:
            rung *= own.reduction
        return rung == epoch

    def get_trials(self) -> list[_Trial]:
        """As Tune's controller."""
        return [*self._trials.values()]

    def get_live_trials(self) -> list[_Trial]:
        """As Tune's controller."""
        return self.get_trials()

    def _result(self, epoch: float, score: float) -> dict[str, float]:
        return {"epoch": epoch, self._spec.metric: score}

    def _inside(self, path: str, value: Any) -> Any:
        domain = self._spec.space.get(path)
        return plain(value) if domain is None else domain.clip(plain(value))

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Have Tune draw from a stream of this call, and leave everyone else's as it was."""
        self._calls += 1
        before, before_numpy = random.getstate(), np.random.get_state()
        seed = int(np.random.SeedSequence([self._spec.seed, self._calls]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def _tune_scheduler(spec: SweepSpec) -> Any:
    import logging

    from ray.tune import schedulers

    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    logging.getLogger(schedulers.pbt.__name__).setLevel(logging.WARNING)
    own, every = spec.scheduler, spec.example.evaluate.every_epochs or 1
    common = {"time_attr": "epoch", "metric": spec.metric, "mode": spec.mode}
    if isinstance(own, Asha):
        return schedulers.AsyncHyperBandScheduler(
            **common, max_t=spec.length_epochs, grace_period=own.grace(every), reduction_factor=own.reduction
        )
    if isinstance(own, Median):
        return schedulers.MedianStoppingRule(
            **common, grace_period=own.grace(every), min_samples_required=own.min_trials, min_time_slice=float("inf")
        )
    assert isinstance(own, Pbt)
    return schedulers.PopulationBasedTraining(
        **common,
        perturbation_interval=own.every_epochs,
        hyperparam_mutations=_mutations(spec.space),
        quantile_fraction=own.quantile,
        resample_probability=own.resample,
        perturbation_factors=own.factors,
        log_config=False,
        synch=True,
    )


def _mutations(space: Mapping[str, Domain]) -> dict[str, Any]:
    return {path: domain.listed or tune_domain(domain) for path, domain in space.items()}
