"""What a sweep's runner writes down: its trials' beginnings and ends, its progress, its answer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..records import Job, Sweep
from ..runner import patiently
from ..specs import JobSpec
from ..states import State
from ..store import Store
from .answer import Answers
from .results import Measured
from .spec import Part
from .underway import Underway

PROGRESS_S = 1.0  # between two notes of the sweep's progress


class Record:
    """The trials that are over, as they are counted, and all that is written of a sweep.

    Args:
        store: Where it is written.
        sweep: As it was when this runner began, or began again.
        attempt: Of the sweep's runner.
        answers: Where the report is kept.
        at_work: Returns what progress says of the present: trials that are running, workers, gradients.

    Attributes:
        measured: What has become of each trial that is over, by number.
    """

    def __init__(
        self, store: Store, sweep: Sweep, attempt: int, answers: Answers, at_work: Callable[[], dict[str, int]]
    ) -> None:
        self._store, self._id, self._spec, self._attempt = store, sweep.id, sweep.spec, attempt
        self._answers, self._at_work = answers, at_work
        self.measured: dict[int, Measured] = {}
        self._before_s = float(sweep.progress.get("seconds") or 0.0)
        self._began, self._noted_at = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """How long the sweep has run, pauses not counted."""
        return self._before_s + time.monotonic() - self._began

    # Trials

    def begin(self, part: Part, spec: JobSpec, refused_as: str = "") -> Job:
        """Store a new trial, as FAILED if it is refused, and tell of it."""
        state, more = (State.FAILED, {"reason": refused_as}) if refused_as else (State.QUEUED, {})
        told = [("trial", _said(part, state, more))]
        add = self._store.sweeps.add_trial
        return patiently(lambda: add(self._id, part, spec, self._attempt, told=told, refused_as=refused_as))

    def end(self, trial: Underway, to: State, reason: str, result: dict[str, Any] | None = None) -> None:
        """Write down how a trial has ended, tell of it, and count it."""
        self.measured[trial.part.number] = measured = trial.measured(to, reason)
        last = measured.curve[-1][1] if measured.curve else None
        told = [("trial", _said(trial.part, to, {self._spec.metric: last, "reason": reason}))]
        patiently(
            lambda: self._store.sweeps.end_trial(
                trial.key,
                to,
                attempt=trial.attempt,
                sweep_attempt=self._attempt,
                told=told,
                progress=self.progress(),
                reason=reason,
                result=result,
            )
        )
        self._answers.write(self._spec, [*self.measured.values()])

    def count(self, trial: Underway, state: State, reason: str) -> None:
        """Count a trial of which nothing is to be written: it had ended before, or goes on if the sweep is extended."""
        self.measured[trial.part.number] = trial.measured(state, reason)
        self._answers.write(self._spec, [*self.measured.values()])

    # The sweep

    def note(self, line: str = "", *, at_once: bool = False) -> None:
        """Write down the sweep's progress, now and then, with a line for its log if there is one."""
        if not at_once and time.monotonic() - self._noted_at < PROGRESS_S:
            return
        self._noted_at = time.monotonic()
        batch = [("log", {"worker": "runner", "line": line})] if line else []
        progress = self.progress()
        patiently(lambda: self._store.append(self._id, batch, attempt=self._attempt, progress=progress))
        self._answers.touch()

    def progress(self) -> dict[str, Any]:
        """Return how far the sweep is."""
        ended = Counter(one.state for one in self.measured.values())
        return {
            "trials": self._spec.trial_count,
            "ended": ended.total(),
            "failed": ended[State.FAILED],
            "stopped": ended[State.STOPPED],
            "best": self._best(),
            "seconds": round(self.seconds, 3),
            **self._at_work(),
        }

    def answer(self) -> dict[str, Any]:
        """Write the report of a sweep that is at its end, and return it."""
        return self._answers.finish(self._spec, [*self.measured.values()])

    def leave(self) -> None:
        """Write the report of what there is, before the sweep is let go of."""
        self._answers.last(self._spec, [*self.measured.values()])

    def _best(self) -> float | None:
        results = [one.result for one in self.measured.values() if one.full and not one.baseline]
        return (max if self._spec.mode == "max" else min)(filter(math.isfinite, results), default=None)


def _said(part: Part, state: State, more: dict[str, Any]) -> dict[str, Any]:
    """Return the data of the event that tells what became of a trial."""
    what = {"configuration": part.configuration, "baseline": part.baseline, "values": part.values, "seed": part.seed}
    return more | {"number": part.number, "state": state} | what
