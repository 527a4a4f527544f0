"""The answer of a sweep: which values to take, how sure that is, and whether it is worth it. A pure function.

``report`` returns a document of JSON. Results, means and intervals (95 %) are in units of the metric, where a result
worse than ``floor`` counts as the floor; what can't be told is null.

    metric, mode, margin   as asked
    verdict         the sentence to read first
    trials          {counts: {STATE: n}, full, early, failed: [{number, configuration, baseline, seed, reason}]};
                    ``full`` were trained to their end or fell apart for good, ``early`` were stopped before
    noise, floor    standard deviation of one configuration's seeds; a run worse than the floor has fallen apart
    configurations  [{configuration, values, mean, interval, n, collapsed, state: "full" | "early" | "failed", results}]
    values          {FIELD: [{value, mean, interval, n, collapsed, state}]}    over all trials that had this value
    recommended     {values, mean, interval, intervals: {FIELD: [low, high] | [[choice, probability], ...]}, collapse,
                    sentence}; ``intervals`` are of where the optimum lies, ``collapse`` the share to expect; or null
    why_not         why nothing is recommended, and what is needed; else ""
    schedule        [{epoch, values}]    of population based training alone: what the best trial was trained with, from
                    which epoch on; then ``recommended`` are its last values, without intervals, and curve, advantage,
                    sensitivity and values are empty
    curve           {FIELD: {x, mean, low, high, log, choice}}    at the recommended values of the other fields
    baselines       {LABEL: {method, mean, interval, n, collapsed, state, results, seconds, gradients}}; ``method`` are
                    all its settings
    advantage       {LABEL: {difference, interval, probability, not_worse, worth_it, verdict}}    of what is
                    recommended; probability of more than the margin, not_worse of no less than -margin
    cost            {unit, trial: {"recommended" | LABEL: {seconds, gradients, to_sgd, gradients_to_sgd}}, seconds,
                    gradients}; seconds, here and of baselines, are worker-seconds: of all workers of a run together
    sensitivity     {FIELD: its share of the explained variation}, where several are searched
    collapse        {FIELD: {from, until, share, values: [{value, share, n}]}, "sentence": ...}, where a run fell
                    apart; ``share`` in that range
    stopping        [{epoch, agreement, n}]    Kendall's tau of the order there and the order at the end
    notes           sentences on what else a reader should know
    plot            what ``plot.draw`` draws
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import JsonValue

from .axes import Axis, axes_of
from .optimum import Group, Optimum, advantages, grouped, lacking, line, optimum_of, where
from .population import NOTE, PROMOTED, best_of, recommended_of, schedule_of
from .results import Measured, agreement
from .schedulers import Pbt
from .smoother import shares
from .spec import SweepSpec
from .tables import Row, Tables, number, told
from .verdicts import at, fallen_apart, method_of, name_of, settings, short, verdict

_RELATED = 0.3  # Kendall's tau below which an early order says little


def report(spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
    """Return the report of a sweep as JSON; the same trials give the same report."""
    group, axes = grouped(spec, trials), axes_of(spec.space)
    population = isinstance(spec.scheduler, Pbt)
    why_not = lacking(group)
    optimum = None if why_not or population else optimum_of(spec, group)
    best = best_of(group) if population and not why_not else None
    tables = Tables(group, optimum, optimum.nearest() if optimum else [best] if best else [])
    usual, methods = group.usual, methods_of(spec)
    found: Row = _empty(spec, group, why_not or "") | {
        "noise": optimum.surface.noise if optimum else usual.noise if usual else None,
        "floor": number(usual.sign * usual.floor) if usual else None,
        "configurations": tables.configurations(),
        "values": {} if population else tables.values(axes),
        "baselines": tables.baselines(methods),
        "cost": tables.cost(),
        "collapse": {} if population else tables.collapse(axes),
        "stopping": agreement([trial for trial in group.trials if trial.usable]),
    }
    if optimum:
        found |= _searched(spec, optimum, group, methods)
    if best:
        found |= {"recommended": recommended_of(best, spec.metric), "schedule": schedule_of(best)}
    found["verdict"] = _first_sentence(found)
    found["notes"] = _notes(spec, found, optimum, group)
    found["plot"] = _plot(spec, found, axes, group)
    if sentence := fallen_apart(found):
        found["collapse"]["sentence"] = sentence
    return found


def without(spec: SweepSpec, trials: Sequence[Measured], why_not: str) -> dict[str, Any]:
    """Return the report of trials of which none can be made: their counts, and why there is no more."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    found = _empty(spec, Group(ordered, [], {}, None), why_not)
    found["verdict"] = _first_sentence(found)
    return found | {"plot": _plot(spec, found, [], Group(ordered, [], {}, None))}


def _empty(spec: SweepSpec, group: Group, why_not: str) -> Row:
    """Return a report with nothing in it but the trials' counts."""
    return {
        "metric": spec.metric,
        "mode": spec.mode,
        "margin": spec.margin,
        "verdict": "",
        "trials": _trials(group),
        "noise": None,
        "floor": None,
        "configurations": [],
        "values": {},
        "recommended": None,
        "why_not": why_not,
        "schedule": [],
        "curve": {},
        "baselines": {},
        "advantage": {},
        "cost": Tables(Group(group.trials, [], {}, None), None).cost(),
        "sensitivity": {},
        "collapse": {},
        "stopping": [],
        "notes": [],
    }


