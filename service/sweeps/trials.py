"""The trials of a sweep, while its runner trains them: between the study, which decides, and the pool, which trains."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ...workers.pool import Heard, Pool
from ...workers.storage import Storage, insistently
from ...workers.trainer import Outcome
from ..records import Changed, Job, StoreUnavailable, Sweep
from ..runner import Journal, Wanted, patiently
from ..settings import ServiceSettings
from ..specs import JobSpec
from ..states import Kind, State, is_final
from ..store import Store
from .answer import Answers
from .results import Measured
from .space import values_in
from .spec import Part, gradients_of
from .study import Begin, Done, Effect, GoOn, Point, Stop, Study

PUT_DOWN_S = 50.0  # in which trials write a checkpoint and stop
PROGRESS_S = 1.0  # between two notes of the sweep's progress
_AT_ONCE = 2  # trials that are opened beyond those that have a worker


class SweepFailed(Exception):
    """The sweep can't come to anything, whatever its trials do."""

    def __init__(self, reason: str) -> None:
        self.outcome = Outcome(False, reason, {})
        super().__init__(reason)


def pool_of(sweep: Sweep, storage: Storage) -> Pool:
    """Return a pool with workers as the sweep's trials need them."""
    workers = sweep.spec.example.workers
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return Pool(resources, storage, sweep.spec.workers)


@dataclass
class _Trial:
    """A trial that the study has begun."""

    job: Job
    spec: JobSpec
    hold_at: float | None
    journal: Journal | None = None
    outcome: Outcome | None = None  # how its training has ended, while the study has not come to it
    held: bool = False
    at_hold: Point | None = None  # what the study is told once the trial is held there
    validates: bool = False
    points: list[Point] = field(default_factory=list)
    steps: dict[float, int] = field(default_factory=dict)  # by the epoch of each point
    changed_at: set[float] = field(default_factory=set)  # epochs after which it has gone on from another's state

    @property
    def key(self) -> str:
        return self.job.id

    @property
    def part(self) -> Part:
        assert self.job.part is not None
        return self.job.part

    @property
    def values(self) -> dict[str, Any]:
        """The searched fields as they are now."""
        return values_in(self.spec.model_dump(mode="json", by_alias=True), self.part.values)


