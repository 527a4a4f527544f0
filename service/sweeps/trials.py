"""The trials of a sweep, while its runner trains them: between the study, which decides, and the pool, which trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ...workers.pool import Heard, Pool
from ...workers.storage import Storage, insistently
from ...workers.trainer import Outcome
from ..records import Changed, Event, Job, Sweep
from ..runner import Journal, Wanted, patiently
from ..settings import ServiceSettings
from ..states import Kind, State, is_final
from ..store import Store
from .answer import Answers
from .record import Record
from .spec import Part, gradients_of
from .study import Begin, Done, Effect, GoOn, Point, Stop, Study
from .underway import Underway

PUT_DOWN_S = 50.0  # in which trials write a checkpoint and stop
_AT_ONCE = 2  # trials that are opened beyond those that have a worker
_ROOM = 8  # trials that are begun beyond those that have a worker, where their order is free
_PAGE = 50  # trials whose past is read at a time
_PAST = ("evaluation", "finished", "exploit", "state")  # kinds of events by which a trial's past is told again
_NO_ROOM = "waiting for room: the cluster has too little for the workers of a trial; trials begin as soon as it has"


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
            {number: job.part.values for number, job in self._stored.items() if job.part is not None},
            frozenset(number for number, job in self._stored.items() if job.state is State.SUCCEEDED),
        )
        self._open: dict[int, Underway] = {}
        self._record = Record(store, sweep, attempt, Answers(settings.job_storage(sweep.id)), self._at_work)
        self._pasts: tuple[range, dict[str, list[Event]]] = range(0), {}
        self._waits_told = False

    def train(self) -> Outcome | None:
        """Train; return how the sweep has ended, or None if it is to stop or was asked for more.

        Raises:
            SweepFailed: If its metric is not there.
            Superseded: If this runner has no more say.
        """
        while self._follow():
            if self._study.over:
                return self._end()
            if (limit := self._spec.budget.wall_s) is not None and self._record.seconds > limit:
                self._study.halt(f"the budget of {limit:g} s is used up")
            if self._study.halted:
                return self._cut_off()
            self._train_some()
            self._note()
        return None

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
        """Have all trials stop with a checkpoint, and wait for the next runner, or for this one; write the report of
        what there is meanwhile, since whoever cancels doesn't wait for long."""
        self._lay_down(why, self._record.leave)
        self._record.note(at_once=True)

    def leave(self) -> None:
        """Write the report of what there is."""
        self._record.leave()

    # What the study decides

    def _follow(self) -> bool:
        """Do what the study decides; return False once the sweep is to stop or was asked for more."""
        self._study.room = self._pool.workers + _ROOM
        while effects := self._study.advance():
            for effect in effects:
                self._do(effect)
                self._wanted.look()
                if self._wanted.stop:
                    return False
        if self._study.over:
            return True
        self._wanted.look()
        return not self._wanted.stop and not self.asked_for_more()

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
        job = self._stored.get(part.number) or self._new(part)
        trial = self._open[part.number] = Underway(job, job.spec, hold_at)
        self._recall(trial)

    def _new(self, part: Part) -> Job:
        """Store a new trial. Values that contradict each other, which nobody could foresee, make one that has failed:
        its job is that of the first values, since there is none of these."""
        try:
            return self._record.begin(part, self._spec.job_of(part))
        except ValidationError as error:
            why = error.errors()[0]["msg"]
        name = f"{self._spec.name}-{part.number}"
        return self._record.begin(part, self._spec.example.model_copy(update={"name": name, "seed": part.seed}), why)

    def _recall(self, trial: Underway) -> None:
        """Tell the study what the store knows of a trial."""
        over = is_final(trial.job.state)
        for event in self._past(trial):
            match event.kind:
                case "evaluation":
                    self._evaluated(trial, event.data)
                case "finished" if trial.job.state is not State.STOPPED:  # before that, in the order that counts
                    told = event.data
                    diverged = bool(told.get("diverged"))
                    trial.outcome = Outcome(told["succeeded"], told["reason"], told["result"], diverged=diverged)
                case "exploit":
                    trial.exploits[event.data["epoch"]] = event.data["values"]
                case "state" if event.data["state"] == State.FAILED and not over:
                    trial.outcome = None  # it was to be tried again after that
        if over or trial.outcome is not None:
            self._tell(trial)
            succeeded = trial.outcome.succeeded if trial.outcome and not over else trial.job.state is not State.FAILED
            self._study.ended(trial.part.number, failed=not succeeded, diverged=trial.diverged)
        elif trial.at_hold and self._is_saved(trial, trial.at_hold.epoch):
            self._tell(trial)

    def _past(self, trial: Underway) -> list[Event]:
        """Return the events of a trial that there was already; they are begun by number, and read by many at once."""
        number = trial.part.number
        if number not in self._stored:
            return []
        if number not in self._pasts[0]:
            page = range(number, number + _PAGE)
            self._pasts = page, patiently(lambda: self._store.sweeps.history(self._id, page, _PAST))
        return self._pasts[1].pop(trial.key, [])

    def _is_saved(self, trial: Underway, epoch: float) -> bool:
        """Say whether the state that a trial had after this epoch is there, for whoever goes on from it."""
        from ...workers.checkpoints import name_of

        names = insistently((self._settings.job_storage(trial.key) / "checkpoints").names)
        return name_of(trial.steps[epoch]) in names

    def _stop(self, number: int, epoch: float) -> None:
        trial = self._open.pop(number)
        if self._pool.knows(trial.key):
            self._pool.drop(trial.key)
        trial.points = [point for point in trial.points if point.epoch <= epoch]
        if is_final(trial.job.state):
            self._record.count(trial, trial.job.state, trial.job.reason)
            return
        trial.outcome = None  # to which it would not have come
        result = {self._spec.metric: trial.points[-1].score, "epochs": epoch}
        reason = f"stopped early after {epoch:g} epochs by {self._spec.scheduler.name}"
        self._record.end(trial, State.STOPPED, reason, result)

    def _done(self, number: int) -> None:
        trial = self._open.pop(number)
        if is_final(trial.job.state):
            self._record.count(trial, trial.job.state, trial.job.reason)
            return
        assert trial.outcome is not None
        self._started(trial).enter_running()
        to = State.SUCCEEDED if trial.outcome.succeeded else State.FAILED
        again_the_same = {"diverged": True} if trial.diverged else None
        result = trial.outcome.result if trial.outcome.succeeded else again_the_same
        self._record.end(trial, to, trial.outcome.reason, result)

    def _go_on(self, part: Part, epoch: float, hold_at: float | None, source: int | None) -> None:
        trial = self._open[part.number]
        trial.hold_at, trial.held = hold_at, False
        if source is None:
            return
        values = trial.exploits.get(epoch, part.values)
        trial.changes = (*self._open[source].history, (epoch, values))
        if epoch in trial.exploits:
            return
        from ...workers.checkpoints import adopt

        spec = self._spec.job_of(part)
        of, step = self._settings.job_storage(self._open[source].key), self._open[source].steps[epoch]
        to = self._settings.job_storage(trial.key)
        insistently(lambda: adopt(of, to, spec.training_part(), step))
        event = {"epoch": epoch, "source": source, "before": trial.values, "values": values}
        told = [("exploit", {"number": part.number, **event})]
        attempt, replace = self._started(trial).attempt, self._store.sweeps.replace_spec
        trial.job = patiently(lambda: replace(trial.key, attempt, spec, [("exploit", event)], told))
        trial.spec = spec
        trial.exploits[epoch] = values
        self._wait(trial, f"goes on from the state of trial {source}")

    # What the pool does

    def _train_some(self) -> None:
        turns = [n for n, trial in self._open.items() if self._can_train(trial)]
        turns.sort(key=lambda number: (self._study.awaits(number), number))  # last, who may train for nothing
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

    def _lay_down(self, why: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Have all trials stop with a checkpoint, and do something while they write it."""
        deadline = time.monotonic() + PUT_DOWN_S
        for trial in self._open.values():
            if self._pool.knows(trial.key):
                self._pool.stop(trial.key, why)
        meanwhile()
        while any(self._pool.busy(trial.key) for trial in self._open.values()) and time.monotonic() < deadline:
            self._listen([])
        for trial in self._open.values():
            if self._pool.knows(trial.key):
                self._pool.drop(trial.key)
                self._wait(trial, why)

    def _can_train(self, trial: Underway) -> bool:
        return trial.outcome is None and not trial.held and not is_final(trial.job.state)

    def _give(self, trial: Underway) -> None:
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

    def _started(self, trial: Underway) -> Journal:
        """Return the journal of a trial, at its next attempt unless it has begun."""
        if trial.journal is None:
            trial.job = patiently(lambda: self._store.sweeps.begin_trial(trial.key, self._attempt))
            trial.journal = Journal(self._store, trial.key, trial.job.attempt)
        return trial.journal

    def _wait(self, trial: Underway, why: str) -> None:
        """Let a trial wait for its turn."""
        if trial.journal is not None:
            attempt = trial.journal.attempt
            patiently(lambda: self._store.move(trial.key, State.QUEUED, reason=why, attempt=attempt))
            trial.journal = None

    def _heard(self, trial: Underway, heard: Heard) -> None:
        journal = self._started(trial)
        journal.add(heard.reports)
        for report in heard.reports:
            if report.kind == "evaluation":
                self._evaluated(trial, report.data)
        outcome = heard.outcome
        if outcome is None:
            return
        if outcome.stopped:
            trial.held = outcome.held
            self._wait(trial, outcome.reason)
            if trial.held:
                self._tell(trial)
            return
        self._tell(trial)
        trial.outcome = outcome
        data = {name: getattr(outcome, name) for name in ("succeeded", "reason", "result", "diverged")}
        patiently(lambda: self._store.append(trial.key, [("finished", data)], attempt=journal.attempt))
        self._study.ended(trial.part.number, failed=not outcome.succeeded, diverged=outcome.diverged)

    def _evaluated(self, trial: Underway, data: dict[str, Any]) -> None:
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

    def _tell(self, trial: Underway) -> None:
        """Tell the study of the point that was kept back, if there is one."""
        point, trial.at_hold = trial.at_hold, None
        if point is not None:
            self._study.measured(trial.part.number, point)

    # Progress and the end

    def _at_work(self) -> dict[str, int]:
        running = sum(self._pool.busy(trial.key) > 0 for trial in self._open.values())
        return {"running": running, "workers": self._pool.workers, "gradients": round(self._study.gradients)}

    def _note(self) -> None:
        waits = self._pool.waits_for_room() and not self._waits_told
        self._record.note(_NO_ROOM if waits else "", at_once=waits)
        self._waits_told |= waits

    def _end(self) -> Outcome:
        report = self._record.answer()
        self._record.note(at_once=True)
        trials = [*self._record.measured.values()]
        failed = [one for one in trials if one.state == State.FAILED]
        if failed and len(failed) == len(trials):
            return Outcome(False, f"all {len(failed)} trials failed; the first because {failed[0].reason}", {})
        result = {name: report[name] for name in ("recommended", "advantage", "baselines", "cost")}
        return Outcome(True, self._study.halted, {**result, "progress": self._record.progress()})

    def _cut_off(self) -> Outcome:
        """End the sweep with what its trials have come to.

        Those that have not ended are cancelled with it, and go on if it is extended, as if nothing had been: until then
        they count as stopped where they are. So are those that have, but might have been stopped before.
        """
        self._lay_down(self._study.halted)
        for number, trial in [*self._open.items()]:
            failed = trial.outcome is not None and not trial.outcome.succeeded
            ended = trial.outcome is not None and not self._study.awaits(number)
            if failed or ended or is_final(trial.job.state):
                self._done(number)
            elif trial.points:
                self._record.count(trial, State.CANCELLED, self._study.halted)
        return self._end()

    # What is stored

    def _all_stored(self) -> list[Job]:
        found: list[Job] = []
        while page := self._store.sweeps.trials(self._id, found[-1].part.number if found and found[-1].part else -1):
            found += page
        return found

    def _last_asked(self) -> int:
        """Return the number of the newest event by which the sweep was asked for more; 0 if it wasn't."""
        asked = patiently(lambda: self._store.events(self._id, self._asked, kinds=("extend", "retry")))
        return asked[-1].seq if asked else self._asked
