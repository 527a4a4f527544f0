"""Which trials end early or go on from another's state: Tune's decisions, the same in every process."""

import json
import logging
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampa.service.sweeps.schedule import schedule_of
from sampa.service.sweeps.spec import SweepSpec

SPACE = {"method.rho": {"loguniform": [0.01, 0.5]}, "optimizer.lr": {"choice": [0.01, 0.02, 0.04, 0.08]}}
BASE = {
    "task": {"entrypoint": "digits"},
    "method": {"name": "sampa"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "epochs": 27,
    "batch_size": 64,
}
PBT = {"name": "pbt", "every_epochs": 5}


def spec_of(scheduler, trials=9, space=SPACE, base=BASE, **changes):
    fields = {"name": "s", "base": base, "space": space, "trials": trials, "scheduler": scheduler, **changes}
    return SweepSpec.model_validate(fields)


def train(spec, score, every=1, fails=()):
    """Train all trials side by side, epoch by epoch; return where each ended and what was exploited.

    Args:
        score: ``score(n, values, epoch)`` is what trial n reaches.
        fails: (n, epoch) at which trial n fails rather than reaching it.
    """
    schedule, length = schedule_of(spec), spec.length_epochs
    values = {n: {"method.rho": 0.02 * (n + 1), "optimizer.lr": 0.02} for n in range(spec.trials)}
    ends, exploits = {}, []
    for n, own in values.items():
        schedule.started(n, own)
    for epoch in range(every, length + 1, every):
        for n in [n for n in values if n not in ends]:
            reached = score(n, values[n], epoch)
            if (n, epoch) in fails:
                schedule.ended(n, epoch - 1, None)
                ends[n] = epoch
            elif not schedule.result(n, epoch, reached) or epoch == length:
                schedule.ended(n, epoch, reached)
                ends[n] = epoch
            for exploit in schedule.exploits():
                values[exploit.target] = exploit.values
                exploits.append(exploit)
    return ends, exploits


def better_by_number(n, values, epoch):
    return n + epoch / 100


def near_best(n, values, epoch):
    return 0.9 - abs(math.log(values["method.rho"] / 0.1)) + epoch / 1000


def test_without_a_scheduler_there_is_none():
    assert schedule_of(spec_of("none")) is None


def test_asha_keeps_the_best_third_at_each_rung():
    """The best comes first, so that the others are compared with it."""
    ends, _ = train(spec_of("asha"), lambda n, values, epoch: -n)
    assert ends[0] == 27
    assert sorted(ends.values()) == [1] * 8 + [27]
    rising, _ = train(spec_of("asha"), better_by_number)
    assert set(rising.values()) <= {1, 3, 9, 27}
    assert rising[8] == 27


def test_asha_has_its_rungs_at_evaluations():
    spec = spec_of("asha", base={**BASE, "evaluate": {"every_epochs": 2}})
    ends, _ = train(spec, lambda n, values, epoch: math.sin(n * epoch), every=2)
    assert set(ends.values()) <= {2, 6, 18, 26, 27}


def test_a_trial_at_its_end_is_not_stopped():
    schedule = schedule_of(spec_of("asha"))
    for n, score in enumerate([0.9, 0.1]):
        schedule.started(n, {})
        assert schedule.result(n, 27, score)
        schedule.ended(n, 27, score)


def falling(n, values, epoch):
    return epoch / 100 - n


def test_median_ends_what_is_worse_than_half_of_the_others():
    ends, _ = train(spec_of({"name": "median", "grace_epochs": 4}), falling)
    assert [*ends.values()].count(27) == 3  # those that come first at each epoch have too few others to compare with
    assert {n: epoch for n, epoch in ends.items() if epoch < 27} == dict.fromkeys(range(3, 9), 4)
    few, _ = train(spec_of({"name": "median", "min_trials": 9}), falling)
    assert set(few.values()) == {27}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_mode_min_ends_the_largest(scheduler):
    ends, _ = train(spec_of(scheduler, metric="loss"), better_by_number)
    assert ends[0] == 27
    assert ends[8] < 27


@pytest.mark.parametrize("scheduler", ["asha", "median", PBT])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_the_worst(scheduler, bad):
    ends, exploits = train(spec_of(scheduler), lambda n, values, epoch: bad if n == 4 else 0.5 + n / 100)
    assert ends[4] < 27 or 4 in {exploit.target for exploit in exploits}
    assert ends[8] == 27


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_schedulers_that_stop_have_no_rounds(scheduler):
    schedule = schedule_of(spec_of(scheduler))
    assert schedule.rounds(27) == []
    assert schedule.exploits() == []


def test_at_each_round_the_worst_quarter_goes_on_from_the_best():
    ends, exploits = train(spec_of(PBT, trials=8), better_by_number)
    assert set(ends.values()) == {27}
    assert [(exploit.epoch, exploit.target) for exploit in exploits] == [
        (epoch, n) for epoch in (5, 10, 15, 20, 25) for n in (0, 1)
    ]
    assert {exploit.source for exploit in exploits} == {6, 7}


def test_a_round_waits_for_trials_that_have_not_started():
    spec = spec_of(PBT, trials=4)
    schedule = schedule_of(spec)
    for n in range(4):
        schedule.started(n, {"method.rho": 0.1, "optimizer.lr": 0.02})
        assert schedule.exploits() == []
        assert schedule.result(n, 5, n)
    assert [exploit.target for exploit in schedule.exploits()] == [0]
    assert schedule.exploits() == []


def test_the_order_of_a_rounds_results_is_of_no_matter():
    found = []
    for order in [0, 1, 2, 3], [3, 1, 2, 0]:
        schedule = schedule_of(spec_of(PBT, trials=4))
        for n in range(4):
            schedule.started(n, {"method.rho": 0.1, "optimizer.lr": 0.02})
        for n in order:
            schedule.result(n, 5, n)
        found.append(schedule.exploits())
    assert found[0] == found[1]
    assert [(exploit.target, exploit.source) for exploit in found[0]] == [(0, 3)]


def test_the_others_go_on_when_the_last_one_of_a_round_fails():
    ends, exploits = train(spec_of(PBT, trials=4), better_by_number, fails={(3, 5), (0, 10)})
    assert ends == {0: 10, 1: 27, 2: 27, 3: 5}
    assert [(exploit.epoch, exploit.target, exploit.source) for exploit in exploits] == [
        (5, 0, 2),
        (10, 1, 2),
        (15, 1, 2),
        (20, 1, 2),
        (25, 1, 2),
    ]


def test_one_that_is_left_alone_trains_to_its_end():
    ends, exploits = train(spec_of(PBT, trials=2), better_by_number, fails={(0, 3)})
    assert ends == {0: 3, 1: 27}
    assert exploits == []


@given(st.integers(0, 2**31 - 1), st.floats(0, 1), st.sampled_from([(0.8, 1.2), (0.01, 100.0), (3.0,)]))
@settings(max_examples=30)
def test_perturbed_values_stay_in_the_space(seed, resample, factors):
    pbt = {**PBT, "every_epochs": 1, "resample": resample, "factors": factors}
    space = {**SPACE, "method.lambda": {"uniform": [0, 0.3]}, "optimizer.momentum": {"choice": [0, 0.5, 0.9]}}
    schedule = schedule_of(spec_of(pbt, trials=2, space=space, seed=seed))
    values = {"method.rho": 0.4, "optimizer.lr": 0.04, "method.lambda": 0.0, "optimizer.momentum": 0}
    for n in range(2):
        schedule.started(n, values)
    for epoch in range(1, 6):
        for n in range(2):
            schedule.result(n, epoch, n)
        (exploit,) = schedule.exploits()
        assert 0.01 <= exploit.values["method.rho"] <= 0.5
        assert 0 <= exploit.values["method.lambda"] <= 0.3
        assert exploit.values["optimizer.lr"] in SPACE["optimizer.lr"]["choice"]
        assert [type(exploit.values[path]) for path in ("method.rho", "method.lambda")] == [float, float]


def test_one_whose_changed_values_contradict_each_other_keeps_its_own(monkeypatch):
    refused, composed = [], SweepSpec.trial

    def trial(spec, number, values=None):
        refused.append(values)
        return SweepSpec.model_validate({}) if number == 2 else composed(spec, number, values)

    monkeypatch.setattr(SweepSpec, "trial", trial)
    schedule = schedule_of(spec_of(PBT, trials=4, baselines=[]))
    for n in range(4):
        schedule.started(n, {"method.rho": 0.02 * (n + 1), "optimizer.lr": 0.02})
    for n in (3, 1, 0):
        schedule.result(n, 5, n)
    schedule.result(2, 5, -1)
    (exploit,) = schedule.exploits()
    assert (exploit.target, exploit.source, exploit.values) == (2, 3, {"method.rho": 0.06, "optimizer.lr": 0.02})
    assert refused != [exploit.values]


def test_whole_numbers_stay_whole():
    base = {**BASE, "method": {"name": "looksam"}}
    space = {"method.k": {"integer": [2, 20]}}
    schedule = schedule_of(spec_of({**PBT, "resample": 0.5}, trials=2, space=space, base=base))
    for n in range(2):
        schedule.started(n, {"method.k": 7})
    for epoch in (5, 10, 15, 20, 25):
        for n in range(2):
            schedule.result(n, epoch, n)
        (exploit,) = schedule.exploits()
        assert type(exploit.values["method.k"]) is int


def test_a_choice_moves_to_a_neighbour():
    _, exploits = train(spec_of({**PBT, "resample": 0}, trials=8), better_by_number)
    assert {exploit.values["optimizer.lr"] for exploit in exploits} == {0.01, 0.04}


def test_population_training_finds_a_better_rho():
    _, exploits = train(spec_of({**PBT, "every_epochs": 1}, trials=8, base={**BASE, "epochs": 40}), near_best)
    assert abs(math.log(exploits[-1].values["method.rho"] / 0.1)) < 0.5


SCHEDULERS = ["asha", "median", PBT]


def wavy(n, values, epoch):
    return math.sin(7 * n + epoch) + near_best(n, values, epoch)


def history(scheduler, seed=3):
    ends, exploits = train(spec_of(scheduler, trials=12, seed=seed), wavy)
    return [[*ends.items()], [vars(exploit) for exploit in exploits]]


def test_a_fresh_process_decides_the_same():
    here = json.loads(json.dumps([history(scheduler) for scheduler in SCHEDULERS]))
    code = (
        "import json, warnings; warnings.simplefilter('ignore');"
        "from tests.service.test_sweep_schedule import *;"
        "random.seed(5); np.random.seed(5);"
        "print(json.dumps([history(scheduler) for scheduler in SCHEDULERS]))"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert json.loads(fresh.stdout) == here
    assert not fresh.stderr
    assert here[2][1]


def test_another_seed_perturbs_otherwise():
    assert history(PBT, seed=1)[1] != history(PBT, seed=2)[1]


def test_nobody_elses_random_numbers_are_touched():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    history(PBT)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_scheduling_is_silent(capfd, caplog):
    with caplog.at_level(logging.INFO):
        for scheduler in SCHEDULERS:
            history(scheduler)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
