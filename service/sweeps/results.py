"""What the trials of a sweep gave, made comparable: which fell apart, how seeds spread, what early ends are worth.

Inside, more is always better: a metric of which less is better changes its sign (*goodness*).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy.stats import kendalltau

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FAR = 10.0  # of seeds' standard deviations, or of margins
_STRETCH = 2.0  # of the distance between the best configuration and SGD
_MOST_RUNGS = 6


@dataclass(frozen=True)
class Measured:
    """One trial as a report needs it.

    Attributes:
        number: Its place in the sweep.
        configuration: Index of its point of the space; None for a baseline.
        baseline: Label of the baseline; None for a point of the space.
        values: The searched fields' values, by path.
        seed: What it was trained with.
        state: "SUCCEEDED", "STOPPED", "FAILED", ...
        reason: Why, for those that failed.
        curve: Its evaluations: (epoch, metric), in their order; NaN where the metric was no number.
        full: Whether it was trained to its end.
        seconds: What it took in worker-seconds: those of all its workers together.
        gradients: How many gradients of a whole batch it took.
        diverged: Whether it failed since its loss was no number any more, which is a result: it has fallen apart.
        changes: What it was trained with, where that changed on its way: (epoch, values) for the values from that epoch
            on, in order. Before a state that it took over, those are of the trial that had come to it.
    """

    number: int
    configuration: int | None
    baseline: str | None
    values: Mapping[str, JsonValue]
    seed: int
    state: str
    reason: str | None
    curve: tuple[tuple[float, float], ...]
    full: bool
    seconds: float
    gradients: int
    diverged: bool = False
    changes: tuple[tuple[float, Mapping[str, JsonValue]], ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it says something of its values: it diverged, or it measured something and didn't fail."""
        return self.diverged or (bool(self.curve) and self.state != "FAILED")

    @property
    def final(self) -> bool:
        """Whether its result is one of a full run: it was trained to its end, or what it had come to is no number."""
        return self.full or self.diverged or (bool(self.curve) and not math.isfinite(self.curve[-1][1]))

    @property
    def result(self) -> float:
        """The metric of its last evaluation; NaN where it is not finite."""
        return self.at(math.inf)

    def at(self, epoch: float) -> float:
        """Return the metric of its last evaluation up to ``epoch``; NaN where that is not finite, or there is none.

        After the last one of a trial that diverged it is NaN.
        """
        if self.diverged and (not self.curve or epoch > self.curve[-1][0] + 1e-6):
            return math.nan
        last = next((value for when, value in reversed(self.curve) if when <= epoch + 1e-6), math.nan)
        return last if math.isfinite(last) else math.nan


@dataclass(frozen=True)
class Yardstick:
    """What is usual in a sweep, in goodness.

    Attributes:
        sign: 1, or -1 where less of the metric is better.
        best: Mean of the best configuration.
        noise: Standard deviation of a configuration's seeds; None if no configuration has two.
        freedom: Degrees of freedom of ``noise``.
        floor: What is below has fallen apart, and counts as this much.
    """

    sign: int
    best: float
    noise: float | None
    freedom: float
    floor: float

    def good(self, trials: Iterable[Measured]) -> Array:
        """Return the goodness of the last results, not below the floor, shape (trials,)."""
        raw = np.array([self.sign * trial.result for trial in trials])
        return np.where(raw > self.floor, raw, self.floor)  # NaN counts as fallen apart


def by_configuration(trials: Iterable[Measured]) -> dict[int, list[Measured]]:
    """Return the trials of each configuration."""
    groups: dict[int, list[Measured]] = defaultdict(list)
    for trial in trials:
        if trial.configuration is not None:
            groups[trial.configuration].append(trial)
    return dict(groups)


def yardstick(full: Sequence[Measured], sgd: Sequence[Measured], *, sign: int, margin: float) -> Yardstick:
    """Return what is usual among trials that were trained to their end.

    A run has fallen apart if it is below the best configuration by more than 10 standard deviations of seeds, 10
    margins, and twice the lead over SGD. On digits (16 values of rho, 3 seeds) the best is 0.959, seeds spread by
    0.008, SGD reaches 0.904: the floor is 0.844; above it lies all up to rho 0.18, below it all from 0.3 on.

    Args:
        full: Trials of the space whose results are final; one of them at least finite.
        sgd: Trials of the baseline SGD; may be empty.
        sign: 1 if more of the metric is better, else -1.
        margin: The sweep's, in units of the metric.
    """
    groups = [_finite(sign, group) for group in by_configuration(full).values()]
    groups = [group for group in groups if len(group)]
    best = max(float(np.mean(group)) for group in groups)
    gaps = [abs(one - other) for group in groups for one, other in combinations(group, 2)]
    spread = FAR * float(np.median(gaps)) / 0.954 if gaps else _without_seeds(groups)  # 0.954: of normal draws
    lead = abs(best - float(np.median(_finite(sign, sgd)))) if len(_finite(sign, sgd)) else 0.0
    far = max(spread, FAR * margin, _STRETCH * lead)
    kept = [group[group > best - far] for group in groups]
    freedom = float(sum(len(group) - 1 for group in kept if len(group)))
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in kept if len(group))
    noise = math.sqrt(squares / freedom) if freedom else None
    return Yardstick(sign, best, noise, freedom, best - far)


