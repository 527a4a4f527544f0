"""How the command line writes things down: lines that people read and scripts can cut apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .presets import Preset

Document = Mapping[str, Any]
CHANGES_SHOWN = 6  # the newest changes of workers in the description of a job; events lists all


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them names, as columns wide enough for each cell; nothing is cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def job_rows(jobs: Sequence[Document]) -> list[list[str]]:
    """Return the table of ``sampa jobs``."""
    rows = [["ID", "NAME", "STATE", "STEP", "CREATED"]]
    return rows + [
        [job["id"], job["name"], job["state"], steps(job["progress"]), clock(job["created_at"])] for job in jobs
    ]


def preset_rows(presets: Sequence[Preset]) -> list[list[str]]:
    """Return the table of ``sampa presets``."""
    rows = [["NAME", "WHAT", "SOURCE"]]
    return rows + [[preset.name, preset.about, preset.source] for preset in presets]


def checkpoint_rows(checkpoints: Sequence[Document]) -> list[list[str]]:
    """Return the table of ``sampa checkpoints``."""
    rows = [["STEP", "BYTES", "THERE", "WRITTEN", "PATH"]]
    return rows + [
        [str(one["step"]), str(one["bytes"]), "yes" if one["available"] else "no", clock(one["time"]), one["path"]]
        for one in checkpoints
    ]


def steps(progress: Document) -> str:
    """Return how far a job is: ``120/480``; a dash before its first step."""
    if "step" not in progress:
        return "-"
    return f"{progress['step']}/{progress.get('steps', '?')}"


def describe(job: Document) -> str:
    """Return one job in a few lines."""
    head = f"{job['name']}  {job['id']}  {job['state']}" + (f": {job['reason']}" if job["reason"] else "")
    method = fields(_flat(job["spec"]["method"]))
    lines = [head, f"  method    {method}", f"  step      {steps(job['progress'])}   restarts {job['restarts']}"]
    lines += workers(job) + code(job)
    for entry in job.get("transitions", ()):
        reason = f"   {entry['reason']}" if entry["reason"] else ""
        lines.append(f"  {clock(entry['time'])}   {entry['state']}{reason}")
    if job["result"]:
        lines.append(f"  result    {fields(job['result'].get('metrics') or {})}".rstrip())
    return "\n".join(lines)


def workers(job: Document) -> list[str]:
    """Return how many workers a job has, and, once there is something to tell, what their changes have cost."""
    count, elastic = job["workers"], job.get("elastic") or {}
    lines = [f"  workers   {count['now']} of at most {count['wanted']}"]
    if len(elastic.get("workers", ())) > 1:
        newest = [f"{now} from step {step}" for step, now in elastic["workers"][-CHANGES_SHOWN:]]
        before = ["..."] if len(elastic["workers"]) > CHANGES_SHOWN else []
        lines += [f"  changes   {', '.join(before + newest)}", f"  cost      {cost(elastic)}"]
    return lines


def code(job: Document) -> list[str]:
    """Return what a job has brought along, if it has."""
    brought = job["spec"].get("code") or {}
    bundle = f"bundle {brought['bundle'][:12]}" if brought.get("bundle") else ""
    pip = f"pip {', '.join(brought['pip'])}" if brought.get("pip") else ""
    return [f"  code      {'  '.join(filter(None, (bundle, pip)))}"] if bundle or pip else []


def cost(elastic: Document) -> str:
    """Return what one elastic event, or all of them, have cost."""
    lost, rows = elastic["steps_lost"], elastic["samples_replayed"]
    pause = f"{number(elastic['recovery_seconds'])} s of standing still"
    restarts = f"{elastic['restarts']} restarts, " if "restarts" in elastic else ""
    return f"{restarts}{lost} steps lost ({rows} samples), {pause}"


def event_line(event: Document) -> str:
    """Return one event in one line."""
    return f"{event['seq']:>6}  {clock(event['time'])}  {event['kind']:<10}  {_text(event['kind'], event['data'])}"


def _text(kind: str, data: Document) -> str:
    match kind:
        case "log":
            return f"{data.get('worker')}: {data.get('line')}"
        case "elastic":
            return change_line(data)
        case "resize":
            return f"at most {data['workers']} workers from now on"
        case "trial" | "exploit":
            return trial_line(data) if kind == "trial" else exploit_line(data)
        case "retry":
            return f"failed trials are trained again: {', '.join(map(str, data['trials']))}"
        case _:
            return fields(_flat(data))


def trial_line(data: Document) -> str:
    """Return what became of a trial of a sweep."""
    told = {"number", "state", "reason", "configuration", "baseline", "values"}
    rest = fields({name: value for name, value in data.items() if name not in told})
    reason = f": {data['reason']}" if data.get("reason") else ""
    return "  ".join(filter(None, (f"trial {data['number']} {data['state']}", trained(data), rest))) + reason


def exploit_line(data: Document) -> str:
    """Return from whose state a trial of a population goes on, and with what."""
    who = f"trial {data['number']} " if "number" in data else ""
    return f"{who}goes on from trial {data['source']}, epoch {number(data['epoch'])}  {fields(data['values'])}"


def trained(trial: Document) -> str:
    """Return what a trial trains: its baseline, or the values of the searched fields."""
    return str(trial["baseline"]) if trial.get("baseline") else fields(trial.get("values") or {})


def change_line(elastic: Document) -> str:
    """Return one elastic event: what happened, and what it has cost."""
    before, after = elastic["workers_before"], elastic["workers_after"]
    detail = f"; {elastic['detail']}" if elastic["detail"] else ""
    return f"{elastic['cause']} at step {elastic['step']}: {before} -> {after} workers, {cost(elastic)}{detail}"


def measurement_line(item: Document) -> str:
    """Return one measurement in one line."""
    rest = {name: value for name, value in _flat(item).items() if name not in ("seq", "kind")}
    return f"{item['kind']:<10}  {fields(rest)}"


def _flat(data: Document) -> Document:
    """Return the fields that are single values."""
    return {name: value for name, value in data.items() if not isinstance(value, Mapping)}


def fields(data: Document) -> str:
    """Return ``name value`` of each field that says something."""
    return "  ".join(f"{name} {number(value)}" for name, value in data.items() if value not in (None, "", {}, []))


def number(value: object) -> str:
    """Return a value with as many digits as one reads."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"({fields(value)})"
    return str(value)


def clock(time: str) -> str:
    """Return a time of the API in the reader's own time zone, to the second."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
