"""How sure a difference is, with the few seeds that there are: Student's distribution rather than the normal one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import t as student

from .results import Array

LEVEL = 0.95  # of every interval
_BORROWED = 2.0  # most degrees of freedom that a group takes over from the others' noise


@dataclass(frozen=True)
class Estimate:
    """A mean that is known up to ``error`` times Student's t with ``freedom`` degrees of freedom.

    Attributes:
        mean: In goodness.
        error: Its standard error.
        freedom: 1 at least.
    """

    mean: float
    error: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """What holds the mean with a probability of 95 %."""
        half = self.error * _quantile(self.freedom)
        return self.mean - half, self.mean + half

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference, by the approximation of Welch and Satterthwaite."""
        squares = self.error**2, other.error**2
        parts = squares[0] ** 2 / self.freedom + squares[1] ** 2 / other.freedom
        freedom = sum(squares) ** 2 / parts if parts > 0 else min(self.freedom, other.freedom)
        return Estimate(self.mean - other.mean, math.sqrt(sum(squares)), freedom)

    def above(self, threshold: float) -> float:
        """Return the probability of more than ``threshold``."""
        if self.error == 0:
            return float(self.mean > threshold)
        return float(student.sf((threshold - self.mean) / self.error, self.freedom))


@lru_cache
def _quantile(freedom: float) -> float:
    return float(student.ppf((1 + LEVEL) / 2, freedom))  # 0.3 ms, and a report has thousands of intervals


def estimate_of(results: Sequence[float] | Array, noise: float | None, freedom: float) -> Estimate | None:
    """Return the mean of results of the same kind.

    Their spread is drawn towards that of all configurations' seeds, as if two more of theirs had been seen, so that two
    seeds which happen to agree are not taken as certain. A single one has that spread, and as few degrees of freedom.

    Args:
        results: One at least.
        noise: Standard deviation of one result, from other groups; None if it isn't known.
        freedom: Degrees of freedom of ``noise``.

    Returns:
        None if nothing tells of the spread.
    """
    values = np.asarray(results, dtype=float)
    borrowed = 0.0 if noise is None else min(max(freedom, 1.0), _BORROWED)
    own = len(values) - 1.0
    if own + borrowed == 0:
        return None
    variance = (float(((values - values.mean()) ** 2).sum()) + borrowed * (noise or 0.0) ** 2) / (own + borrowed)
    return Estimate(float(values.mean()), math.sqrt(variance / len(values)), own + borrowed)
