"""The picture of a sweep: the metric against each searched field, with the baselines and what is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # told apart by colour-blind people too
LINES = (ORANGE, GREEN, "#CC79A7", "#56B4E9")
MOST_PANELS = 4


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a report's ``plot`` part, 1000 x 600 pixels for one field and as wide for each further one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = report["plot"]
    fields = plot["fields"][:MOST_PANELS]
    figure = Figure(figsize=(10 * len(fields) ** 0.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        _panel(axes, field, plot)
    figure.suptitle(plot["name"])
    figure.savefig(path, dpi=100, format="png")


def _panel(axes: Any, field: Mapping[str, Any], plot: Mapping[str, Any]) -> None:
    for full, marker, label in ((True, "o", "trial"), (False, "x", "stopped early")):
        points = [one for one in field["points"] if one["full"] is full]
        if points:
            xs = [one["x"] if field["numeric"] else str(one["x"]) for one in points]
            axes.scatter(xs, [one["y"] for one in points], s=18, marker=marker, color=GREY, alpha=0.7, label=label)
    curve = field.get("curve")
    if curve:
        axes.plot(curve["x"], curve["mean"], color=BLUE, label="expected")
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=BLUE, alpha=0.2, linewidth=0)
    for color, (label, one) in zip(LINES, plot["baselines"].items(), strict=False):
        if one["mean"] is not None:
            axes.axhline(one["mean"], color=color, linestyle="--", label=label)
            if one["interval"]:
                axes.axhspan(*one["interval"], color=color, alpha=0.1, linewidth=0)
    best = plot["recommended"]
    if best and field["numeric"]:
        axes.axvspan(*best["intervals"][field["path"]], color=GREEN, alpha=0.15, linewidth=0)
        value = best["values"][field["path"]]
        axes.axvline(value, color=GREEN, label=f"recommended: {value:.3g}")
    if field["log"]:
        axes.set_xscale("log")
    axes.set_xlabel(field["path"])
    axes.set_ylabel(plot["metric"])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", fontsize=9)
