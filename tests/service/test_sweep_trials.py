"""A sweep's trials between the study, the store and a pool that trains nothing: SQLite is real, the rest is played."""

import json
import math
from typing import ClassVar

import pytest
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store
from sampa.service.sweeps import runner
from sampa.service.sweeps.trials import Trials
from sampa.service.told import Told
from sampa.workers.pool import Heard
from sampa.workers.reports import Report
from sampa.workers.trainer import Outcome

from .sweeps import sweep_of


class Killed(BaseException):
    """What ends a runner in the middle."""


def score_of(rho, epoch):
    return 0.9 - 0.1 * math.log(rho / 0.09) ** 2 + 0.01 * epoch


class PlayedPool:
    """Trains by a formula, one epoch of as many runs as there are workers at each look; may be killed at a look."""

    def __init__(self, workers=2, killed_at=None, fails=(), metric="accuracy"):
        self.workers, self.killed_at, self.fails, self.metric = workers, killed_at, fails, metric
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
            reason = "stopped" if hold_at == "stop" else f"held at step {16 * self.reached[key]}"
            return Heard([], Outcome(False, reason, {}, stopped=True))
        self.reached[key] += 1
        epoch, rho = self.reached[key], getattr(plan.method, "rho", 0.03)
        if plan.seed in self.fails and epoch > 1:
            del self.runs[key]
            return Heard([], Outcome(False, "its task is broken", {}))
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


@pytest.fixture
def place(tmp_path, monkeypatch):
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


KINDS = {
    "grid": {"search": "grid"},
    "tpe": {"search": "tpe", "trials": 12},
    "seeds": {"search": "random", "trials": 3, "seeds": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_that_is_killed_again_and_again_comes_to_the_same(place, monkeypatch, kind):
    store, settings = place
    calm, _ = store.sweeps.submit(sweep_of(**KINDS[kind]))
    assert run(place, calm.id, monkeypatch, PlayedPool()) == 0
    other, _ = store.sweeps.submit(sweep_of(**KINDS[kind]))
    for killed_at in (2, 7, 12, 9):
        with pytest.raises(Killed):
            run(place, other.id, monkeypatch, PlayedPool(workers=3, killed_at=killed_at))
    assert run(place, other.id, monkeypatch, PlayedPool(workers=1)) == 0
    assert history(store, other.id) == history(store, calm.id)
    assert store.record(other.id).state is State.SUCCEEDED
    report = json.loads((settings.job_storage(other.id).path / "report.json").read_text())
    assert report["trials"]["counts"] == {"SUCCEEDED": other.spec.trial_count}
    assert (settings.job_storage(other.id).path / "report.png").exists()


def test_early_stops_are_those_of_the_calm_sweep(place, monkeypatch):
    store, _ = place
    asked = {"search": "random", "scheduler": {"name": "asha"}, "trials": 20}
    ended = []
    for workers, kills in ((2, ()), (4, (3, 9, 20))):
        sweep, _ = store.sweeps.submit(sweep_of(**asked))
        for killed_at in kills:
            with pytest.raises(Killed):
                run(place, sweep.id, monkeypatch, PlayedPool(workers, killed_at))
        assert run(place, sweep.id, monkeypatch, PlayedPool(workers)) == 0
        trials = store.sweeps.trials(sweep.id)
        ended.append([(one.part.values, one.state, (one.result or {}).get("epochs")) for one in trials])
    assert ended[0] == ended[1]
    assert sum(state is State.STOPPED for _, state, _ in ended[0]) >= 8


def test_failed_trials_don_t_keep_the_others_and_are_tried_again_when_asked(place, monkeypatch):
    store, settings = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=4, seeds=2, baselines=["sgd"]))
    assert run(place, sweep.id, monkeypatch, PlayedPool(fails=(1,))) == 0
    assert [state for _, _, state, _ in history(store, sweep.id)] == [State.SUCCEEDED, State.FAILED] * 5
    report = json.loads((settings.job_storage(sweep.id).path / "report.json").read_text())
    assert {one["reason"] for one in report["trials"]["failed"]} == {"its task is broken"}
    store.sweeps.retry(sweep.id)
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert {state for _, _, state, _ in history(store, sweep.id)} == {State.SUCCEEDED}


def test_a_sweeps_events_tell_of_each_trial_when_it_begins_and_when_it_ends(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=2, baselines=["sgd"]))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    told = [event.data for event in store.events(sweep.id, kinds=("trial",))]
    for trial in store.sweeps.trials(sweep.id):
        of_it = [data for data in told if data["number"] == trial.part.number]
        assert [data["state"] for data in of_it] == [State.QUEUED, State.SUCCEEDED]
        what = (trial.part.configuration, trial.part.baseline, trial.part.values, trial.part.seed)
        for data in of_it:
            assert (data["configuration"], data["baseline"], data["values"], data["seed"]) == what
        assert of_it[1]["accuracy"] == history(store, sweep.id)[trial.part.number][3][-1]


