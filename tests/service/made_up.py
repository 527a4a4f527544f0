"""Trials of sweeps: made up, and those of digits as they were measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from sampa.service.sweeps.results import Measured

DIGITS = Path(__file__).parents[1] / "data" / "digits_sweep.json"
GRID = [float(f"{0.01 * 50 ** (i / 15):.4g}") for i in range(16)]


def trial(number, score, *, values=None, baseline=None, configuration=None, seed=0, seconds=7.0, **changes):
    """Return a full trial, whose values are of configuration ``number`` if nothing else is said."""
    own = None if baseline else number if configuration is None else configuration
    curve = () if score is None else ((30.0, score),)
    made = Measured(
        number, own, baseline, values or {}, seed, "SUCCEEDED", "", curve, full=True, seconds=seconds, gradients=960
    )
    return replace(made, **changes)


def baselines(stream, seeds, **means):
    """Return trials of each baseline around its mean."""
    return [
        trial(i * seeds + seed, mean + stream.normal(0, 0.005), baseline=label, seed=seed, seconds=4.0)
        for i, (label, mean) in enumerate(means.items())
        for seed in range(seeds)
    ]


def digits_like(seeds=3, *, seed=0, sgd=0.931, rise=0.0065, fall=0.7):
    """Return a sweep over rho: from 0.935 at 0.01 to 0.966 at 0.09; above 0.2 a share of the trials falls apart."""
    stream = np.random.default_rng(seed)
    made = baselines(stream, seeds, sgd=sgd, sam=0.966)
    for index, rho in enumerate(GRID):
        for number in range(seeds):
            score = 0.966 - rise * math.log(rho / 0.09) ** 2 + stream.normal(0, 0.004)
            if rho > 0.2 and stream.random() < fall:
                score = stream.uniform(0.1, 0.5)
            values = {"method.rho": rho}
            made.append(trial(len(made), score, values=values, configuration=index, seed=number))
    return made


def planted(seed, *, noise=0.1, trials=40, sign=1):
    """Return trials of one seed around a parabola over log rho, and its top, clustered as by a search.

    Ten values are drawn evenly, each further one near one of the best tenth so far or, for one in seven, farther away.
    """
    stream = np.random.default_rng(seed)
    best = 0.01 * 50 ** stream.uniform(0.2, 0.85)
    places, scores = list(stream.uniform(0, 1, 10)), []
    for index in range(trials):
        if index >= 10:
            good = np.argsort(scores)[::-1][: max(1, math.ceil(0.1 * len(scores)))]
            width = 0.08 if stream.random() < 0.85 else 0.4
            places.append(float(np.clip(places[stream.choice(good)] + stream.normal(0, width), 0, 1)))
        scores.append(-(math.log(0.01 * 50 ** places[index] / best) ** 2) + stream.normal(0, noise))
    values = [{"method.rho": 0.01 * 50**place} for place in places]
    return [trial(i, sign * score, values=values[i]) for i, score in enumerate(scores)], best


def two_fields(count=60, seed=0):
    """Return trials of rho and of an optimizer that costs two points."""
    stream = np.random.default_rng(seed)
    for number in range(count):
        rho, name = float(0.01 * 50 ** stream.random()), ("sgd", "adamw")[number % 2]
        score = 0.966 - 0.0065 * math.log(rho / 0.09) ** 2 - 0.02 * (name == "adamw") + stream.normal(0, 0.004)
        yield trial(number, score, values={"method.rho": rho, "optimizer.name": name})


def digits():
    """Return digits' own 54 trials: 40 % label noise, lambda 0, 16 values of rho, three seeds; SGD, and SAM at 0.1."""
    made = []
    for number, row in enumerate(json.loads(DIGITS.read_text())):
        values = {} if row["baseline"] else {"method.rho": row["rho"]}
        one = trial(
            number,
            0.0,
            values=values,
            baseline=row["baseline"],
            configuration=(number - 6) // 3,
            seed=row["seed"],
            seconds=row["seconds"],
            gradients=row["gradients"],
            curve=tuple(map(tuple, row["curve"])),
        )
        made.append(one)
    return made


def flat(configurations, seeds, seed, *, mean=0.93, spread=0.008):
    """Return a sweep in which nothing matters: all of it is as good as SGD, and early results are the late ones."""
    stream = np.random.default_rng(seed)
    made = [trial(i, mean + stream.normal(0, spread), baseline="sgd", seed=i) for i in range(3)]
    for index in range(configurations):
        values = {"method.rho": 0.01 * 50 ** (index / (configurations - 1))}
        for number in range(seeds):
            score = mean + stream.normal(0, spread)
            curve = tuple((float(epoch), score) for epoch in (3, 9, 27, 30))
            made.append(trial(len(made), 0.0, values=values, configuration=index, seed=number, curve=curve))
    return made


def halved(trials, *, grace, order=0, reduction=3, together=True):
    """Return what successive halving, as configurations arrive in some order, leaves of them.

    The lower ones end at a rung: by the mean of their seeds, or, if not ``together``, each trial for itself.
    """
    rungs = [grace * reduction**i for i in range(5) if grace * reduction**i < 30]
    seen, groups = {rung: [] for rung in rungs}, {}
    for one in trials:
        own = one.number if one.baseline or not together else f"configuration {one.configuration}"
        groups.setdefault(own, []).append(one)
    groups = [*groups.values()]
    arriving = [groups[index] for index in np.random.default_rng(order).permutation(len(groups))]
    return [one for group in arriving for one in _ended(group, seen, reduction)]


def _ended(group, seen, reduction):
    for rung, scores in seen.items() if group[0].baseline is None else ():
        scores.append(float(np.mean([one.at(rung) for one in group])))
        if scores[-1] < np.quantile(scores, 1 - 1 / reduction):
            curves = [tuple(point for point in one.curve if point[0] <= rung) for one in group]
            return [
                replace(one, curve=curve, full=False, state="STOPPED") for one, curve in zip(group, curves, strict=True)
            ]
    return group
