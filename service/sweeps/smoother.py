"""A Gaussian process over the searched fields: what a metric is expected to be, and where it is best.

Numbers lie in [0, 1] on their field's scale, choices are indicators, and how far a trial has come is one more input,
so that trials which were stopped early count too and what is predicted is that of a trial at its full length.

Trials that fell apart (accuracy 0.1 where others have 0.96) say that a value is bad, not how bad: a process fitted to
them as they are takes their spread for noise everywhere. So scores are cut off from the bad side, see ``floor_of``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from .space import Domain, Values

Array = NDArray[np.float64]
FINE = 200  # points of the line on which one number is looked at
DRAWS = 400  # samples of the process


class Axis:
    """A field's values as coordinates."""

    def __init__(self, path: str, domain: Domain) -> None:
        self.path, self.domain = path, domain
        numbers = [value for value in domain.listed if isinstance(value, int | float) and not isinstance(value, bool)]
        self.numeric = bool(domain.ends) or len(numbers) == len(domain.listed)
        low, high = domain.ends or ((min(numbers), max(numbers)) if self.numeric else (0.0, 1.0))
        self.low, self.high = float(low), float(high)
        self.log = domain.kind == "loguniform" or (domain.ends is None and self.low > 0 and self.high > 8 * self.low)

    def place(self, value: JsonValue) -> list[float]:
        """Return the coordinates of a value."""
        if not self.numeric:
            return [float(value == one) for one in self.domain.listed]
        assert isinstance(value, int | float)
        if self.log:
            return [math.log(value / self.low) / math.log(self.high / self.low)]
        return [(value - self.low) / (self.high - self.low)]

    def value(self, share: float) -> JsonValue:
        """Return the number at a place in [0, 1], or the choice whose stretch of it that is."""
        if not self.numeric:
            return self.domain.listed[min(int(share * len(self.domain.listed)), len(self.domain.listed) - 1)]
        found = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        if self.domain.listed:
            return min(self.domain.listed, key=lambda one: abs(self.place(one)[0] - share))
        return self.domain.clip(float(f"{found:.3g}"))


def floor_of(scores: Array) -> float:
    """Return what scores are cut off at, of scores of which more are better.

    Twice as far below the 90th percentile as the median is nothing of interest for where the best is; where the median
    itself has fallen apart, three times as far as the upper quartile. Digits with label noise, 16 values of rho: cut at
    0.89, the process is best at 0.134; cut at 0.79, it swings up before the cliff and is best at 0.151, next to it.
    """
    middle, upper, best = np.quantile(scores, [0.5, 0.75, 0.9])
    fell = best - middle > 8 * (best - upper)
    return float(best - max(3 * (best - upper) if fell else 2 * (best - middle), 1e-9 + 1e-3 * abs(best)))


class Smoother:
    """The process, fitted.

    Args:
        axes: The searched fields.
        values: Of each observation.
        shares: Of its full length that a trial had come to, each in (0, 1].
        scores: Of each observation; more is better.
    """

    def __init__(self, axes: Sequence[Axis], values: Sequence[Values], shares: Sequence[float], scores: Array) -> None:
        self.axes = axes
        self.floor = floor_of(scores[np.asarray(shares) >= 1] if max(shares) >= 1 else scores)
        self._partial = min(shares) < 1
        inputs, targets = self.inputs(values, shares), np.maximum(scores, self.floor)
        widths = np.full(inputs.shape[1], 0.3)
        kernel = 1.0 * Matern(widths, (0.05, 5.0), nu=2.5) + WhiteKernel(0.1, (1e-5, 1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a width at its bound is an answer too
            noisy = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(inputs, targets)
            level = noisy.kernel_.k2.noise_level
            self.noise = float(math.sqrt(level) * targets.std())
            self._process = GaussianProcessRegressor(  # the same without its noise: of the mean, not of one more trial
                noisy.kernel_.k1, alpha=level, optimizer=None, normalize_y=True
            ).fit(inputs, targets)
        self._inputs, self._targets = inputs, targets

    def inputs(self, values: Sequence[Mapping[str, JsonValue]], shares: Sequence[float]) -> Array:
        """Return the coordinates of observations, of shape (observations, inputs)."""
        rows = [[x for axis in self.axes for x in axis.place(one[axis.path])] for one in values]
        if self._partial:
            rows = [[*row, 1 + 0.25 * math.log(share)] for row, share in zip(rows, shares, strict=True)]
        return np.array(rows)

    def expected(self, values: Sequence[Mapping[str, JsonValue]]) -> tuple[Array, Array]:
        """Return mean and standard deviation of the metric's mean at full length, for each of the values."""
        mean, deviation = self._process.predict(self.inputs(values, [1.0] * len(values)), return_std=True)
        return mean, deviation

    def candidates(self) -> list[Values]:
        """Return points that the space is looked at by: a fine line of one number, else points spread evenly."""
        if len(self.axes) == 1:
            return [{self.axes[0].path: self.axes[0].value(share)} for share in np.linspace(0, 1, FINE)]
        spread = qmc.Sobol(len(self.axes), seed=0).random_base2(9)
        return [{a.path: a.value(float(x)) for a, x in zip(self.axes, row, strict=True)} for row in spread]

    def best_of_draws(self, values: Sequence[Values]) -> list[Values]:
        """Return, for each of ``DRAWS`` samples of the process, which of the values is best in it."""
        inputs = self.inputs(values, [1.0] * len(values))
        drawn = self._process.sample_y(inputs, DRAWS, random_state=0)
        return [values[int(index)] for index in drawn.argmax(axis=0)]

    def sensitivity(self) -> dict[str, float]:
        """Return the share of each field in what the process explains."""
        from sklearn.inspection import permutation_importance

        raw = permutation_importance(self._process, self._inputs, self._targets, n_repeats=10, random_state=0)
        shares: dict[str, float] = {}
        column = 0
        for axis in self.axes:
            width = 1 if axis.numeric else len(axis.domain.listed)
            shares[axis.path] = float(np.maximum(raw.importances_mean[column : column + width], 0).sum())
            column += width
        total = sum(shares.values()) or 1.0
        return {path: round(share / total, 4) for path, share in shares.items()}


def interval_of(axis: Axis, best: Sequence[Values]) -> list[Any]:
    """Return where 90 % of the best values lie: two numbers, or the choices in question."""
    if axis.numeric:
        low, high = np.quantile([axis.place(one[axis.path])[0] for one in best], [0.05, 0.95])
        return [axis.value(float(low)), axis.value(float(high))]
    counts = [(sum(one[axis.path] == choice for one in best), choice) for choice in axis.domain.listed]
    return [choice for count, choice in counts if count >= 0.05 * len(best)]