def test_an_extended_sweep_is_what_a_longer_one_would_have_been(place, monkeypatch):
    store, _ = place
    short, _ = store.sweeps.submit(sweep_of(search="tpe", trials=6))
    assert run(place, short.id, monkeypatch, PlayedPool()) == 0
    store.sweeps.extend(short.id, trials=12)
    assert run(place, short.id, monkeypatch, PlayedPool()) == 0
    long, _ = store.sweeps.submit(sweep_of(search="tpe", trials=12))
    assert run(place, long.id, monkeypatch, PlayedPool()) == 0
    assert history(store, short.id) == history(store, long.id)


def test_a_metric_that_is_not_there_fails_the_sweep_with_what_is(place, monkeypatch):
    store, _ = place
    spec = sweep_of(search="random")
    base = {**spec.base, "task": {"entrypoint": "own:task"}}
    sweep, _ = store.sweeps.submit(sweep_of(search="random", base=base, metric="f1"))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    ended = store.record(sweep.id)
    assert ended.state is State.FAILED
    assert "metric f1 is not among what the task's evaluations report: accuracy, loss" in ended.reason
    assert ended.attempt == 1


def test_what_is_asked_for_in_the_moment_of_the_end_is_done(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=2))
    ends = Trials.version_to_end
    late = []

    def extended(trials):
        version = ends(trials)
        if not late:
            late.append(store.sweeps.extend(sweep.id, trials=4))
        return version

    monkeypatch.setattr(Trials, "version_to_end", extended)
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert store.record(sweep.id).state is State.SUCCEEDED
    assert len(store.sweeps.trials(sweep.id)) == 4 + 2


def test_a_population_goes_on_when_all_of_it_are_held(place, monkeypatch):
    store, _ = place
    pool, copied = PlayedPool(workers=3), []

    def adopt(source, target, _, step):
        assert not pool.knows(source.name), "its state may still be on its way"
        assert not pool.knows(target.name), "it would write its own state over the other's"
        assert pool.reached[source.name] == pool.reached[target.name] == step // 16
        copied.append((source.name, target.name))

    monkeypatch.setattr("sampa.workers.checkpoints.adopt", adopt)
    asked = {"search": "random", "scheduler": {"name": "pbt", "every_epochs": 2}, "trials": 6}
    sweep, _ = store.sweeps.submit(sweep_of(**asked))
    assert run(place, sweep.id, monkeypatch, pool) == 0
    assert {(state, len(curve)) for _, _, state, curve in history(store, sweep.id)} == {(State.SUCCEEDED, 9)}
    assert len(copied) >= 4


def test_a_population_whose_metric_is_no_number_goes_on(place, monkeypatch):
    store, _ = place
    monkeypatch.setattr("tests.service.test_sweep_trials.score_of", lambda rho, epoch: math.nan if rho > 0.1 else rho)
    asked = {"search": "random", "scheduler": {"name": "pbt", "every_epochs": 2}, "trials": 6}
    monkeypatch.setattr("sampa.workers.checkpoints.adopt", lambda *_: None)
    sweep, _ = store.sweeps.submit(sweep_of(**asked))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert {state for _, _, state, _ in history(store, sweep.id)} == {State.SUCCEEDED}


def test_a_sweep_that_is_paused_puts_its_trials_down(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="tpe"))
    pool = PlayedPool()
    look = pool.look

    def pausing(turns, yielding=(), wait_s=0.5):
        if pool.looks == 4:
            store.sweeps.pause(sweep.id)
        return look(turns, yielding, wait_s)

    pool.look = pausing
    monkeypatch.setattr("sampa.service.runner.LOOK_S", 0.0)
    assert run(place, sweep.id, monkeypatch, pool) == 0
    assert store.record(sweep.id).state is State.PAUSED
    assert {trial.state for trial in store.sweeps.trials(sweep.id)} <= {State.QUEUED, State.SUCCEEDED}
    store.sweeps.resume(sweep.id)
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert {trial.state for trial in store.sweeps.trials(sweep.id)} == {State.SUCCEEDED}


def test_the_budget_of_time_ends_a_sweep_with_what_it_has(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=50, budget={"wall_s": 1e-6}))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    ended = store.record(sweep.id)
    assert (ended.state, ended.reason) == (State.SUCCEEDED, "the budget of 1e-06 s is used up")


def test_a_runner_that_was_replaced_writes_no_more(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random"))
    pool = PlayedPool()
    look = pool.look

    def replaced(turns, yielding=(), wait_s=0.5):
        if pool.looks == 3:
            store.move(sweep.id, State.STARTING, reason="another", next_attempt=True)
        return look(turns, yielding, wait_s)

    pool.look = replaced
    assert run(place, sweep.id, monkeypatch, pool) == 0
    assert store.record(sweep.id).state is State.STARTING
    assert pool.closed
