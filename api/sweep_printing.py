"""How the command line writes sweeps down: where they are on their way, and what they have found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .printing import Document, clock, fields, number, table, trained

VALUES_SHOWN = 40  # rows of a field's table; --json has all


def sweep_rows(sweeps: Sequence[Document]) -> list[list[str]]:
    """Return the table of ``sampa sweeps``."""
    rows = [["ID", "NAME", "STATE", "TRIALS", "CREATED"]]
    return rows + [
        [one["id"], one["name"], one["state"], ended(one["progress"]), clock(one["created_at"])] for one in sweeps
    ]


def trial_rows(trials: Sequence[Document], metric: str) -> list[list[str]]:
    """Return the table of ``sampa sweep-trials``."""
    rows = [["TRIAL", "ID", "STATE", "SEED", metric.upper(), "STEP", "WHAT"]]
    return rows + [
        [
            str(one["number"]),
            one["id"],
            one["state"],
            str(one["seed"]),
            number(one["progress"].get(metric, "-")),
            number(one["progress"].get("step", "-")),
            trained(one),
        ]
        for one in trials
    ]


def ended(progress: Document) -> str:
    """Return how many trials have ended: ``12/54``; a dash before the first word of the runner."""
    return f"{progress['ended']}/{progress.get('trials', '?')}" if "ended" in progress else "-"


def describe_sweep(sweep: Document, report: Document | None) -> str:
    """Return one sweep in a few lines, and what it has found so far."""
    spec, progress = sweep["spec"], sweep["progress"]
    head = f"{sweep['name']}  {sweep['id']}  {sweep['state']}" + (f": {sweep['reason']}" if sweep["reason"] else "")
    lines = [head, f"  search    {spec['search']}, scheduler {spec['scheduler']['name']}, by {_aim(spec)}"]
    lines += [f"  space     {path} {_domain(domain)}" for path, domain in spec["space"].items()]
    lines += [f"  trials    {_counts(progress)}   restarts {sweep['restarts']}"]
    if any(spec["budget"].values()):
        lines.append(f"  budget    {fields(spec['budget'])}   used {_used(progress)}")
    for entry in sweep.get("transitions", ()):
        reason = f"   {entry['reason']}" if entry["reason"] else ""
        lines.append(f"  {clock(entry['time'])}   {entry['state']}{reason}")
    return "\n".join(lines) + ("" if report is None else f"\n\n{describe_report(report)}")


def _aim(spec: Document) -> str:
    return f"{'highest' if spec['mode'] == 'max' else 'lowest'} {spec['metric']}"


def _domain(domain: Mapping[str, Any]) -> str:
    return "  ".join(f"{kind} [{', '.join(map(number, values))}]" for kind, values in domain.items() if values)


def _counts(progress: Document) -> str:
    if "ended" not in progress:
        return "-"
    names = ("running", "stopped", "failed")
    counted = [f"{progress[name]} {name}" for name in names if progress.get(name)]
    best = f"   best {number(progress['best'])}" if progress.get("best") is not None else ""
    return ", ".join([f"{ended(progress)} ended", *counted]) + best


def _used(progress: Document) -> str:
    used = {"wall_s": progress.get("seconds"), "gradients": progress.get("gradients")}
    return fields({name: value for name, value in used.items() if value is not None}) or "nothing"


def describe_report(report: Document) -> str:
    """Return the answer of a sweep: what is recommended, how it compares, and what else is to be known."""
    parts = [str(report["verdict"]), recommendation(report), _schedule(report), *_tables(report), *_remarks(report)]
    return "\n\n".join(filter(None, parts))


def recommendation(report: Document) -> str:
    """Return the recommended values with their intervals, or why there are none."""
    found = report.get("recommended")
    if not found:
        return f"nothing is recommended: {report.get('why_not')}"
    intervals = found.get("intervals") or {}
    values = [f"{path} {number(value)}{_of(intervals.get(path))}" for path, value in found["values"].items()]
    gives = f"{report['metric']} {_number(found.get('mean'))}{_of(found.get('interval'))}"
    return f"recommended: {', '.join(values)}; gives {gives}"


def _schedule(report: Document) -> str:
    """Return what the best trial of a population was trained with, and when."""
    rows = report.get("schedule") or ()
    return "\n".join(f"from epoch {number(row['epoch'])}  {fields(row['values'])}" for row in rows)


def _of(interval: Any) -> str:
    """Return an interval, or the choices with their probabilities, in brackets."""
    if not interval:
        return ""
    if isinstance(interval[0], Sequence) and not isinstance(interval[0], str):
        return f" ({', '.join(f'{number(choice)}: {share:.0%}' for choice, share in interval)})"
    low, high = interval
    return f" ({_number(low)} to {_number(high)})"


def _tables(report: Document) -> Iterator[str]:
    """Yield the baselines, and each searched field's values, as tables."""
    metric = str(report["metric"]).upper()
    baselines = report.get("baselines") or {}
    if baselines:
        rows = [["BASELINE", metric, "INTERVAL", "N", "COLLAPSED", "WORKER-SECONDS", "BEATEN BY MORE THAN THE MARGIN"]]
        lead = report.get("advantage") or {}
        rows += [
            [_named(label, one), *_cells(one), _number(one.get("seconds")), _lead(lead.get(label))]
            for label, one in baselines.items()
        ]
        yield table(rows)
    for path, values in (report.get("values") or {}).items():
        rows = [[path.upper(), metric, "INTERVAL", "N", "COLLAPSED"]]
        rows += [[number(one["value"]), *_cells(one)] for one in values[:VALUES_SHOWN]]
        more = len(values) - VALUES_SHOWN
        yield table(rows) + (f"\n... and {more} more, see --json" if more > 0 else "")


def _named(label: str, one: Document) -> str:
    """Return a baseline with its rho, if it has one: "sam, rho 0.05"."""
    rho = (one.get("method") or {}).get("rho")
    return label if rho is None else f"{label}, rho {number(rho)}"


def _cells(one: Document) -> list[str]:
    collapsed = number(one["collapsed"]) if one.get("collapsed") else "-"
    return [_number(one.get("mean")), _of(one.get("interval")).strip(" ()") or "-", number(one["n"]), collapsed]


def _lead(advantage: Document | None) -> str:
    probability = (advantage or {}).get("probability")
    return "-" if probability is None else f"{probability:.0%}"


def _remarks(report: Document) -> Iterator[str]:
    """Yield what fell apart, which trials failed and why, and what else a reader should know."""
    yield str((report.get("collapse") or {}).get("sentence") or "")
    failed = report["trials"].get("failed") or []
    yield "\n".join(f"trial {one['number']} failed: {one['reason']}" for one in failed)
    yield "\n".join(map(str, report.get("notes") or ()))


def _number(value: object) -> str:
    return "-" if value is None else number(value)
