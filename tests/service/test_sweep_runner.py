"""What a sweep's runner comes to: its budgets, its reports, what it is asked for, and how much it reads and writes."""

import json
import math

import pytest
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Store, StoreUnavailable
from sampa.service.sweep_table import SweepTable
from sampa.service.sweeps.answer import Answers
from sampa.service.sweeps.record import Record
from sampa.service.sweeps.spec import SweepSpec
from sampa.service.sweeps.trials import Trials

from .played import Killed, PlayedPool, history, played_place, run, told_reports
from .sweeps import sweep_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    yield from played_place(tmp_path, monkeypatch)


@pytest.fixture
def reported(monkeypatch):
    return told_reports(monkeypatch)


def test_a_report_has_the_values_as_they_were_suggested(place, monkeypatch, reported):
    store, _ = place
    methods = ["sampa", "sgd", {"name": "sam", "rho": 0.2}]
    base = {name: value for name, value in sweep_of().base.items() if name != "method"}
    sweep, _ = store.sweeps.submit(sweep_of(base=base, space={"method": {"choice": methods}}, search="random"))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert all(one.values["method"] in methods for one in reported.values() if not one.baseline)


def test_what_is_no_number_stays_in_the_curve(place, monkeypatch, reported):
    store, _ = place
    monkeypatch.setattr("tests.service.played.score_of", lambda rho, epoch: math.nan if epoch > 4 else rho)
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=2))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    for one in reported.values():
        assert len(one.curve) == 9
        assert math.isnan(one.result)
    assert store.record(sweep.id).progress["best"] is None


def test_values_that_contradict_each_other_are_a_failed_trial_with_a_page(place, monkeypatch, reported):
    store, _ = place
    composed = SweepSpec.job_of

    def contradicts(spec, part):
        job = composed(spec, part)
        return JobSpec.model_validate(job.model_dump(by_alias=True) | {"epochs": 0}) if part.number == 1 else job

    monkeypatch.setattr(SweepSpec, "job_of", contradicts)
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=3, baselines=[]))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    trial = store.sweeps.trial(sweep.id, 1)
    assert trial.state is State.FAILED
    assert "greater than or equal to 1" in trial.reason
    assert reported[1].values == trial.part.values
    assert store.sweeps.retry(sweep.id).state is State.SUCCEEDED, "nothing else would come of it"
    store.sweeps.extend(sweep.id, trials=4)
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    told = [event.data for event in store.events(sweep.id, kinds=("trial",)) if event.data["number"] == 1]
    assert [(data["state"], data["reason"]) for data in told] == [(State.FAILED, trial.reason)]


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


def test_a_reports_trials_of_a_population_tell_what_they_were_trained_with(place, monkeypatch, reported):
    store, _ = place
    monkeypatch.setattr("sampa.workers.checkpoints.adopt", lambda *_: None)
    asked = {"search": "random", "scheduler": {"name": "pbt", "every_epochs": 2}, "trials": 6, "baselines": []}
    sweep, _ = store.sweeps.submit(sweep_of(**asked))
    with pytest.raises(Killed):
        run(place, sweep.id, monkeypatch, PlayedPool(killed_at=20))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    parts = {trial.part.number: trial.part for trial in store.sweeps.trials(sweep.id)}
    changed = {n: one for n, one in reported.items() if one.changes}
    assert len(changed) >= 2
    told = [event.data for event in store.events(sweep.id, kinds=("exploit",))]
    assert {one["number"] for one in told} == set(changed)
    assert len(told) == len({(one["number"], one["epoch"]) for one in told}), "one was told twice"
    for number, trial in {trial.part.number: trial for trial in store.sweeps.trials(sweep.id)}.items():
        exploits = [event.data for event in store.events(trial.id, kinds=("exploit",))]
        one = reported[number]
        assert one.values == (exploits[-1]["values"] if exploits else parts[number].values)
        assert bool(one.changes) == bool(exploits)
        if exploits:
            assert one.changes[-1] == (exploits[-1]["epoch"], exploits[-1]["values"])
            assert one.changes[0][0] == 0.0
            assert one.changes[0][1] in [part.values for part in parts.values()]


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


def test_a_report_is_written_whenever_a_sweep_is_let_go_of(place, monkeypatch):
    store, settings = place
    monkeypatch.setattr("sampa.service.runner.LOOK_S", 0.0)
    monkeypatch.setattr("sampa.service.sweeps.answer.EVERY_S", 1000.0)
    for act, state in (("pause", State.PAUSED), ("cancel", State.CANCELLED), ("metric", State.FAILED)):
        sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=4))
        pool = PlayedPool()
        look = pool.look

        def doing(turns, yielding=(), wait_s=0.5, act=act, sweep=sweep, pool=pool, look=look):
            if pool.looks == 14 and act == "metric":
                pool.metric = "other"
            elif pool.looks == 14:
                getattr(store.sweeps, act)(sweep.id)
            return look(turns, yielding, wait_s)

        pool.look = doing
        assert run(place, sweep.id, monkeypatch, pool) == 0
        assert store.record(sweep.id).state is state
        report = json.loads((settings.job_storage(sweep.id).path / "report.json").read_text())
        assert report["trials"]["counts"] == {"SUCCEEDED": 2}


def test_what_was_not_written_as_a_trial_ended_is_written_with_the_next_progress(place, monkeypatch):
    store, _ = place
    monkeypatch.setattr("sampa.service.sweeps.record.PROGRESS_S", 0.0)
    told = []
    for name in ("write", "touch", "finish"):
        act = getattr(Answers, name)
        monkeypatch.setattr(Answers, name, lambda *args, name=name, act=act: (told.append(name), act(*args))[1])
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=3))
    assert run(place, sweep.id, monkeypatch, PlayedPool(workers=1)) == 0
    first = told.index("write")
    assert told[first:].count("touch") > 2 * told.count("write"), "of which one is its own"