class Trials:
    """Trains what the study begins, and tells it what comes of it, until all is done or something else is wanted.

    Args:
        store: Where everything is written.
        settings: Of the service.
        wanted: The sweep, and what is wanted of it.
        attempt: Of the sweep's runner.
        pool: Of workers.
    """

    def __init__(self, store: Store, settings: ServiceSettings, wanted: Wanted, attempt: int, pool: Pool) -> None:
        self._store, self._settings, self._wanted, self._attempt, self._pool = store, settings, wanted, attempt, pool
        self._id, self._asked = wanted.record.id, 0
        self._asked = self._last_asked()  # before the sweep itself: what is asked for in between is seen later
        sweep = patiently(lambda: store.sweeps.get(self._id))
        self._spec, self._version = sweep.spec, sweep.version
        self._stored = {job.part.number: job for job in self._all_stored() if job.part is not None}
        self._study = Study(
            self._spec,
            {n: job.part.values for n, job in self._stored.items() if job.part and job.part.configuration is not None},
            frozenset(n for n, job in self._stored.items() if job.state is State.SUCCEEDED),
        )
        self._open: dict[int, _Trial] = {}
        self._measured: dict[int, Measured] = {}
        self._answers = Answers(settings.job_storage(sweep.id))
        self._before_s = float(sweep.progress.get("seconds") or 0.0)
        self._began = time.monotonic()
        self._noted_at, self._waits_told = 0.0, False

    def train(self) -> Outcome | None:
        """Train; return how the sweep has ended, or None if it is to stop or was asked for more.

        Raises:
            SweepFailed: If its metric is not there.
            Superseded: If this runner has no more say.
        """
        while True:
            while effects := self._study.advance():
                for effect in effects:
                    self._do(effect)
            if self._study.over:
                return self._end()
            self._wanted.look()
            if self._wanted.stop or self.asked_for_more():
                return None
            if self._seconds > (self._spec.budget.wall_s or math.inf):
                return self._out_of_time()
            self._train_some()
            self._note()

    def asked_for_more(self) -> bool:
        """Say whether the sweep was extended, or its failed trials are to be tried again, since this began."""
        version = self._wanted.record.version
        if version == self._version:
            return False
        self._version = version
        return self._last_asked() != self._asked

    def drop(self) -> None:
        """Let go of the trials that still train, as they stand."""
        for trial in self._open.values():
            if self._pool.knows(trial.key):
                self._pool.drop(trial.key)

    def version_to_end(self) -> int:
        """Return the version at which the sweep may be ended: what was asked for since has made another one.

        Raises:
            Changed: If something was asked for already.
        """
        sweep = patiently(lambda: self._store.sweeps.get(self._id))
        if self._last_asked() != self._asked:
            raise Changed(self._id, self._version, sweep.version, Kind.SWEEP)
        return sweep.version

    def put_down(self, why: str) -> None:
        """Have all trials stop with a checkpoint, and wait for the next runner, or for this one."""
        for trial in self._open.values():
            if self._pool.knows(trial.key):
                self._pool.stop(trial.key, why)
        deadline = time.monotonic() + PUT_DOWN_S
        while any(self._pool.busy(trial.key) for trial in self._open.values()) and time.monotonic() < deadline:
            self._listen([])
        for trial in self._open.values():
            if self._pool.knows(trial.key):
                self._pool.drop(trial.key)
                self._wait(trial, why)
        self._note(at_once=True)

    # What the study decides

    def _do(self, effect: Effect) -> None:
        match effect:
            case Begin(part, hold_at):
                self._begin(part, hold_at)
            case Stop(number, epoch):
                self._stop(number, epoch)
            case Done(number):
                self._done(number)
            case GoOn(part, epoch, hold_at, source):
                self._go_on(part, epoch, hold_at, source)

    def _begin(self, part: Part, hold_at: float | None) -> None:
        job = self._stored.get(part.number)
        if job is None:
            try:
                spec = self._spec.job_of(part)
            except ValidationError as error:  # values that contradict each other, which nobody could foresee
                self._refuse(part, error.errors()[0]["msg"])
                return
            job = patiently(lambda: self._store.sweeps.add_trial(self._id, part, spec, self._attempt))
            self._say_of(part, State.QUEUED, {})
        trial = self._open[part.number] = _Trial(job, job.spec, hold_at)
        self._recall(trial)

    def _refuse(self, part: Part, reason: str) -> None:
        """Count a trial as failed that can't be trained at all."""
        said = (part.number, part.configuration, part.baseline, part.values, part.seed)
        self._measured[part.number] = Measured(*said, State.FAILED, reason, (), full=False, seconds=0.0, gradients=0)
        self._say_of(part, State.FAILED, {"reason": reason})
        self._study.ended(part.number, failed=True)

    def _recall(self, trial: _Trial) -> None:
        """Tell the study what the store knows of a trial."""
        after = 0
        while page := self._store.events(trial.key, after, kinds=("evaluation", "finished", "exploit")):
            for event in page:
                match event.kind:
                    case "evaluation":
                        self._evaluated(trial, event.data)
                    case "finished" if not is_final(trial.job.state):
                        trial.outcome = Outcome(event.data["succeeded"], event.data["reason"], event.data["result"])
                    case "exploit":
                        trial.changed_at.add(event.data["epoch"])
            after = page[-1].seq
        if trial.outcome is None and trial.at_hold and self._is_saved(trial, trial.at_hold.epoch):
            self._tell(trial)
        if trial.outcome is not None and not trial.outcome.succeeded:
            trial.outcome = None  # it is tried again
        if is_final(trial.job.state) or trial.outcome is not None:
            self._tell(trial)
            failed = trial.job.state in {State.FAILED, State.CANCELLED}
            self._study.ended(trial.part.number, failed=failed)

    def _is_saved(self, trial: _Trial, epoch: float) -> bool:
        """Say whether the state that a trial had after this epoch is there, for whoever goes on from it."""
        from ...workers.checkpoints import name_of

        names = insistently((self._settings.job_storage(trial.key) / "checkpoints").names)
        return name_of(trial.steps[epoch]) in names

    def _stop(self, number: int, epoch: float) -> None:
        trial = self._open.pop(number)
        if self._pool.knows(trial.key):
            self._pool.drop(trial.key)
        at = next(point for point in trial.points if point.epoch == epoch)
        if not is_final(trial.job.state):
            reason = f"stopped early after {epoch:g} epochs by {self._spec.scheduler.name}"
            self._close(trial, State.STOPPED, reason, {self._spec.metric: at.score, "epochs": epoch})
        trial.points = [point for point in trial.points if point.epoch <= epoch]
        self._settle(trial, State.STOPPED, "")

    def _done(self, number: int) -> None:
        trial = self._open.pop(number, None)
        if trial is None:
            return
        state, reason = trial.job.state, trial.job.reason
        if not is_final(state):
            assert trial.outcome is not None
            self._started(trial).end(trial.outcome)
            state = State.SUCCEEDED if trial.outcome.succeeded else State.FAILED
            reason = trial.outcome.reason
        self._settle(trial, state, reason)

    def _go_on(self, part: Part, epoch: float, hold_at: float | None, source: int | None) -> None:
        trial = self._open[part.number]
        trial.hold_at, trial.held = hold_at, False
        if source is None or epoch in trial.changed_at:
            return
        from ...workers.checkpoints import adopt

        spec = self._spec.job_of(part)
        of, step = self._settings.job_storage(self._open[source].key), self._open[source].steps[epoch]
        to = self._settings.job_storage(trial.key)
        insistently(lambda: adopt(of, to, spec.training_part(), step))
        event = {"epoch": epoch, "source": source, "before": trial.values, "values": part.values}
        attempt = self._started(trial).attempt
        trial.job = patiently(lambda: self._store.sweeps.replace_spec(trial.key, attempt, spec, [("exploit", event)]))
        trial.spec = spec
        trial.changed_at.add(epoch)
        self._wait(trial, f"goes on from the state of trial {source}")

    # What the pool does

    def _train_some(self) -> None:
        turns = [n for n, trial in sorted(self._open.items()) if self._can_train(trial)]
        places = self._pool.workers + _AT_ONCE
        for number in turns[:places]:
            if not self._pool.knows(self._open[number].key):
                self._give(self._open[number])
        self._listen(turns)

    def _listen(self, turns: list[int]) -> None:
        keys = {self._open[n].key: n for n in self._open}
        known = [self._open[n].key for n in turns if self._pool.knows(self._open[n].key)]
        yielding = [self._open[n].key for n in turns if self._study.awaits(n)]
        for key, heard in self._pool.look(known, yielding).items():
            if key in keys:
                self._heard(self._open[keys[key]], heard)

    def _can_train(self, trial: _Trial) -> bool:
        return trial.outcome is None and not trial.held and not is_final(trial.job.state)

    def _give(self, trial: _Trial) -> None:
        journal = self._started(trial)
        self._pool.open(
            trial.key,
            trial.spec,
            self._settings.job_storage(trial.key),
            attempt=journal.attempt,
            reached=journal.reached,
            past=journal.past,
            hold_at=trial.hold_at,
        )

    def _started(self, trial: _Trial) -> Journal:
        """Return the journal of a trial, at its next attempt unless it has begun."""
        if trial.journal is None:
            trial.job = patiently(lambda: self._store.sweeps.begin_trial(trial.key, self._attempt))
            trial.journal = Journal(self._store, trial.key, trial.job.attempt)
        return trial.journal

    def _heard(self, trial: _Trial, heard: Heard) -> None:
        journal = self._started(trial)
        journal.add(heard.reports)
        for report in heard.reports:
            if report.kind == "evaluation":
                self._evaluated(trial, report.data)
        outcome = heard.outcome
        if outcome is None:
            return
        if outcome.stopped:
            trial.held = outcome.reason.startswith("held")
            self._wait(trial, outcome.reason)
            if trial.held:
                self._tell(trial)
            return
        self._tell(trial)
        trial.outcome = outcome
        data = {"succeeded": outcome.succeeded, "reason": outcome.reason, "result": outcome.result}
        patiently(lambda: self._store.append(trial.key, [("finished", data)], attempt=journal.attempt))
        self._study.ended(trial.part.number, failed=not outcome.succeeded)

    def _evaluated(self, trial: _Trial, data: dict[str, Any]) -> None:
        """Tell the study of an evaluation; of the validation set, where there is one, else of the test set.

        Of one after which the trial is held, once it is: not before is its state there, for others to go on from.
        """
        trial.validates |= data["split"] == "validation"
        if trial.validates and data["split"] != "validation":
            return
        if self._spec.metric not in data:
            reported = sorted(set(data) - {"step", "epoch", "split"})
            raise SweepFailed(
                f"metric {self._spec.metric} is not among what the task's evaluations report: {', '.join(reported)}; "
                f"name one of those as metric, or have the task report it"
            )
        if data["epoch"] in trial.steps:
            return
        score = data[self._spec.metric]
        score = math.nan if score is None else float(score)  # the store knows no number that is not finite
        trial.steps[data["epoch"]] = data["step"]
        self._tell(trial)
        trial.points.append(Point(data["epoch"], score, data["step"] * gradients_of(trial.spec)))
        trial.at_hold = trial.points[-1]
        if trial.hold_at is None or data["epoch"] < trial.hold_at:
            self._tell(trial)

    def _tell(self, trial: _Trial) -> None:
        """Tell the study of the point that was kept back, if there is one."""
        point, trial.at_hold = trial.at_hold, None
        if point is not None:
            self._study.measured(trial.part.number, point)

    # What is written down

    def _wait(self, trial: _Trial, why: str) -> None:
        """Let a trial wait for its turn."""
        if trial.journal is not None:
            attempt = trial.journal.attempt
            patiently(lambda: self._store.move(trial.key, State.QUEUED, reason=why, attempt=attempt))
            trial.journal = None

    def _close(self, trial: _Trial, to: State, reason: str, result: dict[str, Any]) -> None:
        attempt = trial.journal.attempt if trial.journal else trial.job.attempt
        patiently(lambda: self._store.move(trial.key, to, reason=reason, attempt=attempt, result=result))

    def _settle(self, trial: _Trial, state: State, reason: str) -> None:
        """Take a trial that has ended into the answer."""
        measured = self._as_measured(trial, state, reason)
        self._measured[trial.part.number] = measured
        last = measured.curve[-1][1] if measured.curve else None
        if trial.job.part and not is_final(trial.job.state):
            self._say_of(trial.part, state, {self._spec.metric: last, "reason": reason})
        self._answers.write(self._spec, [*self._measured.values()])

    def _as_measured(self, trial: _Trial, state: State, reason: str) -> Measured:
        progress = trial.job.progress if trial.journal is None else trial.journal.progress
        seconds = (progress.get("step") or 0) * (progress.get("seconds_per_step") or 0.0)
        part = trial.part
        return Measured(
            number=part.number,
            configuration=part.configuration,
            baseline=part.baseline,
            values=trial.values,
            seed=part.seed,
            state=state,
            reason=reason,
            curve=tuple((point.epoch, point.score) for point in trial.points if math.isfinite(point.score)),
            full=state is State.SUCCEEDED,
            seconds=round(seconds, 3),
            gradients=round(trial.points[-1].gradients) if trial.points else 0,
        )

    def _note(self, *, at_once: bool = False) -> None:
        """Write down the sweep's progress, now and then."""
        if not at_once and time.monotonic() - self._noted_at < PROGRESS_S:
            return
        self._noted_at = time.monotonic()
        waits = self._pool.waits_for_room() and not self._waits_told
        self._waits_told |= waits
        line = "waiting for room: the cluster has none for a worker; trials begin as soon as it has"
        self._say_all([("log", {"worker": "runner", "line": line})] if waits else [])

    def _say_of(self, part: Part, state: State, more: dict[str, Any]) -> None:
        """Write down what became of a trial."""
        what = {
            "configuration": part.configuration,
            "baseline": part.baseline,
            "values": part.values,
            "seed": part.seed,
        }
        self._say("trial", more | {"number": part.number, "state": state} | what)

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        self._say_all([(kind, data)])

    def _say_all(self, batch: list[tuple[str, dict[str, Any]]]) -> None:
        progress = self._progress()
        patiently(lambda: self._store.append(self._id, batch, attempt=self._attempt, progress=progress))

    def _progress(self) -> dict[str, Any]:
        ended = Counter(one.state for one in self._measured.values())
        at_work = sum(self._pool.busy(trial.key) > 0 for trial in self._open.values())
        return {
            "trials": self._spec.trial_count,
            "ended": ended.total(),
            "running": at_work,
            "failed": ended[State.FAILED],
            "stopped": ended[State.STOPPED],
            "workers": self._pool.workers,
            "best": self._best(),
            "seconds": round(self._seconds, 3),
            "gradients": round(self._study.gradients),
        }

    def _best(self) -> float | None:
        scores = [one.curve[-1][1] for one in self._measured.values() if one.full and one.curve and not one.baseline]
        return (max if self._spec.mode == "max" else min)(scores, default=None)

    @property
    def _seconds(self) -> float:
        return self._before_s + time.monotonic() - self._began

    # The end

    def _end(self) -> Outcome:
        report = self._answers.finish(self._spec, [*self._measured.values()])
        self._note(at_once=True)
        failed = [one for one in self._measured.values() if one.state == State.FAILED]
        if failed and len(failed) == len(self._measured):
            return Outcome(False, f"all {len(failed)} trials failed; the first because {failed[0].reason}", {})
        result = {name: report[name] for name in ("recommended", "advantage", "baselines", "cost")}
        return Outcome(True, self._study.halted, {**result, "progress": self._progress()})

    def _out_of_time(self) -> Outcome:
        """End the sweep with what its trials have come to."""
        limit = self._spec.budget.wall_s
        why = f"the budget of {limit:g} s is used up"
        self._study.halt(why)
        for number, trial in [*self._open.items()]:
            if trial.outcome is not None or is_final(trial.job.state):
                self._done(number)
            elif trial.points:
                self._stop_for(number, trial, why)
        return self._end()

    def _stop_for(self, number: int, trial: _Trial, why: str) -> None:
        if self._pool.knows(trial.key):
            self._pool.drop(trial.key)
        del self._open[number]
        last = trial.points[-1]
        self._close(trial, State.STOPPED, why, {self._spec.metric: last.score, "epochs": last.epoch})
        self._settle(trial, State.STOPPED, why)

    # What is stored

    def _all_stored(self) -> list[Job]:
        found: list[Job] = []
        while page := self._store.sweeps.trials(self._id, found[-1].part.number if found and found[-1].part else -1):
            found += page
        return found

    def _last_asked(self) -> int:
        """Return the number of the newest event by which the sweep was asked for more; 0 if it wasn't."""
        try:
            asked = self._store.events(self._id, self._asked, kinds=("extend", "retry"))
        except StoreUnavailable:
            return self._asked
        return asked[-1].seq if asked else self._asked
