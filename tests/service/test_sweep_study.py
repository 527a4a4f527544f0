"""What a sweep suggests, stops and copies depends on its spec and its trials' results, not on who came first."""

import random

import pytest

from .sweeps import Played, planted, sweep_of

SPECS = {
    "random": {"search": "random"},
    "grid": {"search": "grid"},
    "tpe": {"search": "tpe", "trials": 14},
    "gp": {"search": "gp", "trials": 14},
    "tpe, three seeds": {"search": "tpe", "seeds": 3},
    "asha": {"search": "random", "scheduler": {"name": "asha"}, "trials": 20},
    "asha and tpe": {"search": "tpe", "scheduler": {"name": "asha"}, "trials": 16},
    "median": {"search": "random", "scheduler": {"name": "median"}, "trials": 12},
    "pbt": {"search": "random", "scheduler": {"name": "pbt", "every_epochs": 2}},
}
ORDERS = {
    "first": lambda moving: moving[0],
    "last": lambda moving: moving[-1],
    "random": random.Random(3).choice,
}


@pytest.fixture(scope="module")
def histories():
    return {name: Played(sweep_of(**fields), ORDERS["first"]).play().history for name, fields in SPECS.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SPECS)
def test_the_history_is_the_same_whoever_comes_first(histories, name, order):
    assert Played(sweep_of(**SPECS[name]), ORDERS[order]).play().history == histories[name]


@pytest.mark.parametrize("name", SPECS)
def test_the_history_is_the_same_after_kills(histories, name):
    played = Played(sweep_of(**SPECS[name]), random.Random(5).choice)
    for steps in (3, 11, 17, 25, 40):
        played.play(steps)
        played = played.killed()
    assert played.play().history == histories[name]


@pytest.mark.parametrize("name", SPECS)
def test_every_trial_is_done_or_stopped_once(name):
    played = Played(sweep_of(**SPECS[name]), ORDERS["first"]).play()
    assert sorted([*played.done, *played.stopped]) == sorted(played.parts) == list(range(played.spec.trial_count))


def test_asha_stops_many_trials_and_not_the_best():
    played = Played(sweep_of(**SPECS["asha"]), ORDERS["random"]).play()
    best = max(played.parts.values(), key=lambda part: planted(part, 9) if part.values else 0)
    assert len(played.stopped) >= 8
    assert best.number not in played.stopped
    assert set(played.stopped.values()) <= {1.0, 3.0}


def test_a_trial_that_fails_leaves_the_others_alone():
    played = Played(sweep_of(search="tpe"), ORDERS["random"], fails={4}).play()
    assert sorted(played.done) == list(range(10))


def test_a_population_copies_good_trials_and_changes_rho():
    played = Played(sweep_of(**SPECS["pbt"]), ORDERS["random"]).play()
    assert {epoch for _, _, epoch, _ in played.copies} == {2.0, 4.0, 6.0, 8.0}
    assert all(0.01 <= rho <= 0.5 and target != source for target, source, _, rho in played.copies)


def test_no_trial_begins_once_the_budget_of_gradients_is_used_up():
    spec = sweep_of(search="tpe", trials=100, budget={"gradients": 1})
    played = Played(spec, ORDERS["first"])
    played.study.gradients = 1.0
    played.play()
    assert len(played.parts) == spec.parallel


def test_tpe_finds_a_planted_optimum_within_a_tenth_in_forty_trials():
    found = []
    for seed in range(10):
        played = Played(sweep_of(search="tpe", trials=40, baselines=[], seed=seed), ORDERS["random"]).play()
        best = max(played.parts.values(), key=lambda part: planted(part, 9))
        found.append(abs(best.values["method.rho"] / 0.09 - 1))
    assert sum(off <= 0.1 for off in found) >= 9, found