def _searched(spec: SweepSpec, optimum: Optimum, group: Group, methods: Mapping[str, Row]) -> Row:
    """Return what is told of an optimum that was found."""
    return {
        "recommended": _recommended(spec, optimum),
        "curve": _curves(optimum),
        "advantage": _advantage(spec, optimum, group, methods),
        "sensitivity": _sensitivity(optimum),
    }


def _trials(group: Group) -> Row:
    names = ("number", "configuration", "baseline", "seed", "reason")
    failed = [trial for trial in group.trials if trial.state == "FAILED"]
    return {
        "counts": dict(Counter(str(trial.state) for trial in group.trials)),
        "full": sum(trial.usable and trial.final for trial in group.trials),
        "early": sum(trial.usable and not trial.final for trial in group.trials),
        "failed": [{name: getattr(trial, name) for name in names} for trial in failed],
    }


def _recommended(spec: SweepSpec, optimum: Optimum) -> Row:
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


def _curves(optimum: Optimum) -> dict[str, Row]:
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


def _advantage(spec: SweepSpec, optimum: Optimum, group: Group, methods: Mapping[str, Row]) -> dict[str, Row]:
    given = dict(spec.baseline_methods)
    return {
        label: verdict(
            at(method_of(spec.base, optimum.values), optimum.values),
            label,
            lead,
            shown=at(name_of(label), {"method": _told_of(methods.get(label, {}), given.get(label, {}))}),
            metric=spec.metric,
            margin=spec.margin,
            seeds=len(group.baselines[label]),
            sign=optimum.usual.sign,
        )
        for label, lead in advantages(optimum, group.baselines).items()
    }


def methods_of(spec: SweepSpec) -> dict[str, Row]:
    """Return the settings of each baseline's method by label, defaults included."""
    labels = [label for label, _ in spec.baseline_methods]
    jobs = [spec.trial(index * spec.seeds) for index in range(len(labels))]
    return {label: job.method.model_dump(mode="json", by_alias=True) for label, job in zip(labels, jobs, strict=True)}


def _told_of(method: Row, given: Mapping[str, JsonValue]) -> Row:
    """Return the settings of a baseline that a sentence names: its rho, and what was given."""
    return {name: value for name, value in method.items() if name == "rho" or name in given}


def _sensitivity(optimum: Optimum) -> dict[str, float]:
    found = shares(optimum.surface) if len(optimum.axes) > 1 else None
    return {axis.path: share for axis, share in zip(optimum.axes, found, strict=True)} if found else {}


def _first_sentence(found: Row) -> str:
    """Return what compares with SGD, or with the first baseline there is, or what is recommended, or why nothing."""
    if found["why_not"]:
        return f"nothing can be recommended: {found['why_not']}"
    if found["schedule"]:
        return f"{found['recommended']['sentence']}; whether that pays is not told by population based training"
    compared = found["advantage"]
    if compared:
        return str(compared.get("sgd", next(iter(compared.values())))["verdict"])
    return f"{found['recommended']['sentence']}; there is no baseline to compare it with"


def _notes(spec: SweepSpec, found: Row, optimum: Optimum | None, group: Group) -> list[str]:
    notes = [f"{label} has no result" for label, trials in group.baselines.items() if not trials]
    notes += [NOTE] if isinstance(spec.scheduler, Pbt) else []
    notes += [PROMOTED] if found["schedule"] else []
    notes += _untuned(spec, found["baselines"])
    notes += _edges(optimum) if optimum else []
    misled = [row for row in found["stopping"] if row["agreement"] < _RELATED]
    if misled:
        epoch, tau, n = (misled[-1][name] for name in ("epoch", "agreement", "n"))
        notes.append(
            f"the order at epoch {epoch:g} says little of the order at the end (Kendall's tau {tau:.2f} in {n} trials "
            "that went on), so the best may be among those stopped there; let trials run longer before that"
        )
    return notes


def _untuned(spec: SweepSpec, baselines: Mapping[str, Row]) -> list[str]:
    """Return a note for each setting of a baseline that is the default, while the sweep searched it."""
    notes, given = [], dict(spec.baseline_methods)
    for path in spec.space:
        above, _, below = path.partition(".")
        name = below.partition(".")[0]
        for label, row in baselines.items() if above == "method" and name not in ("", "name") else ():
            if name in row["method"] and name not in given.get(label, {}):
                own = f"{{name: {row['method']['name']}, {name}: ...}}"
                notes.append(
                    f"{label} was trained at its default {name} {short(row['method'][name])}, while {path} was "
                    f"searched; to compare with another, give it in baselines: {own}"
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


def _plot(spec: SweepSpec, found: Row, axes: Sequence[Axis], group: Group) -> Row:
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
            "at": _at(axis, recommended["values"][axis.path]) if recommended else None,
            "interval": recommended["intervals"].get(axis.path) if recommended and not axis.choice else None,
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


def _point(axis: Axis, trial: Measured, sign: int, floor: float | None) -> Row:
    result = number(trial.result)
    collapsed = result is None or (floor is not None and sign * result < sign * floor)
    return {
        "x": _at(axis, trial.values[axis.path]),
        "y": result,
        "seed": trial.seed,
        "full": trial.final,
        "collapsed": bool(collapsed),
    }


def _at(axis: Axis, value: JsonValue) -> JsonValue:
    """Return where a value is drawn: a choice at its index."""
    return axis.index(value) if axis.choice else value
