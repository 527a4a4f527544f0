"""A pool that trains nothing, and a sweep's runner on it: SQLite is real, the rest is played."""

import math
from typing import ClassVar

from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store
from sampa.service.sweeps import runner
from sampa.service.told import Told
from sampa.workers.pool import Heard
from sampa.workers.reports import Report
from sampa.workers.trainer import Outcome


class Killed(BaseException):
    """What ends a runner in the middle."""


def score_of(rho, epoch):
    return 0.9 - 0.1 * math.log(rho / 0.09) ** 2 + 0.01 * epoch


class PlayedPool:
    """Trains by a formula, one epoch of as many runs as there are workers at each look; may be killed at a look."""

    def __init__(self, workers=2, killed_at=None, fails=(), diverges=(), metric="accuracy"):
        self.workers, self.killed_at, self.metric = workers, killed_at, metric
        self.fails, self.diverges = fails, diverges
        self.runs, self.looks, self.closed = {}, 0, False

    reached: ClassVar[dict] = {}  # of each run's checkpoints, which outlive a pool

    def open(self, key, plan, directory, *, attempt, reached, past, hold_at):
        self.runs[key] = (plan, hold_at)
        self.reached.setdefault(key, 0)

    def knows(self, key):
        return key in self.runs

    def waits_for_room(self):
        return False

    def busy(self, key):
        return int(key in self.runs)

    def drop(self, key):
        del self.runs[key]

    def stop(self, key, why):
        self.runs[key] = (self.runs[key][0], "stop")

    def look(self, turns, yielding=(), wait_s=0.5):
        self.looks += 1
        if self.looks == self.killed_at:
            raise Killed
        stopping = [key for key, (_, hold) in self.runs.items() if hold == "stop"]
        going = [key for key in turns if key in self.runs][: self.workers]
        return {key: self._epoch(key) for key in {*stopping, *going}}

    def close(self):
        self.closed = True

    def _epoch(self, key):
        plan, hold_at = self.runs[key]
        if hold_at in ("stop", "held"):
            del self.runs[key]
            return Heard([], Outcome(False, "stopped", {}, stopped=True, held=hold_at == "held"))
        self.reached[key] += 1
        epoch, rho = self.reached[key], getattr(plan.method, "rho", 0.03)
        if plan.seed in self.fails and epoch > 1:
            del self.runs[key]
            return Heard([], Outcome(False, "its task is broken", {}))
        if plan.seed in self.diverges and epoch > 2:
            del self.runs[key]
            return Heard([], Outcome(False, "its loss is no number any more", {}, diverged=True))
        score = score_of(rho, epoch)
        data = {"step": 16 * epoch, "epoch": float(epoch), "split": "test", self.metric: score, "loss": 1.0}
        reports = [Report("metrics", {"step": 16 * epoch, "seconds_per_step": 0.1}), Report("evaluation", data)]
        outcome = None
        if epoch == plan.epochs:
            outcome = Outcome(True, "", {"state": "SUCCEEDED", "seconds": 1.0})
        elif epoch == hold_at:
            self.runs[key] = (plan, "held")  # which is heard of later than the evaluation
        if outcome is not None:
            del self.runs[key]
        return Heard(reports, outcome)


def counted(spec, trials):
    """A report that costs nothing: its own tests are elsewhere."""
    failed = [{"number": one.number, "reason": one.reason} for one in trials if one.state == "FAILED"]
    counts = {state: sum(one.state == state for one in trials) for state in {str(one.state) for one in trials}}
    nothing = dict.fromkeys(("recommended", "advantage", "baselines", "cost"))
    return {**nothing, "trials": {"failed": failed, "counts": counts}}


def played_place(tmp_path, monkeypatch):
    """Yield a store and settings, where reports cost nothing."""
    settings = ServiceSettings(state_dir=tmp_path)
    store = Store(settings.store_url)
    store.migrate()
    monkeypatch.setattr(PlayedPool, "reached", {})
    monkeypatch.setattr("sampa.service.sweeps.report.report", counted)
    monkeypatch.setattr("sampa.service.sweeps.plot.draw", lambda _, to: to.write(b"drawn"))
    yield store, settings
    store.close()


def run(place, sweep_id, monkeypatch, pool):
    """Run a sweep as its runner would, to its end or until it is killed; return the exit code."""
    store, settings = place
    monkeypatch.setattr("sampa.service.sweeps.trials.pool_of", lambda *_: pool)
    claimed = store.record(sweep_id)
    if claimed.state is State.QUEUED:
        claimed = store.claim(10)
    else:
        claimed = store.move(sweep_id, State.STARTING, reason="again", next_attempt=True)
    return runner.run(store, settings, sweep_id, claimed.attempt, Told([]))


def history(store, sweep_id):
    """Return number, values, state, and the metric's curve of each trial."""
    return [
        (
            trial.part.number,
            trial.part.values,
            trial.state,
            [event.data["accuracy"] for event in store.events(trial.id, kinds=("evaluation",))],
        )
        for trial in store.sweeps.trials(sweep_id)
    ]


def told_reports(monkeypatch):
    """Return what will be the trials of the last report, by number."""
    found = {}

    def report(spec, trials):
        found.clear()
        found.update({one.number: one for one in trials})
        return counted(spec, trials)

    monkeypatch.setattr("sampa.service.sweeps.report.report", report)
    return found


def killed_after(monkeypatch, owner, name, times=1):
    """Have the runner killed as soon as this has been done for the first times."""
    done, act = [], getattr(owner, name)

    def then_killed(*args, **how):
        result = act(*args, **how)
        done.append(name)
        if len(done) <= times:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, then_killed)
