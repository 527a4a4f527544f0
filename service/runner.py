"""The process of one job: trains it on the Ray cluster it was started in, and writes what happens into the store.

Ray's Jobs API starts it as ``python -m sampa.service.runner JOB_ID``, with SAMPA_STATE_DIR, SAMPA_STORE_URL,
SAMPA_STORAGE and SAMPA_ATTEMPT in its environment; a store URL with a password has to be there on the node, since Ray
would show it to others. It may be killed at any time: the next attempt goes on from the newest checkpoint. Told to
stop, by the store or by SIGTERM, it has a checkpoint written first. It ends with code 0 when the store says what became
of the job, or that this runner has no more say in it, and with STARTED_TWICE when its attempt has begun before, on a
cluster that is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..workers.marks import why_no_mark
from ..workers.reports import Once
from ..workers.storage import Storage, StorageError
from . import brought
from .records import Job, MoveRefused, Stored, StoreUnavailable, Superseded, Sweep
from .settings import ATTEMPT_VARIABLE, STARTED_TWICE, STORE_URL_VARIABLE, ServiceSettings
from .shared import runs_of
from .states import STOPPED_AS, State, is_final
from .store import Store
from .told import Told

if TYPE_CHECKING:
    from ..workers.plan import Plan
    from ..workers.reports import Report
    from ..workers.trainer import Orders, Outcome

PATIENCE_S = 60.0  # how long the store may be away before the runner gives up, to be started again
LOOK_S = 1.0  # between two looks at what the store wants of the run
REPEATED = ("task", "metrics", "evaluation", "checkpoint")  # kinds of which a resumed run gives some again
SHOWN = ("epoch", "loss", "lr", "rho", "seconds_per_step", "worker_seconds", "accuracy")  # in progress, after the step

Answer = TypeVar("Answer")


class Train(Protocol):
    """What ``workers.trainer.train`` is."""

    def __call__(
        self,
        plan: Plan,
        directory: Storage,
        *,
        on_reports: Callable[[Sequence[Report]], None],
        orders: Callable[[], Orders],
        attempt: int,
        reached: int,
        past: Iterable[Mapping[str, Any]],
    ) -> Outcome: ...


def main() -> int:
    """Run the job named on the command line, and return the exit code."""
    job_id, attempt, settings = sys.argv[1], int(os.environ[ATTEMPT_VARIABLE]), settings_here()
    told = Told([signal.SIGTERM])
    store = Store(settings.store_url)
    try:
        if (code := why_not_to_begin(store, settings, job_id, attempt)) is not None:
            return code
        train = _connected(store)
        told.listen()  # not before: until then there is nothing to write, and SIGTERM ends the process at once
        return run(store, lambda: settings.job_storage(job_id), job_id, attempt, train, told)
    finally:
        store.close()


def why_not_to_begin(store: Store, settings: ServiceSettings, some_id: str, attempt: int) -> int | None:
    """Return the exit code of a runner that has nothing to do here; None: it is to begin."""
    record = patiently(lambda: store.record(some_id))
    if not is_due(record, attempt):
        return 0
    if record.state is State.RUNNING:
        print(f"attempt {attempt} has begun before, and its Ray was lost; the next one goes on", file=sys.stderr)
        return STARTED_TWICE
    runs = runs_of(settings)
    why = why_no_mark(runs) if runs is not None else ""
    if not why:
        return None
    print(why, file=sys.stderr)
    with suppress(MoveRefused, Superseded):  # it was stopped meanwhile
        patiently(lambda: store.move(some_id, State.FAILED, reason=why, attempt=attempt))
    return 0


def settings_here() -> ServiceSettings:
    """Return the settings of this process, and end it with a sentence if nothing says where the store is."""
    if STORE_URL_VARIABLE not in os.environ:
        sys.exit(
            f"{STORE_URL_VARIABLE} is not set where this runner was started. The service doesn't send a URL with a "
            "password to a Ray cluster; set it in the environment of the cluster's head, from the Secret of the service"
        )
    return ServiceSettings.from_environment()


def is_due(job: Stored, attempt: int) -> bool:
    """Say whether this attempt is the one to run: not replaced, paused, cancelled or ended before it came to start."""
    return job.attempt == attempt and job.state in {State.STARTING, State.RUNNING}


def run(store: Store, opened: Callable[[], Storage], job_id: str, attempt: int, train: Train, told: Told) -> int:
    """Train the job and write down how it ended, or that it was stopped; return the exit code.

    Its files lie where ``opened`` says. Whatever the job itself does wrong is an outcome. An exception is a fault of
    what it runs on: it leaves a line in the job's log and an exit code, by which the reconciler knows to start the job
    again; so does a stop that only this process was told of.
    """
    journal = Journal(store, job_id, attempt)
    wanted = Wanted(store, job_id, attempt, told)
    try:
        if wanted.orders().stop:
            return journal.stopped()
        storage = usable(opened, wanted, journal)
        if storage is None:
            return journal.stopped()
        assert isinstance(wanted.record, Job)
        outcome = train(
            wanted.record.spec,
            storage,
            on_reports=journal.add,
            orders=wanted.orders,
            attempt=attempt,
            reached=journal.reached,
            past=journal.past,
        )
        if outcome.stopped:
            return journal.stopped()
        journal.end(outcome)
    except (Superseded, MoveRefused) as refusal:
        print(refusal, file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        line = f"the runner failed with {type(error).__name__}: {error}".splitlines()[0]
        journal.last_words(line)
        return 1
    return 0


class Wanted:
    """What is wanted of the run now: read in the store, at most once a second, and told by signals.

    Attributes:
        record: The job or the sweep, as it was last seen.
    """

    def __init__(self, store: Store, some_id: str, attempt: int, told: Told) -> None:
        self._store, self._attempt, self._told = store, attempt, told
        self.record: Job | Sweep = patiently(lambda: store.record(some_id))
        self._looked_at = time.monotonic()

    @property
    def stop(self) -> str:
        """Why the run is to stop; empty: it is not."""
        return (self.record.reason or self.record.state) if self.record.state in STOPPED_AS else self._told.stop

    def orders(self) -> Orders:
        """Return the newest that is known for a job; raises as ``look``."""
        from ..workers.trainer import Orders

        self.look()
        return Orders(self.record.workers if isinstance(self.record, Job) else None, self.stop)

    def look(self) -> None:
        """Look at the record, unless that was less than a second ago or the store is away.

        Raises:
            Superseded: If it is at another attempt or has ended.
        """
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        try:
            record = self.record = self._store.record(self.record.id)
        except StoreUnavailable:
            return
        finally:
            self._looked_at = time.monotonic()
        if record.attempt != self._attempt or is_final(record.state):
            raise Superseded(record.id, self._attempt, record.attempt, record.state)


class Journal:
    """Writes the reports of one attempt into the store, without what a resumed run reports again.

    Attributes:
        attempt: By whose number it writes.
        progress: What it has last made of the reports.
        past: Data of the elastic events of earlier attempts.
    """

    def __init__(self, store: Store, job_id: str, attempt: int) -> None:
        self._store, self._job_id, self.attempt = store, job_id, attempt
        job = self._job()
        self._running = job.state is not State.STARTING
        self.progress = {name: value for name, value in job.progress.items() if name != "workers"}
        self._once = Once()
        self.past: list[dict[str, Any]] = []
        if job.attempt > 1:
            patiently(self._remember)

    @property
    def reached(self) -> int:
        """The last step that the store has metrics of; 0 before the first."""
        return self._once.reached

    def add(self, reports: Sequence[Report]) -> None:
        """Write new reports, and the progress they make. Raises Superseded or MoveRefused when the job is not ours."""
        self.enter_running()
        new = [(report.kind, report.data) for report in reports if self._once.is_new(report.kind, report.data)]
        if not new:
            return
        for kind, data in new:
            self.progress = advance(self.progress, kind, data)
        patiently(lambda: self._store.append(self._job_id, new, attempt=self.attempt, progress=self.progress))

    def stopped(self) -> int:
        """Write down what a stopped job becomes, and return the exit code: not 0 if the store didn't want it stopped.

        Raises:
            Superseded: If the job is not ours any more.
        """
        while (to := STOPPED_AS.get((job := self._job()).state)) is not None:
            try:
                self._move(to, reason=job.reason)
            except MoveRefused:
                continue  # a cancel came in between
            return 0
        self.last_words("the runner was told to stop; started again, the job goes on from its newest checkpoint")
        return 1

    def end(self, outcome: Outcome, *, version: int | None = None) -> None:
        """Write down how the run ended.

        Raises:
            Superseded, MoveRefused: If the job is not ours to end.
            Changed: If it is not at this version any more.
        """
        self.enter_running()
        to = State.SUCCEEDED if outcome.succeeded else State.FAILED
        result = outcome.result if outcome.succeeded else None
        self._move(to, reason=outcome.reason, result=result, version=version)

    def last_words(self, line: str) -> None:
        """Leave a line in the job's log, if the store still takes it."""
        try:
            self._store.append(self._job_id, [("log", {"worker": "runner", "line": line})], attempt=self.attempt)
        except (StoreUnavailable, Superseded) as error:
            print(error, file=sys.stderr)

    def enter_running(self) -> None:
        """Say that it has begun, once; raises MoveRefused when it is not ours to begin."""
        if self._running:
            return
        try:
            self._move(State.RUNNING)
        except MoveRefused as refusal:
            if refusal.current not in STOPPED_AS:  # one that is to stop may still have something to say
                raise
        self._running = True

    def _job(self) -> Job | Sweep:
        return patiently(lambda: self._store.record(self._job_id))

    def _move(self, to: State, **how: Any) -> None:
        patiently(lambda: self._store.move(self._job_id, to, attempt=self.attempt, **how))

    def _remember(self) -> None:
        """Read what earlier attempts have reported."""
        once, past, after = Once(), [], 0
        while page := self._store.events(self._job_id, after, kinds=(*REPEATED, "elastic")):
            for event in page:
                once.is_new(event.kind, event.data)
                past += [event.data] if event.kind == "elastic" else []
            after = page[-1].seq
        self._once, self.past = once, past


