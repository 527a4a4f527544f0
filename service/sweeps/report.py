"""The answer of a sweep: which values to take, how sure that is, and whether it is worth it. A pure function.

``report`` returns a document with

- ``metric``, ``mode``, ``margin``; ``verdict``, the answer in a sentence;
- ``trials``: ``counts`` by state, and number and reason of each that ``failed``;
- ``values``: for each searched field, what each of its values came to;
- ``configurations``: number, values, mean, spread, seeds and states of each;
- ``recommended``: values, expected metric with its 90 % interval, for each field where the best value lies; or null,
  and ``why_not`` says why;
- ``baselines``: for each label its scores, their number, mean and 90 % interval, and its seconds;
- ``advantage``: for each label the difference of the recommended values to it, its interval, the probability that it is
  more than the margin, and a sentence;
- ``collapse``: from which value of a number on trials fall apart, if some do;
- ``sensitivity``: each field's share in what explains the metric, where several are searched;
- ``cost``: seconds and gradients of a trial and of all, and their ratio to SGD;
- ``plot``: what ``plot.draw`` draws.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .smoother import Array, Axis, Smoother, interval_of
from .space import Values
from .spec import SweepSpec

LEAST = 4  # configurations with a result, below which nothing is recommended
LEVEL = 0.9  # of all intervals
LINE = 60  # points of a curve
DRAWS = 20_000
PRIOR_SEEDS = 3  # how many seeds the noise of all trials counts for beside a baseline's own


@dataclass(frozen=True)
class Measured:
    """What a trial has come to.

    Attributes:
        number, configuration, baseline, values, seed: See ``spec.Part``.
        state: ``SUCCEEDED``, ``STOPPED`` early, ``FAILED`` or ``CANCELLED``.
        reason: Why, where that is to be said.
        curve: Epoch and metric of its evaluations, in order.
        full: Whether it was trained to its end.
        seconds: That its steps took.
        gradients: Of a whole batch.
    """

    number: int
    configuration: int | None
    baseline: str | None
    values: Values
    seed: int
    state: str
    reason: str
    curve: tuple[tuple[float, float], ...]
    full: bool
    seconds: float
    gradients: int


def report(spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
    """Return the answer that these trials give; see the module."""
    trials = sorted(trials, key=lambda one: one.number)
    sign = 1.0 if spec.mode == "max" else -1.0
    own = [one for one in trials if one.configuration is not None]
    smoother = _smoother(spec, own, sign)
    best = None if isinstance(smoother, str) else _recommended(smoother, sign)
    baselines = _baselines(spec, trials, None if isinstance(smoother, str) else smoother.noise)
    document: dict[str, Any] = {
        "metric": spec.metric,
        "mode": spec.mode,
        "margin": spec.margin,
        "verdict": smoother if isinstance(smoother, str) else "",
        "trials": {
            "counts": dict(Counter(str(one.state) for one in trials)),
            "failed": [{"number": one.number, "reason": one.reason} for one in trials if one.state == "FAILED"],
        },
        "values": {path: _values(own, path, smoother, sign) for path in spec.space},
        "configurations": _configurations(own),
        "recommended": best,
        "why_not": smoother if isinstance(smoother, str) else "",
        "baselines": baselines,
        "advantage": {},
        "collapse": {},
        "sensitivity": {},
        "cost": _cost(trials),
    }
    if best is not None and isinstance(smoother, Smoother):
        document["advantage"] = {
            label: _advantage(spec, best, label, one, smoother.noise, sign)
            for label, one in baselines.items()
            if one["n"]
        }
        document["verdict"] = _in_short(spec, best, document["advantage"])
        document["collapse"] = _collapse(smoother, own, best, sign)
        if len(smoother.axes) > 1:
            document["sensitivity"] = smoother.sensitivity()
    document["plot"] = _plot(spec, own, document, smoother if isinstance(smoother, Smoother) else None, sign)
    return document


def _smoother(spec: SweepSpec, own: Sequence[Measured], sign: float) -> Smoother | str:
    """Return the process fitted to all results, or a sentence that says what is missing."""
    values, shares, scores = [], [], []
    full = max((one.curve[-1][0] for one in own if one.full and one.curve), default=0.0)
    stops = {one.curve[-1][0] for one in own if not one.full and one.curve}
    for one in own:
        for epoch, score in one.curve:
            if epoch in stops or (one.full and epoch == one.curve[-1][0]):
                values.append(one.values)
                shares.append(1.0 if one.full and epoch == one.curve[-1][0] else epoch / full if full else 1.0)
                scores.append(sign * score)
    known = {one.configuration for one in own if one.curve}
    if len(known) < LEAST or not full:
        return (
            f"{len(known)} configurations have a result, and {LEAST} are needed to recommend one, at least one of them "
            "trained to its end; extend the sweep by more trials, or retry those that failed"
        )
    keep = _thinned(shares, 600)
    axes = [Axis(path, domain) for path, domain in spec.space.items()]
    return Smoother(axes, [values[i] for i in keep], [shares[i] for i in keep], np.array(scores)[keep])


def _thinned(shares: Sequence[float], most: int) -> list[int]:
    """Return which observations to use, since the process takes the cube of their number: of partial ones not all."""
    whole = [index for index, share in enumerate(shares) if share >= 1]
    part = [index for index, share in enumerate(shares) if share < 1]
    room = max(most - len(whole), 0)
    step = max(math.ceil(len(part) / room), 1) if room else len(part) + 1
    return sorted([*whole[:most], *part[::step]])


def _recommended(smoother: Smoother, sign: float) -> dict[str, Any]:
    candidates = smoother.candidates()
    means, deviations = smoother.expected(candidates)
    at = int((means - deviations).argmax())  # where it is surely good, rather than perhaps a little better
    best = smoother.best_of_draws(candidates)
    half = stats.norm.ppf((1 + LEVEL) / 2) * deviations[at]
    return {
        "values": candidates[at],
        "mean": float(sign * means[at]),
        "deviation": float(deviations[at]),
        "interval": sorted([float(sign * (means[at] - half)), float(sign * (means[at] + half))]),
        "intervals": {axis.path: interval_of(axis, best) for axis in smoother.axes},
    }


def _baselines(spec: SweepSpec, trials: Sequence[Measured], noise: float | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for label, _ in spec.baseline_methods:
        mine = [one for one in trials if one.baseline == label and one.full and one.curve]
        scores = np.array([one.curve[-1][1] for one in mine])
        found[label] = {"n": len(mine), "mean": None, "interval": None, "seconds": None}
        if mine:
            law = _law_of_mean(scores, noise)
            found[label] |= {
                "mean": float(scores.mean()),
                "interval": None if law is None else [float(one) for one in law.interval(LEVEL)],
                "seconds": round(float(np.mean([one.seconds for one in mine])), 3),
                "scores": scores.tolist(),
            }
    return found


def _law_of_mean(scores: Array, noise: float | None) -> Any:
    """Return Student's law of the mean of some seeds, or None where nothing is known of their spread.

    What all trials tell of the noise counts for ``PRIOR_SEEDS`` seeds more.
    """
    own = len(scores) - 1
    degrees = own + (PRIOR_SEEDS if noise else 0)
    if degrees <= 0:
        return None
    squares = float(((scores - scores.mean()) ** 2).sum()) + (PRIOR_SEEDS * noise**2 if noise else 0.0)
    return stats.t(degrees, scores.mean(), max(math.sqrt(squares / degrees / len(scores)), 1e-12))


def _advantage(
    spec: SweepSpec, best: Mapping[str, Any], label: str, baseline: Mapping[str, Any], noise: float, sign: float
) -> dict[str, Any]:
    stream = np.random.default_rng(0)
    ours = stream.normal(best["mean"], best["deviation"], DRAWS)
    law = _law_of_mean(np.array(baseline["scores"]), noise)
    theirs = law.rvs(DRAWS, random_state=stream) if law is not None else np.full(DRAWS, baseline["mean"])
    ahead = sign * (ours - theirs)
    low, high = np.quantile(ahead, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    probability, difference = float((ahead > spec.margin).mean()), float(sign * (best["mean"] - baseline["mean"]))
    return {
        "difference": difference,
        "interval": [float(low), float(high)],
        "probability": probability,
        "verdict": _verdict(spec, best, label, difference, (low, high), probability),
    }


def _in_short(spec: SweepSpec, best: Mapping[str, Any], advantage: Mapping[str, Any]) -> str:
    """Return what is to be known first: whether SGD is beaten, else any other baseline."""
    first = advantage.get("sgd") or next(iter(advantage.values()), None)
    if first is not None:
        return str(first["verdict"])
    return (
        f"{spec.metric} {best['mean']:.4g} is expected of the recommended values; there is no baseline to compare with"
    )


def _values(own: Sequence[Measured], path: str, smoother: Smoother | str, sign: float) -> list[dict[str, Any]]:
    """Return what each value of a field came to, over all trials that were trained to their end."""
    groups: dict[str, list[Measured]] = {}
    for one in own:
        if one.full and one.curve:
            groups.setdefault(json.dumps(one.values.get(path)), []).append(one)
    rows = []
    for key, mine in groups.items():
        scores = np.array([one.curve[-1][1] for one in mine])
        law = _law_of_mean(scores, None if isinstance(smoother, str) else smoother.noise)
        rows.append(
            {
                "value": json.loads(key),
                "n": len(mine),
                "mean": float(scores.mean()),
                "interval": None if law is None else [float(end) for end in law.interval(LEVEL)],
                "collapsed": 0 if isinstance(smoother, str) else int((sign * scores < smoother.floor).sum()),
            }
        )
    return sorted(rows, key=lambda row: (str(type(row["value"])), row["value"] if _ordered(row["value"]) else 0))


def _ordered(value: object) -> bool:
    return isinstance(value, int | float | str)


def _verdict(
    spec: SweepSpec,
    best: Mapping[str, Any],
    label: str,
    difference: float,
    interval: tuple[float, float],
    probability: float,
) -> str:
    name = str(spec.example.method.name)
    where = ", ".join(f"{path} {_short(value)}" for path, value in best["values"].items())
    figures = (
        f"{difference:+.4g} in {spec.metric} ({interval[0]:+.4g} to {interval[1]:+.4g}); the probability of more than "
        f"{spec.margin:g} is {probability:.3f}"
    )
    if probability >= 0.95:
        return f"{name} with {where} beats {label} here: {figures}. It is worth it."
    if probability <= 0.05:
        return f"{name} with {where} does not beat {label} here by more than the margin: {figures}."
    return f"it is not shown that {name} with {where} beats {label} here: {figures}. More seeds would tell."


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _configurations(own: Sequence[Measured]) -> list[dict[str, Any]]:
    rows = []
    for number in sorted({one.configuration for one in own if one.configuration is not None}):
        mine = [one for one in own if one.configuration == number]
        scores = [one.curve[-1][1] for one in mine if one.full and one.curve]
        rows.append(
            {
                "configuration": number,
                "values": mine[0].values,
                "n": len(scores),
                "mean": float(np.mean(scores)) if scores else None,
                "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                "states": dict(Counter(str(one.state) for one in mine)),
            }
        )
    return rows


def _collapse(smoother: Smoother, own: Sequence[Measured], best: Mapping[str, Any], sign: float) -> dict[str, Any]:
    """Return, for each number, the smallest value above the recommended one from which on trials fall apart."""
    found: dict[str, Any] = {}
    ended = [one for one in own if one.full and one.curve]
    for axis in smoother.axes:
        if not axis.numeric:
            continue
        at = axis.place(best["values"][axis.path])
        beyond = [one for one in ended if axis.place(one.values[axis.path]) > at]
        fell = [one for one in beyond if sign * one.curve[-1][1] < smoother.floor]
        if fell:
            first = min(fell, key=lambda one: axis.place(one.values[axis.path]))
            start = first.values[axis.path]
            there = [one for one in beyond if axis.place(one.values[axis.path]) >= axis.place(start)]
            found[axis.path] = {"from": start, "share": len(fell) / len(there), "below": sign * smoother.floor}
    said = [
        f"from {path} {one['from']:.3g} on, {one['share']:.0%} of the trials fall apart" for path, one in found.items()
    ]
    return found | ({"sentence": "; ".join(said)} if said else {})


def _cost(trials: Sequence[Measured]) -> dict[str, Any]:
    """Return seconds and gradients of trials that were trained to their end, and of all together."""
    groups: dict[str, list[Measured]] = {}
    for one in trials:
        if one.full:
            groups.setdefault(one.baseline or "configurations", []).append(one)
    each = {name: float(np.mean([one.seconds for one in mine])) for name, mine in groups.items()}
    sgd = each.get("sgd")
    return {
        "trial": {
            name: {
                "seconds": round(seconds, 3),
                "gradients": round(float(np.mean([one.gradients for one in groups[name]]))),
                "to_sgd": round(seconds / sgd, 3) if sgd else None,
            }
            for name, seconds in each.items()
        },
        "seconds": round(sum(one.seconds for one in trials), 3),
        "gradients": sum(one.gradients for one in trials),
    }


def _plot(
    spec: SweepSpec, own: Sequence[Measured], document: Mapping[str, Any], smoother: Smoother | None, sign: float
) -> dict[str, Any]:
    fields = []
    for path, domain in spec.space.items():
        axis = Axis(path, domain)
        points = [
            {"x": one.values.get(path), "y": one.curve[-1][1], "seed": one.seed, "full": one.full}
            for one in own
            if one.curve
        ]
        field: dict[str, Any] = {"path": path, "log": axis.log, "numeric": axis.numeric, "points": points}
        if smoother is not None and axis.numeric:
            field["curve"] = _curve(smoother, axis, document["recommended"]["values"], sign)
        fields.append(field)
    names = ("metric", "recommended", "baselines")
    return {"name": spec.name, "fields": fields, **{name: document[name] for name in names}}


def _curve(smoother: Smoother, axis: Axis, others: Values, sign: float) -> dict[str, list[Any]]:
    line = list(dict.fromkeys(axis.value(float(share)) for share in np.linspace(0, 1, LINE)))
    means, deviations = smoother.expected([{**others, axis.path: value} for value in line])
    half = stats.norm.ppf((1 + LEVEL) / 2) * deviations
    low, high = sign * (means - half), sign * (means + half)
    return {
        "x": line,
        "mean": (sign * means).tolist(),
        "low": np.minimum(low, high).tolist(),
        "high": np.maximum(low, high).tolist(),
    }
