"""The parts of a report that are counted rather than smoothed: configurations, values, baselines, collapse and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import JsonValue

from .axes import Axis
from .compare import Estimate, estimate_of
from .optimum import Group, Optimum
from .results import Array, Measured, Yardstick, by_configuration
from .space import key_of

Row = dict[str, Any]  # an object of a report's JSON
SECONDS = "worker-seconds"  # of all workers of a run together
_CLEAR = 2.0  # in log likelihood: how much a split must explain to be told
_MORE = 3.0  # times the share before it: less than that may be another field's doing


def told(sign: int, estimate: Estimate | None, mean: float) -> Row:
    """Return mean and interval in units of the metric."""
    ends = None if estimate is None else sorted(sign * end for end in estimate.interval)
    return {"mean": number(sign * mean), "interval": ends}


def number(value: float) -> float | None:
    """Return a number as JSON has it: null for what is not finite."""
    return float(value) if math.isfinite(value) else None


def _group(trials: Sequence[Measured], usual: Yardstick | None, noise: float | None, freedom: float) -> Row:
    """Return what full trials of one kind gave; the number of early and failed ones only, where none is full."""
    full = [trial for trial in trials if trial.usable and trial.final]
    state = "full" if full else "early" if any(trial.usable for trial in trials) else "failed"
    if not full or usual is None:
        return {"mean": None, "interval": None, "n": 0, "collapsed": 0, "state": state}
    good = usual.good(full)
    estimate = estimate_of(good, noise, freedom)
    collapsed = int((good <= usual.floor).sum())
    return {**told(usual.sign, estimate, float(good.mean())), "n": len(full), "collapsed": collapsed, "state": state}


class Tables:
    """Tables of one sweep's trials, with the noise that their intervals share.

    Args:
        group: The trials.
        optimum: What was found on them, if anything.
        recommended: Trials that tell what the recommended configuration costs.
    """

    def __init__(self, group: Group, optimum: Optimum | None, recommended: Sequence[Measured] = ()) -> None:
        self._group, self._usual, self._recommended = group, group.usual, recommended
        self._noise = optimum.surface.noise if optimum else group.usual.noise if group.usual else None
        self._freedom = optimum.surface.freedom if optimum else group.usual.freedom if group.usual else 0.0

    def of(self, trials: Sequence[Measured]) -> Row:
        """Return mean, interval and numbers of these trials."""
        return _group(trials, self._usual, self._noise, self._freedom)

    def configurations(self) -> list[Row]:
        """Return one row for each configuration, by number."""
        groups = by_configuration(self._group.trials)
        return [
            {
                "configuration": index,
                "values": _common(groups[index]),
                **self.of(groups[index]),
                "results": [number(trial.result) for trial in groups[index] if trial.usable and trial.final],
            }
            for index in sorted(groups)
        ]

    def values(self, axes: Iterable[Axis]) -> dict[str, list[Row]]:
        """Return one row for each tried value of each field, in their order."""
        trials = [trial for trial in self._group.trials if trial.baseline is None]
        found: dict[str, list[Row]] = {}
        for axis in axes:
            groups = split_by(axis, trials)
            found[axis.path] = [{"value": value, **self.of(group)} for value, group in groups]
        return found

    def baselines(self, methods: Mapping[str, Mapping[str, JsonValue]]) -> dict[str, Row]:
        """Return one row for each baseline, by label, with the settings of its method, which are given by label."""
        return {
            label: {
                "method": methods.get(label, {}),
                **self.of(trials),
                **cost(trials),
                "results": [number(trial.result) for trial in trials],
            }
            for label, trials in self._group.baselines.items()
        }

    def collapse(self, axes: Iterable[Axis]) -> dict[str, Row]:
        """Return, for each field of numbers, from or until which value full runs fall apart; nothing if none did."""
        full = [trial for trial in self._group.space if trial.final]
        if self._usual is None or not full:
            return {}
        fell = self._usual.good(full) <= self._usual.floor
        fallen = {trial.number: bool(down) for trial, down in zip(full, fell, strict=True)}
        return {axis.path: _collapse_along(axis, full, fallen) for axis in axes if fell.any() and not axis.choice}

    def cost(self) -> Row:
        """Return what one run of each kind costs, and what all did."""
        sgd = cost(self._group.baselines.get("sgd", []))
        kinds = {"recommended": self._recommended} if self._recommended else {}
        kinds |= self._group.baselines
        rows = {name: cost(trials) for name, trials in kinds.items()}
        return {
            "unit": SECONDS,
            "trial": {
                name: row | {"to_sgd": _ratio(row, sgd, "seconds"), "gradients_to_sgd": _ratio(row, sgd, "gradients")}
                for name, row in rows.items()
            },
            "seconds": float(sum(trial.seconds for trial in self._group.trials)),
            "gradients": sum(trial.gradients for trial in self._group.trials),
        }


def _ratio(row: Row, other: Row, name: str) -> float | None:
    return row[name] / other[name] if row[name] is not None and other[name] else None


def _common(trials: Sequence[Measured]) -> Row:
    """Return the values that all of these have: none, where population based training has changed them."""
    return dict(trials[0].values) if all(trial.values == trials[0].values for trial in trials) else {}


def split_by(axis: Axis, trials: Iterable[Measured]) -> list[tuple[JsonValue, list[Measured]]]:
    """Return the trials of each value, in the order of values."""
    groups: dict[str, tuple[JsonValue, list[Measured]]] = {}
    for trial in trials:
        value = trial.values[axis.path]
        groups.setdefault(key_of(value), (value, []))[1].append(trial)
    return sorted(groups.values(), key=lambda pair: axis.place(pair[0]))


def cost(trials: Sequence[Measured]) -> Row:
    """Return mean worker-seconds and gradients of one trial."""
    if not trials:
        return {"seconds": None, "gradients": None}
    return {
        "seconds": float(np.mean([trial.seconds for trial in trials])),
        "gradients": float(np.mean([trial.gradients for trial in trials])),
    }


def _collapse_along(axis: Axis, trials: Sequence[Measured], fallen: Mapping[int, bool]) -> Row:
    groups = [(value, [fallen[trial.number] for trial in some]) for value, some in split_by(axis, trials)]
    counts = np.array([[sum(some), len(some)] for _, some in groups], dtype=float)
    upwards, downwards = _onset(counts), _onset(counts[::-1])
    start = end = share = None
    if upwards and (not downwards or upwards[1] >= downwards[1]):
        start, share = groups[upwards[0]][0], _share(counts[upwards[0] :])
    elif downwards:
        end, share = groups[len(groups) - 1 - downwards[0]][0], _share(counts[: len(groups) - downwards[0]])
    rows = [
        {"value": value, "share": _share(counts[[row]]), "n": len(some)} for row, (value, some) in enumerate(groups)
    ]
    return {"from": start, "until": end, "share": share, "values": rows}


def _share(counts: Array) -> float:
    fallen, total = counts.sum(0)
    return float(fallen / total)


def _onset(counts: Array) -> tuple[int, float] | None:
    """Return from which row on trials fall apart more often, and what that explains; None if nothing shows it.

    The split in two shares that is likeliest, among those that begin with a row in which one fell apart.

    Args:
        counts: Fallen trials and all trials of each row, shape (rows, 2).
    """
    whole = _likelihood(counts.sum(0))
    best: tuple[int, float] | None = None
    for row in range(1, len(counts)):
        below, above = counts[:row].sum(0), counts[row:].sum(0)
        gain = _likelihood(below) + _likelihood(above) - whole
        rising = above[0] / above[1] > _MORE * below[0] / below[1]
        if counts[row, 0] and rising and gain > (best[1] if best else _CLEAR):
            best = row, gain
    return best


def _likelihood(count: Array) -> float:
    """Return the logarithm of how likely a count of (fallen, all) is with its own share."""
    fallen, total = count
    shares = np.array([fallen, total - fallen]) / total
    return float(sum(part * np.log(part) for part in shares if part > 0) * total)
