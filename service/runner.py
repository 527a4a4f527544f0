"""The process of one job: trains it on the Ray cluster it was started in, and writes what happens into the store.

Ray's Jobs API starts it as ``python -m sampa.service.runner JOB_ID``, with SAMPA_STATE_DIR, SAMPA_STORE_URL and
SAMPA_ATTEMPT in its environment. It may be killed at any time: the next attempt goes on from the newest checkpoint. It
ends with code 0 when the store says how the job ended, or that this runner has no more say in it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from ..workers.reports import Once
from .records import Job, MoveRefused, StoreUnavailable, Superseded
from .settings import ATTEMPT_VARIABLE, ServiceSettings
from .states import State
from .store import Store

if TYPE_CHECKING:
    from ..workers.plan import Plan
    from ..workers.reports import Report
    from ..workers.trainer import Outcome

PATIENCE_S = 60.0  # how long the store may be away before the runner gives up, to be started again
REPEATED = ("task", "metrics", "evaluation", "checkpoint")  # kinds of which a resumed run gives some again
SHOWN = ("epoch", "loss", "lr", "rho", "seconds_per_step", "accuracy")  # what progress shows besides the step

Answer = TypeVar("Answer")


class Train(Protocol):
    """What ``workers.trainer.train`` is."""

    def __call__(
        self, plan: Plan, directory: Path, *, on_reports: Callable[[Sequence[Report]], None], attempt: int, reached: int
    ) -> Outcome: ...


def main() -> int:
    """Run the job named on the command line, and return the exit code."""
    job_id, attempt, settings = sys.argv[1], int(os.environ[ATTEMPT_VARIABLE]), ServiceSettings()
    signal.signal(signal.SIGTERM, _end_now)
    store = Store(settings.store_url)
    try:
        if not is_due(patiently(lambda: store.job(job_id)), attempt):
            return 0
        return run(store, settings.job_dir(job_id), job_id, attempt, _connected())
    finally:
        store.close()


def is_due(job: Job, attempt: int) -> bool:
    """Say whether this attempt is the one to run: not replaced, cancelled or ended before it came to start."""
    return job.attempt == attempt and job.state in {State.STARTING, State.RUNNING}


def run(store: Store, directory: Path, job_id: str, attempt: int, train: Train) -> int:
    """Train the job and write down how it ended; return the exit code.

    Whatever the job itself does wrong is an outcome. An exception is a fault of what it runs on: it leaves a line in
    the job's log and an exit code, by which the reconciler knows to start the job again.
    """
    journal = Journal(store, job_id, attempt)
    try:
        spec = patiently(lambda: store.job(job_id)).spec
        outcome = train(spec, directory, on_reports=journal.add, attempt=attempt, reached=journal.reached)
        journal.end(outcome)
    except (Superseded, MoveRefused) as refusal:
        print(refusal, file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        line = f"the runner failed with {type(error).__name__}: {error}".splitlines()[0]
        journal.last_words(line)
        return 1
    return 0


class Journal:
    """Writes the reports of one attempt into the store, without what a resumed run reports again."""

    def __init__(self, store: Store, job_id: str, attempt: int) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        job = patiently(lambda: store.job(job_id))
        self._running = job.state is State.RUNNING
        self._progress = job.progress
        self._once = Once()
        if job.attempt > 1:
            patiently(self._remember)

    @property
    def reached(self) -> int:
        """The last step that the store has metrics of; 0 before the first."""
        return self._once.reached

    def add(self, reports: Sequence[Report]) -> None:
        """Write new reports, and the progress they make. Raises Superseded or MoveRefused when the job is not ours."""
        self._enter_running()
        new = [(report.kind, report.data) for report in reports if self._once.is_new(report.kind, report.data)]
        if not new:
            return
        for kind, data in new:
            self._progress = advance(self._progress, kind, data)
        patiently(lambda: self._store.append(self._job_id, new, attempt=self._attempt, progress=self._progress))

    def end(self, outcome: Outcome) -> None:
        """Write down how the run ended. Raises Superseded or MoveRefused when the job is not ours to end."""
        self._enter_running()
        to = State.SUCCEEDED if outcome.succeeded else State.FAILED
        result = outcome.result if outcome.succeeded else None
        self._move(to, reason=outcome.reason, result=result)

    def last_words(self, line: str) -> None:
        """Leave a line in the job's log, if the store still takes it."""
        try:
            self._store.append(self._job_id, [("log", {"worker": "runner", "line": line})], attempt=self._attempt)
        except (StoreUnavailable, Superseded) as error:
            print(error, file=sys.stderr)

    def _enter_running(self) -> None:
        if not self._running:
            self._move(State.RUNNING)
            self._running = True

    def _move(self, to: State, *, reason: str = "", result: dict[str, Any] | None = None) -> None:
        patiently(lambda: self._store.move(self._job_id, to, reason=reason, attempt=self._attempt, result=result))

    def _remember(self) -> None:
        """Read what earlier attempts have reported."""
        after = 0
        while page := self._store.events(self._job_id, after, kinds=REPEATED):
            for event in page:
                self._once.is_new(event.kind, event.data)
            after = page[-1].seq


def advance(progress: dict[str, Any], kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the progress after one more report: step, steps, epoch and the newest values."""
    if kind == "task":
        return {**progress, **{name: data[name] for name in ("steps", "steps_per_epoch") if name in data}}
    if kind in {"metrics", "evaluation"}:
        names = ("step", *SHOWN) if kind == "metrics" else ("accuracy",)
        return {**progress, **{name: data[name] for name in names if name in data}}
    return progress


def patiently(act: Callable[[], Answer], patience_s: float = PATIENCE_S) -> Answer:
    """Return what ``act`` returns, trying again while the store is away; raises StoreUnavailable at the deadline."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _connected() -> Train:
    """Return the trainer, connected to the cluster that started this process; loading both takes seconds."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="warning")
    signal.signal(signal.SIGTERM, _end_now)  # Ray has put its own in place

    from ..workers.trainer import train

    return train


def _end_now(_signal: int, _frame: object) -> NoReturn:
    """End at once: whatever the store has accepted is complete, and whatever it has not was not done."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
