"""The sentences of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from .compare import Estimate

SURE = 0.95
_NAMES = {"sampa": "SAMPa", "sgd": "SGD", "sam": "SAM"}


def name_of(method: str) -> str:
    """Return how a method is written: SAMPa, SGD, ASAM."""
    stem, _, again = method.partition("-") if method not in _NAMES else (method, "", "")
    return _NAMES.get(method) or (f"{_NAMES[stem]}-{again}" if stem in _NAMES else method.upper())


def method_of(base: Mapping[str, JsonValue], values: Mapping[str, JsonValue]) -> str:
    """Return the name of the method that is trained with these values."""
    chosen: Any = values.get("method", base.get("method"))
    named = chosen.get("name") if isinstance(chosen, Mapping) else chosen
    return name_of(str(values.get("method.name", named) or "the method"))


def settings(values: Mapping[str, JsonValue]) -> str:
    """Return values in words: "rho 0.09, lr 0.05"; of a method that was searched as a whole, all but its name."""
    method = values.get("method")
    own = {name: value for name, value in method.items() if name != "name"} if isinstance(method, Mapping) else {}
    shown = own | {path: value for path, value in values.items() if path not in ("method", "method.name")}
    return ", ".join(f"{path.rpartition('.')[2]} {short(value)}" for path, value in shown.items())


def short(value: JsonValue) -> str:
    """Return a value with as many digits as one reads, and an object by its name: "sam (rho 0.2)"."""
    if isinstance(value, Mapping):
        name, rest = value.get("name"), [f"{key} {short(one)}" for key, one in value.items() if key != "name"]
        inner = f"({', '.join(rest)})" if rest else ""
        return " ".join(filter(None, (str(name) if name else "", inner))) or "nothing"
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)


def amount(metric: str, value: float, *, signed: bool = False) -> str:
    """Return a difference: an accuracy's in points of percent."""
    plus = "+" if signed else ""
    return f"{100 * value:{plus}.1f}" if is_share(metric) else f"{value:{plus}.3g}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of 1 that people say in percent."""
    return "accuracy" in metric


def at(name: str, values: Mapping[str, JsonValue]) -> str:
    """Return a method with its settings: "SAM at rho 0.05"."""
    return f"{name} at {settings(values)}" if settings(values) else name


def verdict(
    what: str, label: str, lead: Estimate, *, shown: str, metric: str, margin: float, seeds: int, sign: int
) -> dict[str, Any]:
    """Return how the recommended configuration compares with a baseline.

    Args:
        what: The recommended configuration, "SAMPa at rho 0.09".
        label: The baseline's.
        lead: By how much it is better, in goodness.
        shown: The baseline in words, "SAM at rho 0.05".
        metric: Its name.
        margin: By how much it must be better.
        seeds: How many trials of the baseline there are.
        sign: 1 if more of the metric is better, else -1.
    """
    other, low, high = shown, *lead.interval
    better, as_good = lead.above(margin), lead.above(-margin)
    unit = " points" if is_share(metric) else f" of {metric}"
    ends = sorted((sign * low, sign * high))
    numbers = (
        f"{amount(metric, sign * lead.mean, signed=True)}{unit} "
        f"({amount(metric, ends[0])} to {amount(metric, ends[1])}), probability of more than {margin:g}: {better:.3f}"
    )
    worth: bool | None = True if better >= SURE and seeds > 1 else False if better <= 1 - SURE else None
    if better >= SURE:
        sentence = f"{what} {'beats' if seeds > 1 else 'seems to beat'} {other} here: {numbers}"
        sentence += "; it is worth it" if worth and label == "sgd" else ""
    elif as_good <= 1 - SURE:
        sentence = f"{what} is worse than {other} here: {numbers}"
    elif better <= 1 - SURE:
        sentence = f"{what} does not beat {other} by more than {margin:g} here: {numbers}"
        sentence += "; it is not worth it" if label == "sgd" else ""
    else:
        sentence = f"it is not shown that {what} beats {other} here: {numbers}"
        sentence += "; it is not worse by more than that" if as_good >= SURE else "; more seeds would tell"
    if seeds == 1:
        sentence += (
            f". It rests on one seed of {name_of(label)}, taken to vary as the trials do; three or more would show it"
        )
    return {
        "probability": better,
        "difference": sign * lead.mean,
        "interval": ends,
        "not_worse": as_good,
        "worth_it": worth,
        "verdict": sentence,
    }


def fallen_apart(report: Mapping[str, Any]) -> str | None:
    """Return in a sentence where trials of a report fell apart; None if none did."""
    rows = [row for row in report["configurations"] if row["n"]]
    fallen, full = sum(row["collapsed"] for row in rows), sum(row["n"] for row in rows)
    if not fallen:
        return None
    places, along = [], report["collapse"]
    for path, field in along.items():
        name = path.rpartition(".")[2]
        places += [f"from {name} {short(field['from'])} on"] if field["from"] is not None else []
        places += [f"up to {name} {short(field['until'])}"] if field["until"] is not None else []
    most = "most of them " if fallen > 1 else ""
    where = f", {most}{' and '.join(places)}" if places else ", at no particular value" if along else ""
    return f"{fallen} of {counted(full, 'full trial')} fell apart (worse than {report['floor']:.3g}){where}"


def counted(number: int, what: str) -> str:
    """Return "1 trial" or "2 trials"."""
    return f"{number} {what}" + ("" if number == 1 else "s")