def advance(progress: dict[str, Any], kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the progress after one more report: step, steps, epoch, workers and the newest values."""
    if kind == "task":
        return {**progress, **{name: data[name] for name in ("steps", "steps_per_epoch") if name in data}}
    if kind in {"metrics", "evaluation"}:
        names = ("step", *SHOWN) if kind == "metrics" else ("accuracy",)
        spent = data.get("seconds") or {}
        exchange = {"exchange_seconds": spent["exchange"]} if kind == "metrics" and "exchange" in spent else {}
        return {**progress, **{name: data[name] for name in names if name in data}, **exchange}
    if kind == "elastic":
        return {**progress, "workers": data["workers_after"]}
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


def usable(opened: Callable[[], Storage], wanted: Wanted, journal: Journal) -> Storage | None:
    """Return the storage as soon as files can be written to it, or None if the run is to stop before.

    One that is away costs no job anything but the time: it waits, and its log says for what.

    Raises:
        Superseded: If this runner has no more say.
    """
    told = ""
    while True:
        try:
            storage = opened()
            storage.check()
        except StorageError as error:
            if str(error) != told:
                told = str(error)
                journal.last_words(f"waiting for the storage: {told}")
        else:
            return storage
        wanted.look()
        if wanted.stop:
            return None
        time.sleep(LOOK_S)


def _connected(store: Store) -> Train:
    """Return the trainer, connected to the cluster that started this process; loading both takes seconds."""
    brought.connect(store)

    from ..workers.trainer import train

    return train


if __name__ == "__main__":
    sys.exit(main())
