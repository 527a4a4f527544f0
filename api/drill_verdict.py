"""What came of a drill: what each fault has done, told from a run's reports, and whether all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..workers.faults import Fault
from ..workers.ledger import Ledger
from .drill_schedule import show_fault

if TYPE_CHECKING:
    from ..workers.reports import Report

TIMINGS = frozenset({"seconds", "seconds_per_step", "worker_seconds"})  # of a report, which differ from run to run


@dataclass
class Struck:
    """What a fault has done to the run; times are in seconds of one clock.

    Attributes:
        fault: What was planned.
        fired_at: When it happened, or None.
        loss: The ledger's entry of the worker that was lost by it, or None.
        rejoin: That of the worker that came instead, or None.
        complete_at: When the crew was known to be complete again, or None.
    """

    fault: Fault
    fired_at: float | None = None
    loss: Mapping[str, Any] | None = None
    rejoin: Mapping[str, Any] | None = None
    complete_at: float | None = None

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        entry, whole = self.loss or {}, None
        if self.fired_at is not None and self.complete_at is not None:
            whole = round(self.complete_at - self.fired_at, 3)
        return self.fault.model_dump(exclude=set() if self.fault.kind == "slow" else {"seconds"}) | {
            "fired": self.fired_at is not None,
            "cause": entry.get("cause"),
            "steps_lost": entry.get("steps_lost", 0),
            "samples_replayed": entry.get("samples_replayed", 0),
            "pause_s": entry.get("recovery_seconds"),
            "rejoin_pause_s": (self.rejoin or {}).get("recovery_seconds"),
            "complete_after_s": whole,
            "detail": entry.get("detail", ""),
        }


class Account:
    """Tells from a run's reports what each fault has done to it. A fault waits for a complete crew, so they take turns.

    Args:
        faults: The schedule.
        workers: How many make a complete crew.
    """

    def __init__(self, faults: Sequence[Fault], workers: int) -> None:
        self.struck = [Struck(fault) for fault in faults]
        self.ledger = Ledger()
        self.measured: dict[tuple[str, object, object], Mapping[str, Any]] = {}
        self.heard_at: float | None = None
        self._workers = workers
        self._newest: Struck | None = None

    def take(self, report: Report, at: float) -> None:
        """Take a report that came at a time."""
        data: Mapping[str, Any] = report.data
        if report.kind != "log":
            self.heard_at = at
        if report.kind == "fault":
            self._fired(self.struck[data["number"]], at)
        elif report.kind == "elastic":
            self.ledger.add(data)
            self._happened(data, at)
        elif report.kind in {"metrics", "evaluation"}:
            kept = {name: value for name, value in data.items() if name not in TIMINGS}
            self.measured[report.kind, data["step"], data.get("split")] = kept

    def _fired(self, fault: Struck, at: float) -> None:
        for earlier in self.struck:
            if earlier.loss is not None and earlier.complete_at is None:
                earlier.complete_at = at
        fault.fired_at, self._newest = at, fault

    def _happened(self, event: Mapping[str, Any], at: float) -> None:
        complete = event["workers_after"] >= self._workers
        if event["cause"] == "loss":
            found = self._newest if self._newest is not None and self._newest.loss is None else None
            if found is not None:
                found.loss = event
        else:  # the entry of a join may come only after the next fault, in the first step that they make together
            waiting = (one for one in self.struck if one.loss is not None and one.rejoin is None)
            found = next((one for one in waiting if (one.loss or {})["workers_after"] < self._workers), None)
            if found is not None and complete:
                found.rejoin = event
        if found is not None and complete and found.complete_at is None:
            found.complete_at = at


@dataclass(frozen=True)
class Verdict:
    """What the drill says of the job.

    Attributes:
        text: In one line.
        problems: What is wrong, a sentence each; empty if all is well.
    """

    text: str
    problems: list[str] = field(default_factory=list)


def judge(faulty: Account, calm: Account, *, batch_size: int, reason: str, differing: Sequence[str]) -> Verdict:
    """Return the verdict on a drill.

    Args:
        faulty: Of the run under faults.
        calm: Of the calm run.
        batch_size: Rows of a step.
        reason: Why the run under faults did not come to its end; empty if it did.
        differing: Names of the weights that differ.
    """
    silent = [show_fault(one.fault) for one in faulty.struck if one.fired_at is None]
    problems = [f"the run under faults failed: {reason}"] if reason else []
    if differing:
        problems.append(f"the weights differ from those of the calm run: {_some(differing)}")
    if not reason and (unlike := _unlike(calm.measured, faulty.measured)):
        problems.append(f"measurements differ from those of the calm run: {_some(unlike)}")
    if silent:
        problems.append(f"{len(silent)} of {len(faulty.struck)} faults did not fire: {_some(silent)}")
    problems += [
        f"the {event['cause']} at step {event['step']} lost {event['steps_lost']} steps and replayed "
        f"{event['samples_replayed']} samples although workers survived; one step is the most ({event['detail']})"
        for event in faulty.ledger.events
        if event["workers_before"] > 1 and (event["steps_lost"] > 1 or event["samples_replayed"] > batch_size)
    ]
    if problems:
        return Verdict("; ".join(problems), problems)
    most = max((int(event["steps_lost"]) for event in faulty.ledger.events), default=0)
    lost = {0: "no step was", 1: "at most 1 step was"}.get(most, f"at most {most} steps were")
    fired = f"{len(faulty.struck)} of {len(faulty.struck)} faults fired"
    return Verdict(f"{fired}; weights are bit-identical to the calm run; {lost} lost per event")


def _unlike(calm: Mapping[Any, Any], faulty: Mapping[Any, Any]) -> list[str]:
    return [f"{key[0]} of step {key[1]}" for key in {**calm, **faulty} if calm.get(key) != faulty.get(key)]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def differing_weights(calm: Path, faulty: Path) -> list[str]:
    """Return the names of the tensors in two model files that don't have the same bits."""
    import torch
    from safetensors.torch import load_file

    one, other = load_file(calm), load_file(faulty)

    def same(name: str) -> bool:
        if name not in one or name not in other:
            return False
        a, b = one[name], other[name]
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*bits)

    return [name for name in sorted(one.keys() | other.keys()) if not same(name)]


def fault_rows(struck: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of a drill's faults."""
    rows = [["FAULT", "FIRED", "CAUSE", "STEPS LOST", "REPLAYED", "PAUSE", "REJOIN PAUSE", "COMPLETE AFTER"]]
    for one in struck:
        times = [one["pause_s"], one["rejoin_pause_s"], one["complete_after_s"]]
        counts = [str(one["steps_lost"]), str(one["samples_replayed"])] if one["cause"] else ["-", "-"]
        seconds = ["-" if value is None else f"{value:.2f} s" for value in times]
        rows.append([show_fault(one), "yes" if one["fired"] else "no", one["cause"] or "-", *counts, *seconds])
    return rows
