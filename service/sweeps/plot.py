"""The picture of a report: the metric over each searched field, with what is recommended and the baselines.

Colours are those of Okabe and Ito, which colour-blind people tell apart too. No display is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .verdicts import name_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Drawn = Mapping[str, Any]  # a report, its plot, or an object in it
BLUE, GREEN, GREY, RED = "#0072B2", "#009E73", "#8A8A8A", "#D55E00"
MOST_PANELS = 4
_INCHES, _DOTS = (10.0, 6.0), 100  # dots per inch
_KNOWN: dict[str, tuple[str, Any]] = {"sgd": ("#000000", "--"), "sam": (RED, "-.")}
_FURTHER: tuple[tuple[str, Any], ...] = (("#CC79A7", ":"), ("#E69F00", (0, (5, 1))), ("#56B4E9", (0, (1, 1))))
_WIDEST = 28  # characters of a choice's name
_APART = 0.004  # of the width of a panel: between seeds of the same value


def draw(report: Drawn, to: Path | BinaryIO) -> None:
    """Write a report's ``plot`` as PNG, 1000 x 600 pixels: up to four fields, those that matter most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = report["plot"]
    panels = sorted(plot["panels"], key=lambda panel: -(panel["share"] or 0.0))[:MOST_PANELS]
    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    title = textwrap.fill(plot["title"][:1].upper() + plot["title"][1:], 115, max_lines=3, placeholder=" ...")
    figure.suptitle(f"{plot['name']}\n{title}", fontsize=10.5, x=0.012, ha="left")
    shape = {1: (1, 1), 2: (1, 2)}.get(len(panels), (2, 2))
    places = figure.subplots(*shape, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _panel(axes, plot, panel)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    _legend(figure, places[: len(panels)])
    figure.savefig(to, format="png", dpi=_DOTS)


def _legend(figure: Any, places: Iterable[Axes]) -> None:
    """Draw one legend for all panels."""
    handles: dict[str, Any] = {}
    for axes in places:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        style = {"ncols": min(len(handles), 5), "frameon": False, "fontsize": 9}
        figure.legend([*handles.values()], [*handles], loc="outside lower center", **style)


def _panel(axes: Axes, plot: Drawn, panel: Drawn) -> None:
    less = plot["mode"] == "min"
    bottom, top = _limits(plot, panel)
    axes.set_ylim((top, bottom) if less else (bottom, top))  # better is higher up
    _scale(axes, panel)
    _recommended(axes, panel)
    _baselines(axes, plot)
    _curve(axes, panel)
    _points(axes, panel)
    share = "" if panel["share"] is None else f"   ({panel['share']:.0%} of the variation)"
    axes.set_xlabel(panel["field"] + share)
    axes.set_ylabel(plot["metric"] + (" (less is better)" if less else ""))
    axes.grid(visible=True, color="#E8E8E8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(plot: Drawn, panel: Drawn) -> tuple[float, float]:
    """Return the ends of the metric's axis: what hasn't fallen apart, the baselines, and a little room."""
    shown = [point["y"] for point in panel["points"] if point["full"] and not point["collapsed"]]
    for part in plot["baselines"]:
        shown += part["interval"] or [part["mean"]]
    shown += (panel["curve"] or {"mean": []})["mean"]
    if not shown:
        shown = [point["y"] for point in panel["points"] if point["y"] is not None] or [0.0, 1.0]
    low, high = min(shown), max(shown)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 0.1
    return low - room, high + room


def _scale(axes: Axes, panel: Drawn) -> None:
    """Set the scale and the ends of a field's axis; marks of a logarithmic one at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if panel["choices"]:
        names = [textwrap.shorten(name, _WIDEST, placeholder=" ...") for name in panel["choices"]]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(panel["choices"]) - 0.5)
        return
    xs = [float(point["x"]) for point in panel["points"]] or [1.0, 2.0]
    low, high = min(xs), max(xs)
    if not panel["log"]:
        room = 0.03 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
        return
    room = max((high / low) ** 0.03, 1.02)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=[1.0] if high / low > 300 else [1.0, 2.0, 5.0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _recommended(axes: Axes, panel: Drawn) -> None:
    best = panel["recommended"]
    if best is None:
        return
    if panel["interval"]:
        axes.axvspan(*panel["interval"], color=GREEN, alpha=0.14, linewidth=0, label="where the optimum lies (95 %)")
    at = panel["at"]
    axes.axvline(at, color=GREEN, linewidth=2, label="recommended")
    style: dict[str, Any] = {"ha": "center", "color": GREEN, "fontweight": "bold"}
    axes.annotate(
        textwrap.shorten(short(best), _WIDEST, placeholder=" ..."),
        (at, 1),
        (0, 3),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        **style,
    )


def _baselines(axes: Axes, plot: Drawn) -> None:
    further = 0
    for part in plot["baselines"]:
        colour, style = _KNOWN.get(part["label"], _FURTHER[further % len(_FURTHER)])
        further += part["label"] not in _KNOWN
        axes.axhline(part["mean"], color=colour, linestyle=style, linewidth=1.6, label=name_of(part["label"]))
        if part["interval"]:
            axes.axhspan(*part["interval"], color=colour, alpha=0.07, linewidth=0)


def _curve(axes: Axes, panel: Drawn) -> None:
    curve = panel["curve"]
    if curve is None:
        return
    label = "expected, with 95 %"
    if panel["choices"]:
        errors = [
            [mean - low for mean, low in zip(curve["mean"], curve["low"], strict=True)],
            [high - mean for mean, high in zip(curve["mean"], curve["high"], strict=True)],
        ]
        places = [place + 0.15 for place in range(len(curve["x"]))]
        axes.errorbar(places, curve["mean"], errors, fmt="D", color=BLUE, capsize=6, linewidth=2, label=label)
        return
    axes.fill_between(curve["x"], curve["low"], curve["high"], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(curve["x"], curve["mean"], color=BLUE, linewidth=2, label=label)


def _points(axes: Axes, panel: Drawn) -> None:
    """Draw each trial; what fell apart, or ended early below what is shown, lies at the edge of the worse side."""
    worse, better = axes.get_ylim()
    edge = worse + 0.02 * (better - worse)
    kinds: tuple[tuple[bool, bool, dict[str, Any], str], ...] = (
        (True, False, {"marker": "o", "facecolors": "white", "edgecolors": BLUE}, "a trial"),
        (False, False, {"marker": "v", "color": GREY}, "ended early"),
        (False, True, {"marker": "v", "color": GREY}, "ended early"),
        (True, True, {"marker": "x", "color": RED}, "fell apart (not to scale)"),
    )
    for full, collapsed, style, label in kinds:
        points = [point for point in panel["points"] if point["full"] is full and point["collapsed"] is collapsed]
        ys = [edge if point["collapsed"] else _between(point["y"], worse, better, edge) for point in points]
        if points:
            axes.scatter(_beside(axes, panel, points), ys, s=24, zorder=3, label=label, **style)


def _between(value: float, worse: float, better: float, edge: float) -> float:
    return value if min(worse, better) < value < max(worse, better) else edge


def _beside(axes: Axes, panel: Drawn, points: Sequence[Drawn]) -> list[float]:
    """Return where points lie along their field, seeds of the same value a little apart."""
    seeds = sorted({point["seed"] for point in panel["points"]})
    low, high = axes.get_xlim()
    moves = {seed: _APART * (index - (len(seeds) - 1) / 2) for index, seed in enumerate(seeds)}
    if panel["log"] and not panel["choices"]:
        return [point["x"] * (high / low) ** moves[point["seed"]] for point in points]
    return [point["x"] + (high - low) * moves[point["seed"]] for point in points]