def _without_seeds(groups: Sequence[Array]) -> float:
    """Return three times the distance from the best result to the upper quartile, where none has a second seed."""
    results = [float(group.mean()) for group in groups]
    return 3 * (max(results) - float(np.quantile(results, 0.75)))


def _finite(sign: int, trials: Iterable[Measured]) -> Array:
    values = np.array([sign * trial.result for trial in trials], dtype=float)
    return np.asarray(values[np.isfinite(values)])


@dataclass(frozen=True)
class Observed:
    """Results as a smoother takes them; all arrays have shape (n,).

    Attributes:
        trials: Whose result each is.
        goodness: On the scale of a full run, for early results too; NaN where the metric was.
        length: Logarithm of the epoch over a full run's; 0 for a full run's end.
        last: Whether it is the trial's last.
        collapsed: Whether it is below the floor.
    """

    trials: list[Measured]
    goodness: Array
    length: Array
    last: Mask
    collapsed: Mask


def observed(trials: Sequence[Measured], usual: Yardstick) -> Observed:
    """Return the full results, and those at the epochs where others were stopped, moved to the scale of full ones.

    Early results keep their own place on the axis of length, so that a smoother learns from the trials that went on how
    much the order at an early epoch says of the order at the end. On digits that is little before epoch 15 of 30: small
    radii lead at epoch 9 and lose at 30.

    Args:
        trials: Usable trials of the space, at least one of them full.
        usual: From the same trials.
    """
    end = length_of(trials)
    ends = _rungs(trials, end)
    known = {trial.number: usual.sign * trial.result for trial in trials if trial.final}
    rows = [(trial, known[trial.number], 0.0, True) for trial in trials if trial.final]
    scale = 1.0
    for rung in sorted(set(ends.values()), reverse=True):
        reached = [trial for trial in trials if ends.get(trial.number, end) >= rung and _was_at(trial, rung)]
        there = {trial.number: usual.sign * trial.at(rung) for trial in reached}
        shift, scale = _matching(there, known, usual.floor, scale)
        known = {number: shift + scale * value for number, value in there.items()}
        length = math.log(rung / end)
        rows += [(trial, known[trial.number], length, ends.get(trial.number) == rung) for trial in reached]
    goodness = np.array([row[1] for row in rows])
    return Observed(
        trials=[row[0] for row in rows],
        goodness=goodness,
        length=np.array([row[2] for row in rows]),
        last=np.array([row[3] for row in rows]),
        collapsed=~(goodness > usual.floor),
    )


def _was_at(trial: Measured, rung: float) -> bool:
    """Whether a trial was evaluated at a rung, or before it, and went on until there."""
    return bool(trial.curve) and trial.curve[0][0] <= rung and not (trial.final and trial.curve[-1][0] < rung)


def length_of(trials: Iterable[Measured]) -> float:
    """Return the epoch at which full runs end."""
    return float(np.median([trial.curve[-1][0] for trial in trials if trial.full and not trial.diverged]))


def _rungs(trials: Iterable[Measured], end: float) -> dict[int, float]:
    """Return, by number, the epoch at which a stopped trial counts: its last one, or the nearest before of six."""
    last = {trial.number: min(trial.curve[-1][0], end) for trial in trials if not trial.final}
    epochs = sorted(set(last.values()))
    few = {epochs[round(share)] for share in np.linspace(0, len(epochs) - 1, _MOST_RUNGS)} if epochs else set()
    return {number: max(epoch for epoch in few if epoch <= own) for number, own in last.items()}


def _matching(early: Mapping[int, float], late: Mapping[int, float], floor: float, scale: float) -> tuple[float, float]:
    """Return shift and scale that move early results to where later ones of the same trials are.

    Early results that are spread wider are drawn together, and never apart; fewer than five keep the scale given.
    """
    shared = [number for number in early if late.get(number, -math.inf) > floor and math.isfinite(early[number])]
    if not shared:
        return 0.0, scale
    before, after = np.array([early[n] for n in shared]), np.array([late[n] for n in shared])
    width = float(np.median(abs(before - np.median(before))))
    if len(shared) >= 5 and width > 0:
        scale = min(1.0, float(np.median(abs(after - np.median(after)))) / width)
    return float(np.median(after - scale * before)), scale


def agreement(trials: Sequence[Measured]) -> list[dict[str, float]]:
    """Return how the order at the epochs of early ends agrees with the order at the end, in trials that went on.

    Kendall's tau: 1 for the same order, 0 for no relation, -1 for the opposite one. Baselines count too, since they
    show what stopping would have done to them. Epochs with fewer than five such trials are left out.
    """
    full = [trial for trial in trials if trial.full and math.isfinite(trial.result)]
    if not full:
        return []
    found = []
    for rung in sorted(set(_rungs(trials, length_of(trials)).values())):
        both = [(trial.at(rung), trial.result) for trial in full if math.isfinite(trial.at(rung))]
        if len(both) >= 5 and all(len(set(side)) > 1 for side in zip(*both, strict=True)):
            tau = float(kendalltau(*zip(*both, strict=True)).statistic)
            found.append({"epoch": rung, "agreement": tau, "n": len(both)})
    return found
