"""What a sweep suggests, stops and copies depends on its spec and its trials' results, not on who came first."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampa.service.sweeps.study import Begin, Done, Point, Stop, Study

from .sweeps import Played, planted, sweep_of

SPECS = {
    "random": {"search": "random"},
    "grid": {"search": "grid"},
    "tpe": {"search": "tpe", "trials": 14},
    "gp": {"search": "gp", "trials": 14},
    "tpe, three seeds": {"search": "tpe", "seeds": 3},
    "asha": {"search": "random", "scheduler": {"name": "asha"}, "trials": 20},
    "asha and tpe": {"search": "tpe", "scheduler": {"name": "asha"}, "trials": 16},
    "asha, three seeds": {"search": "random", "scheduler": {"name": "asha"}, "trials": 12, "seeds": 3},
    "asha and tpe, six seeds": {"search": "tpe", "scheduler": {"name": "asha"}, "trials": 12, "seeds": 6},
    "median": {"search": "random", "scheduler": {"name": "median"}, "trials": 12},
    "median, two seeds": {"search": "random", "scheduler": {"name": "median"}, "trials": 12, "seeds": 2},
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


@given(
    st.sampled_from(["asha, three seeds", "median, two seeds", "asha and tpe", "pbt"]),
    st.sets(st.integers(0, 20), max_size=6),
    st.sets(st.integers(0, 20), max_size=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_no_order_of_results_changes_what_is_decided(name, fails, diverges, chance):
    calm = Played(sweep_of(**SPECS[name]), ORDERS["first"], fails=fails, diverges=diverges).play()
    other = Played(sweep_of(**SPECS[name]), chance.choice, fails=fails, diverges=diverges)
    other.play(chance.randrange(60))
    other = other.killed().play()
    assert other.history == calm.history
    assert other.study.gradients == calm.study.gradients


@pytest.mark.parametrize("name", ["asha, three seeds", "asha and tpe, six seeds", "median, two seeds"])
def test_the_seeds_of_a_configuration_are_stopped_together_or_not_at_all(name):
    played = Played(sweep_of(**SPECS[name]), ORDERS["random"], score=lucky).play()
    ends = [{played.stopped.get(n) for n in played.spec.numbers_of(one)} for one in range(12)]
    assert all(len(epochs) == 1 for epochs in ends), "where each of its seeds was stopped"
    assert {None} in ends
    assert sum(epochs != {None} for epochs in ends) >= 3


def lucky(part, epoch):
    """Return a score that is of the seed alone."""
    return random.Random(part.number).random() + 0.01 * epoch


def test_a_seed_that_fails_or_whose_score_is_no_number_makes_its_configuration_the_worst():
    spec = sweep_of(search="random", scheduler={"name": "asha"}, trials=9, seeds=3, baselines=[])
    for broken in ({"fails": {4}}, {"diverges": {4}}, {"score": lambda part, e: math.nan if part.number == 4 else e}):
        same = Played(spec, ORDERS["random"], **{"score": lambda part, epoch: epoch, **broken}).play()
        assert same.stopped.get(3) == same.stopped.get(5) in (1.0, 3.0), broken
        assert same.stopped.keys() <= {3, 4, 5}, "all others have the same score"


def test_a_configuration_waits_for_a_seed_that_is_behind():
    study = Study(sweep_of(search="random", scheduler={"name": "asha"}, trials=2, seeds=2, baselines=[], parallel=4))
    assert [effect.part.number for effect in study.advance()] == [0, 1, 2, 3]
    for number, epoch, score in ((0, 1, 0.9), (1, 1, 0.9), (2, 1, 0.1), (0, 2, 0.9), (1, 2, 0.9)):
        study.measured(number, Point(epoch, score))
        assert study.advance() == []
    assert study.awaits(2)
    study.measured(3, Point(1, 0.1))
    assert study.advance() == [Stop(2, 1), Stop(3, 1)]


def test_a_configuration_of_which_a_trial_has_its_end_is_not_stopped_again():
    spec = sweep_of(search="random", scheduler={"name": "asha"}, trials=4, seeds=2, baselines=[])
    stored = {n: {"method.rho": 0.1} for n in range(8)}
    played = Played(spec, ORDERS["first"], score=lambda part, epoch: -part.number)
    played.study = Study(spec, stored, kept=frozenset({6}))
    played.play()
    assert {*played.stopped} == {2, 3, 4, 5}


def test_a_searcher_hears_that_a_configuration_fell_apart_but_not_that_a_machine_failed():
    told = {}
    spec = sweep_of(search="tpe", trials=3, seeds=2, baselines=[])
    played = Played(spec, ORDERS["first"], score=lambda part, epoch: 0.5, fails={2}, diverges={4})
    played.study._search.tell = told.__setitem__
    played.play()
    assert (told[0], told[1]) == (0.5, 0.5)
    assert math.isnan(told[2])


def test_where_the_order_is_free_trials_begin_as_they_find_room_and_those_that_there_are_at_once():
    spec = sweep_of(search="random", trials=50, baselines=[])
    study = Study(spec, {n: {"method.rho": 0.1} for n in (0, 1, 2, 3, 4)})
    study.room = 2
    begun = [effect.part.number for effect in study.advance() if isinstance(effect, Begin)]
    assert begun == [0, 1, 2, 3, 4]
    for number in range(4):
        study.ended(number, failed=False)
        assert study.advance() == [Done(number)]
    assert [effect.part.number for effect in study.advance()] == [5]


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


@pytest.mark.parametrize("name", SPECS)
def test_nothing_follows_once_the_budget_of_gradients_is_used_up(name):
    whole = Played(sweep_of(**SPECS[name]), ORDERS["random"]).play()
    assert not whole.study.halted
    limit = round(whole.study.gradients / 3)
    played = Played(sweep_of(**SPECS[name], budget={"gradients": limit}), ORDERS["random"]).play()
    assert played.study.halted == f"the budget of {limit} gradients is used up"
    assert limit <= played.study.gradients <= limit + 10, "one evaluation more"
    assert len(played.done) + len(played.stopped) < whole.spec.trial_count
    assert not played.study.over


@pytest.mark.parametrize("name", SPECS)
def test_with_a_longer_budget_the_history_goes_on_as_if_it_had_always_been_so(histories, name):
    short = Played(sweep_of(**SPECS[name], budget={"gradients": 200}), ORDERS["random"]).play()
    assert short.study.halted
    longer = short.killed(sweep_of(**SPECS[name], budget={"gradients": 10**6}))
    assert longer.play().history == histories[name]


def test_a_budget_that_the_last_evaluation_uses_up_halts_nothing():
    whole = Played(sweep_of(search="tpe"), ORDERS["first"]).play()
    spec = sweep_of(search="tpe", budget={"gradients": round(whole.study.gradients)})
    played = Played(spec, ORDERS["first"]).play()
    assert (played.study.over, played.study.halted) == (True, "")


def test_tpe_finds_a_planted_optimum_within_a_tenth_in_forty_trials():
    found = []
    for seed in range(10):
        played = Played(sweep_of(search="tpe", trials=40, baselines=[], seed=seed), ORDERS["random"]).play()
        best = max(played.parts.values(), key=lambda part: planted(part, 9))
        found.append(abs(best.values["method.rho"] / 0.09 - 1))
    assert sum(off <= 0.1 for off in found) >= 9, found
