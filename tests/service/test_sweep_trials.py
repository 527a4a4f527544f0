"""A sweep's trials between the study, the store and a pool that trains nothing: kills, failures, populations."""

import json
import math

import pytest
from sampa.service.states import State
from sampa.service.sweep_table import SweepTable

from .played import Killed, PlayedPool, history, killed_after, played_place, run, told_reports
from .sweeps import sweep_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    yield from played_place(tmp_path, monkeypatch)


@pytest.fixture
def reported(monkeypatch):
    return told_reports(monkeypatch)


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


def test_with_one_worker_no_seed_trains_on_before_its_configuration_is_judged(place, monkeypatch):
    store, _ = place
    asked = {"search": "random", "scheduler": "asha", "trials": 6, "seeds": 5, "baselines": []}
    sweep, _ = store.sweeps.submit(sweep_of(**asked))
    assert run(place, sweep.id, monkeypatch, PlayedPool(workers=1)) == 0
    stopped = [trial for trial in store.sweeps.trials(sweep.id) if trial.state is State.STOPPED]
    assert len(stopped) >= 10
    for trial in stopped:
        assert len(store.events(trial.id, kinds=("evaluation",))) == trial.result["epochs"]


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


def test_a_trial_that_diverged_has_failed_with_a_result_and_is_not_tried_again(place, monkeypatch, reported):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=3, seeds=2, baselines=[]))
    assert run(place, sweep.id, monkeypatch, PlayedPool(diverges=(1,))) == 0
    trial = store.sweeps.trial(sweep.id, 1)
    assert (trial.state, trial.reason) == (State.FAILED, "its loss is no number any more")
    assert store.events(trial.id, kinds=("finished",))[0].data["diverged"]
    calm = dict(reported)
    assert [calm[number].diverged for number in range(6)] == [False, True] * 3
    assert store.sweeps.retry(sweep.id).state is State.SUCCEEDED, "the same bits would come again"
    store.sweeps.extend(sweep.id, trials=4)
    assert run(place, sweep.id, monkeypatch, PlayedPool(diverges=(1,))) == 0
    assert {number: reported[number].diverged for number in calm} == {number: calm[number].diverged for number in calm}


@pytest.mark.parametrize("pool", [{"fails": (1,)}, {"diverges": (1,)}])
def test_a_trial_that_failed_while_others_were_behind_is_not_trained_again_after_a_kill(place, monkeypatch, pool):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="tpe", trials=4, seeds=2, baselines=[]))
    for killed_at in (6, 5, 5):
        with pytest.raises(Killed):
            run(place, sweep.id, monkeypatch, PlayedPool(killed_at=killed_at, **pool))
    assert run(place, sweep.id, monkeypatch, PlayedPool(**pool)) == 0
    for trial in store.sweeps.trials(sweep.id):
        assert len(store.events(trial.id, kinds=("finished",))) == 1, trial.part


@pytest.mark.parametrize("write", ["add_trial", "end_trial"])
def test_no_kill_keeps_the_sweep_from_telling_of_a_trial(place, monkeypatch, write):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=2, baselines=[]))
    with monkeypatch.context() as patched:
        killed_after(patched, SweepTable, write)
        with pytest.raises(Killed):
            run(place, sweep.id, monkeypatch, PlayedPool())
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    told = [(event.data["number"], event.data["state"]) for event in store.events(sweep.id, kinds=("trial",))]
    assert sorted(told) == [(n, state) for n in (0, 1) for state in (State.QUEUED, State.SUCCEEDED)]


def test_an_extended_sweep_is_what_a_longer_one_would_have_been(place, monkeypatch):
    store, _ = place
    short, _ = store.sweeps.submit(sweep_of(search="tpe", trials=6))
    assert run(place, short.id, monkeypatch, PlayedPool()) == 0
    store.sweeps.extend(short.id, trials=12)
    assert run(place, short.id, monkeypatch, PlayedPool()) == 0
    long, _ = store.sweeps.submit(sweep_of(search="tpe", trials=12))
    assert run(place, long.id, monkeypatch, PlayedPool()) == 0
    assert history(store, short.id) == history(store, long.id)


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
    monkeypatch.setattr("tests.service.played.score_of", lambda rho, epoch: math.nan if rho > 0.1 else rho)
    asked = {"search": "random", "scheduler": {"name": "pbt", "every_epochs": 2}, "trials": 6}
    monkeypatch.setattr("sampa.workers.checkpoints.adopt", lambda *_: None)
    sweep, _ = store.sweeps.submit(sweep_of(**asked))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert {state for _, _, state, _ in history(store, sweep.id)} == {State.SUCCEEDED}


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
