"""The answer of a sweep: which values to take, how sure that is, and whether it is worth it. A pure function.

``report`` returns a document of JSON. Results, means and intervals (95 %) are in units of the metric, where a result
worse than ``floor`` counts as the floor; what can't be told is null.

    metric, mode, margin   as asked
    verdict         the sentence to read first
    trials          {counts: {STATE: n}, full, early, failed: [{number, configuration, baseline, seed, reason}]};
                    ``full`` were trained to their end, ``early`` were stopped before
    noise, floor    standard deviation of one configuration's seeds; a run worse than the floor has fallen apart
    configurations  [{configuration, values, mean, interval, n, collapsed, state: "full" | "early" | "failed", results}]
    values          {FIELD: [{value, mean, interval, n, collapsed, state}]}    over all trials that had this value
    recommended     {values, mean, interval, intervals: {FIELD: [low, high] | [[choice, probability], ...]}, collapse,
                    sentence}; ``intervals`` are of where the optimum lies, ``collapse`` the share to expect; or null
    why_not         why nothing is recommended, and what is needed; else ""
    curve           {FIELD: {x, mean, low, high, log, choice}}    at the recommended values of the other fields
    baselines       {LABEL: {mean, interval, n, collapsed, state, results, seconds, gradients}}
    advantage       {LABEL: {difference, interval, probability, not_worse, worth_it, verdict}}    of what is
                    recommended; probability of more than the margin, not_worse of no less than -margin
    cost            {trial: {"recommended" | LABEL: {seconds, gradients, to_sgd, gradients_to_sgd}}, seconds,
                    gradients}
    sensitivity     {FIELD: its share of the explained variation}, where several are searched
    collapse        {FIELD: {from, until, share, values: [{value, share, n}]}, "sentence": ...}, where a run fell
                    apart; ``share`` in that range
    stopping        [{epoch, agreement, n}]    Kendall's tau of the order there and the order at the end
    notes           sentences on what else a reader should know
    plot            what ``plot.draw`` draws
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .axes import Axis, axes_of
from .optimum import Group, Optimum, advantages, grouped, lacking, line, optimum_of, where
from .results import Measured, agreement
from .smoother import shares
from .spec import SweepSpec
from .tables import Part, Tables, number, told
from .verdicts import fallen_apart, method_of, settings, short, verdict

_RELATED = 0.3  # Kendall's tau below which an early order says little


def report(spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
    """Return the report of a sweep as JSON; the same trials give the same report."""
    group, axes = grouped(spec, trials), axes_of(spec.space)
    why_not = lacking(group)
    optimum = None if why_not else optimum_of(spec, group)
    tables, usual = Tables(group, optimum), group.usual
    found: Part = {
        "metric": spec.metric,
        "mode": spec.mode,
        "margin": spec.margin,
        "verdict": "",
        "trials": _trials(group),
        "noise": optimum.surface.noise if optimum else usual.noise if usual else None,
        "floor": number(usual.sign * usual.floor) if usual else None,
        "configurations": tables.configurations(),
        "values": tables.values(axes),
        "recommended": _recommended(spec, optimum) if optimum else None,
        "why_not": why_not or "",
        "curve": _curves(optimum) if optimum else {},
        "baselines": tables.baselines(),
        "advantage": _advantage(spec, optimum, group) if optimum else {},
        "cost": tables.cost(),
        "sensitivity": _sensitivity(optimum) if optimum else {},
        "collapse": tables.collapse(axes),
        "stopping": agreement([trial for trial in group.trials if trial.usable]),
    }
    found["verdict"] = _first_sentence(found)
    found["notes"] = _notes(found, optimum, group)
    found["plot"] = _plot(spec, found, axes, group)
    if sentence := fallen_apart(found):
        found["collapse"]["sentence"] = sentence
    return found


def _trials(group: Group) -> Part:
    names = ("number", "configuration", "baseline", "seed", "reason")
    failed = [trial for trial in group.trials if trial.state == "FAILED"]
    return {
        "counts": dict(Counter(str(trial.state) for trial in group.trials)),
        "full": sum(trial.usable and trial.full for trial in group.trials),
        "early": sum(trial.usable and not trial.full for trial in group.trials),
        "failed": [{name: getattr(trial, name) for name in names} for trial in failed],
    }


def _recommended(spec: SweepSpec, optimum: Optimum) -> Part:
    intervals = {axis.path: where(optimum, index) for index, axis in enumerate(optimum.axes)}
    ranges = [
        f"{axis.path.rpartition('.')[2]} {short(intervals[axis.path][0])} to {short(intervals[axis.path][1])}"
        for axis in optimum.axes
        if not axis.choice
    ]
    sentence = f"use {settings(optimum.values) or method_of(spec.base, optimum.values)}"
    sentence += f"; the optimum lies in {', '.join(ranges)}" if ranges else ""
    return {
        "values": optimum.values,
        **told(optimum.usual.sign, optimum.estimate, optimum.estimate.mean),
        "intervals": intervals,
        "collapse": optimum.collapse,
        "sentence": sentence,
    }


def _curves(optimum: Optimum) -> dict[str, Part]:
    found = {}
    for index, axis in enumerate(optimum.axes):
        places, draws = line(optimum, index)
        low, high = np.quantile(optimum.usual.sign * draws, [0.025, 0.975], axis=0).tolist()
        found[axis.path] = {
            "x": [axis.value(float(place)) for place in places[:, index]],
            "mean": (optimum.usual.sign * draws.mean(0)).tolist(),
            "low": low,
            "high": high,
            "log": axis.log,
            "choice": axis.choice,
        }
    return found


def _advantage(spec: SweepSpec, optimum: Optimum, group: Group) -> dict[str, Part]:
    what = method_of(spec.base, optimum.values)
    shown = settings(optimum.values)
    return {
        label: verdict(
            f"{what} at {shown}" if shown else what,
            label,
            lead,
            metric=spec.metric,
            margin=spec.margin,
            seeds=len(group.baselines[label]),
            sign=optimum.usual.sign,
        )
        for label, lead in advantages(optimum, group.baselines).items()
    }


def _sensitivity(optimum: Optimum) -> dict[str, float]:
    found = shares(optimum.surface) if len(optimum.axes) > 1 else None
    return {axis.path: share for axis, share in zip(optimum.axes, found, strict=True)} if found else {}


def _first_sentence(found: Part) -> str:
    """Return what compares with SGD, or with the first baseline there is, or what is recommended, or why nothing."""
    if found["why_not"]:
        return f"nothing can be recommended: {found['why_not']}"
    compared = found["advantage"]
    if compared:
        return str(compared.get("sgd", next(iter(compared.values())))["verdict"])
    return f"{found['recommended']['sentence']}; there is no baseline to compare it with"


def _notes(found: Part, optimum: Optimum | None, group: Group) -> list[str]:
    notes = [f"{label} has no result" for label, trials in group.baselines.items() if not trials]
    notes += _edges(optimum) if optimum else []
    misled = [row for row in found["stopping"] if row["agreement"] < _RELATED]
    if misled:
        epoch, tau, n = (misled[-1][name] for name in ("epoch", "agreement", "n"))
        notes.append(
            f"the order at epoch {epoch:g} says little of the order at the end (Kendall's tau {tau:.2f} in {n} trials "
            "that went on), so the best may be among those stopped there; let trials run longer before that"
        )
    return notes


def _edges(optimum: Optimum) -> list[str]:
    """Return a note for each field of numbers whose best lies at an end of what was tried."""
    notes = []
    for axis, tried, best in zip(optimum.axes, optimum.surface.tried.T, optimum.best, strict=True):
        end = "low" if best - tried.min() < 0.01 else "high" if tried.max() - best < 0.01 else None
        if end and not axis.choice and not axis.allowed:
            value = short(axis.value(float(best)))
            notes.append(f"the best {axis.path} lies at the {end} end of what was tried, {value}; search beyond it")
    return notes


def _plot(spec: SweepSpec, found: Part, axes: Sequence[Axis], group: Group) -> Part:
    floor, recommended = found["floor"], found["recommended"]
    sign = group.usual.sign if group.usual else 1
    panels = [
        {
            "field": axis.path,
            "log": axis.log,
            "choices": [short(value) for value in axis.allowed] if axis.choice else None,
            "points": [_point(axis, trial, sign, floor) for trial in group.space],
            "curve": found["curve"].get(axis.path),
            "recommended": recommended["values"][axis.path] if recommended else None,
            "interval": recommended["intervals"][axis.path] if recommended and not axis.choice else None,
            "share": found["sensitivity"].get(axis.path),
        }
        for axis in axes
    ]
    return {
        "name": spec.name,
        "metric": spec.metric,
        "mode": spec.mode,
        "floor": floor,
        "title": found["verdict"],
        "panels": panels,
        "baselines": [
            {"label": label, **{name: part[name] for name in ("mean", "interval")}}
            for label, part in found["baselines"].items()
            if part["mean"] is not None
        ],
    }


def _point(axis: Axis, trial: Measured, sign: int, floor: float | None) -> Part:
    result = number(trial.result)
    collapsed = result is None or (floor is not None and sign * result < sign * floor)
    value = trial.values[axis.path]
    at = axis.allowed.index(value) if axis.choice else value
    return {"x": at, "y": result, "seed": trial.seed, "full": trial.full, "collapsed": bool(collapsed)}