def test_a_budget_of_gradients_holds_where_the_order_is_free(place, monkeypatch, reported):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=40, budget={"gradients": 16 * 2 * 20}))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    ended = store.record(sweep.id)
    assert (ended.state, ended.reason) == (State.SUCCEEDED, "the budget of 640 gradients is used up")
    trials = store.sweeps.trials(sweep.id)
    assert {trial.state for trial in trials} == {State.SUCCEEDED, State.CANCELLED}
    assert sum(len(curve) for _, _, _, curve in history(store, sweep.id)) <= 40
    assert len(trials) < 20
    early = [one for one in reported.values() if one.state == State.CANCELLED]
    assert early
    assert all(one.curve and not one.full for one in early), "they count with what they had"


@pytest.mark.parametrize("kind", ["random", "tpe", "asha"])
@pytest.mark.parametrize("limit", ["gradients", "wall_s"])
def test_what_a_budget_cut_off_goes_on_once_there_is_more_of_it(place, monkeypatch, kind, limit):
    store, _ = place
    asked = {"search": "random" if kind == "asha" else kind, "scheduler": "asha" if kind == "asha" else "none"}
    asked |= {"base": {**sweep_of().base, "epochs": 5}, "trials": 6}
    pools = []
    monkeypatch.setattr(Record, "seconds", property(lambda _: 10.0 * (len(pools) - 1) + pools[-1].looks))
    short, longer = (
        ({"gradients": 400}, {"gradients": 10**9}) if limit == "gradients" else ({"wall_s": 5}, {"wall_s": 1e9})
    )
    cut, _ = store.sweeps.submit(sweep_of(**asked, budget=short))
    pools.append(PlayedPool())
    assert run(place, cut.id, monkeypatch, pools[-1]) == 0
    assert State.CANCELLED in {state for _, _, state, _ in history(store, cut.id)}
    assert "is used up" in store.record(cut.id).reason
    store.sweeps.extend(cut.id, **longer)
    pools.append(PlayedPool(workers=3))
    assert run(place, cut.id, monkeypatch, pools[-1]) == 0
    whole, _ = store.sweeps.submit(sweep_of(**asked))
    pools.append(PlayedPool())
    assert run(place, whole.id, monkeypatch, pools[-1]) == 0
    assert ends(store, cut.id) == ends(store, whole.id)


def ends(store, sweep_id):
    """Return values and state of each trial, and where and with what it has ended, however far it had trained."""
    return [
        (one.part.values, one.state, one.result and one.result.get("epochs")) for one in store.sweeps.trials(sweep_id)
    ]


def test_a_large_sweep_begins_few_trials_at_once_and_listens_while_it_does(place, monkeypatch):
    store, _ = place
    monkeypatch.setattr("sampa.service.runner.LOOK_S", 0.0)
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=200))
    pool = PlayedPool(killed_at=1)
    with pytest.raises(Killed):
        run(place, sweep.id, monkeypatch, pool)
    assert len(store.sweeps.trials(sweep.id)) <= 10
    other, _ = store.sweeps.submit(sweep_of(search="random", trials=200))
    added, add = [], SweepTable.add_trial

    def pausing(*args, **how):
        added.append(add(*args, **how))
        if len(added) == 3:
            store.sweeps.pause(other.id)
        return added[-1]

    monkeypatch.setattr(SweepTable, "add_trial", pausing)
    assert run(place, other.id, monkeypatch, PlayedPool()) == 0
    assert store.record(other.id).state is State.PAUSED
    assert len(added) == 3


def test_the_past_of_many_trials_is_read_with_few_queries(place, monkeypatch):
    store, _ = place
    monkeypatch.setattr("sampa.service.sweeps.trials._PAGE", 10)
    base = {**sweep_of().base, "epochs": 1}
    sweep, _ = store.sweeps.submit(sweep_of(base=base, search="random", trials=28))
    assert run(place, sweep.id, monkeypatch, PlayedPool(workers=40)) == 0
    store.sweeps.extend(sweep.id, trials=29)
    queries = []
    for owner, name in ((SweepTable, "history"), (Store, "events")):
        act = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, act=act, **how: (queries.append(args[1:]), act(*args, **how))[1])
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert len(queries) <= 3 + 4, "a page each, and what was asked for"
    assert {state for _, _, state, _ in history(store, sweep.id)} == {State.SUCCEEDED}


def test_a_store_that_is_away_at_the_end_costs_no_extension(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=2))
    monkeypatch.setattr("sampa.service.runner.LOOK_S", 1000.0)
    answer, away, events = Record.answer, [], Store.events

    def extended(record):
        if not away:
            store.sweeps.extend(sweep.id, trials=4)
            away.append(True)
        return answer(record)

    def blinking(*args, **how):
        if away == [True] and how.get("kinds") == ("extend", "retry"):
            away.append(False)
            raise StoreUnavailable("sqlite", "it is away")
        return events(*args, **how)

    monkeypatch.setattr(Record, "answer", extended)
    monkeypatch.setattr(Store, "events", blinking)
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    assert away == [True, False]
    assert len(store.sweeps.trials(sweep.id)) == 4 + 2


def test_the_budget_of_time_ends_a_sweep_with_what_it_has(place, monkeypatch):
    store, _ = place
    sweep, _ = store.sweeps.submit(sweep_of(search="random", trials=50, budget={"wall_s": 1e-6}))
    assert run(place, sweep.id, monkeypatch, PlayedPool()) == 0
    ended = store.record(sweep.id)
    assert (ended.state, ended.reason) == (State.SUCCEEDED, "the budget of 1e-06 s is used up")
