"""The answer of population based training: the best trial's schedule, of which nothing is claimed."""

from __future__ import annotations

import math

from .optimum import Group
from .results import Measured
from .tables import Row, told
from .verdicts import settings

NOTE = (
    "population based training copies trials and changes their values on the way: their results are not independent, "
    "and none of them is its last values' alone. So there is no interval, no probability and no comparison; the values "
    "of the best trial are in schedule"
)
PROMOTED = (
    "promoted jobs are trained with its last values from the first epoch to the last, which no trial was; compare them "
    "with baselines of the same seeds"
)


def best_of(group: Group) -> Measured:
    """Return the trial with the best result; there must be one."""
    assert group.usual is not None, "ask lacking first"
    sign = group.usual.sign
    return max(
        (one for one in group.space if math.isfinite(one.result) and one.full), key=lambda one: sign * one.result
    )


def schedule_of(trial: Measured) -> list[Row]:
    """Return what a trial was trained with, from which epoch on."""
    changes = trial.changes or ((0.0, trial.values),)
    return [{"epoch": epoch, "values": dict(values)} for epoch, values in changes]


def recommended_of(best: Measured, metric: str) -> Row:
    """Return the last values of the best trial, as a report recommends them."""
    sentence = f"trial {best.number} is the best of the population, with {metric} {best.result:.4g} at its end; "
    sentence += f"its last values are {settings(best.values)}"
    return {
        "values": dict(best.values),
        **told(1, None, best.result),
        "intervals": {},
        "collapse": None,
        "sentence": sentence,
    }
