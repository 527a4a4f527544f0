"""What a sweep tries next: the same in every process, plain values inside the space, near the best when it is told."""

import json
import logging
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampa.service.sweeps.search import search_of
from sampa.service.sweeps.spec import SweepSpec

RHO = {"method.rho": {"loguniform": [0.01, 0.5]}}
MIXED = {
    **RHO,
    "optimizer.weight_decay": {"uniform": [0, 0.001]},
    "batch_size": {"integer": [16, 18]},
    "shuffle": {"choice": [True, False]},
    "optimizer": {"choice": [{"name": "sgd", "lr": 0.1}, {"name": "adamw", "lr": 0.01}]},
}
BASE = {
    "task": {"entrypoint": "digits"},
    "method": {"name": "sampa"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "epochs": 3,
    "batch_size": 64,
}
BEST_RHO = 0.1


def spec_of(search, space=RHO, trials=40, **changes):
    fields = {"name": "s", "base": BASE, "space": space, "trials": trials, "search": search, **changes}
    return SweepSpec.model_validate(fields)


def accuracy(values):
    return 0.96 - 0.05 * math.log(values["method.rho"] / BEST_RHO) ** 2


def walk(spec, score=accuracy):
    """Ask and tell in the order of a study: ``parallel`` configurations are undecided at once."""
    search, asked = search_of(spec), []
    for configuration in range(spec.trials):
        if configuration >= spec.parallel:
            oldest = configuration - spec.parallel
            search.tell(oldest, score(asked[oldest]))
        asked.append(search.suggest(configuration))
    return asked


ALL = ["random", "tpe", "gp"]


def test_a_fresh_process_suggests_the_same():
    here = {search: walk(spec_of(search, MIXED, trials=14, seed=3)) for search in ALL}
    code = (
        "import json, warnings; warnings.simplefilter('ignore');"
        "from tests.service.test_sweep_search import *;"
        "print(json.dumps({search: walk(spec_of(search, MIXED, trials=14, seed=3)) for search in ALL}))"
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


@pytest.mark.parametrize("search", ALL)
def test_suggestions_are_plain_values_inside_the_space(search):
    for values in walk(spec_of(search, MIXED, trials=14)):
        assert [*values] == [*MIXED]
        assert [type(value) for value in values.values()] == [float, float, int, bool, dict]
        assert 0.01 <= values["method.rho"] <= 0.5
        assert 16 <= values["batch_size"] <= 18
        assert values["optimizer"] in MIXED["optimizer"]["choice"]


@pytest.mark.parametrize("search", ALL)
def test_both_ends_of_whole_numbers_are_tried(search):
    tried = {values["batch_size"] for values in walk(spec_of(search, MIXED, trials=14))}
    assert tried == {16, 17, 18}


@pytest.mark.parametrize("search", ["tpe", "gp"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_value_is_found_within_ten_percent(search, seed):
    spec = spec_of(search, trials=30, seed=seed)
    best = max(walk(spec), key=accuracy)
    assert abs(best["method.rho"] / BEST_RHO - 1) < 0.1


@pytest.mark.parametrize("search", ["tpe", "gp"])
def test_a_loss_is_made_small_by_mode_min(search):
    spec = spec_of(search, trials=24, metric="loss", mode="min")
    late = [values["method.rho"] for values in walk(spec, lambda values: -accuracy(values))[-6:]]
    assert sum(abs(math.log(rho / BEST_RHO)) for rho in late) / len(late) < 0.8


@pytest.mark.parametrize("search", ALL)
def test_configurations_undecided_at_once_differ(search):
    spec = spec_of(search, trials=20, parallel=20)
    assert len({values["method.rho"] for values in walk(spec)}) == 20


@pytest.mark.parametrize("search", ALL)
def test_another_seed_suggests_something_else(search):
    assert walk(spec_of(search, trials=2, seed=1)) != walk(spec_of(search, trials=2, seed=2))


@pytest.mark.parametrize("search", ALL)
def test_more_trials_go_on_from_the_same_ones(search):
    assert walk(spec_of(search, trials=20))[:14] == walk(spec_of(search, trials=14))


@pytest.mark.parametrize("search", ALL)
def test_asking_again_gives_the_same(search):
    one = search_of(spec_of(search))
    assert one.suggest(0) == one.suggest(0)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10_000))
@settings(max_examples=30)
def test_a_random_configuration_depends_on_no_other(seed, configuration):
    spec = spec_of("random", seed=seed)
    later = search_of(spec)
    later.suggest(configuration + 1)
    assert later.suggest(configuration) == search_of(spec).suggest(configuration)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("search", ["tpe", "gp"])
def test_what_fails_is_taken_out_of_account(search, bad):
    asked = walk(spec_of(search, trials=16), lambda values: bad if values["method.rho"] > 0.2 else accuracy(values))
    assert len(asked) == 16


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_fell_apart_counts_as_the_worst_so_far(mode):
    scores = [math.nan, 0.5, 0.8, math.inf, math.nan, 0.6, math.nan, 0.4, math.nan, *[0.7, math.nan] * 4]
    worst = min if mode == "max" else max
    found = []
    for counted in (False, True):
        search, finite, suggested = search_of(spec_of("tpe", trials=40, mode=mode)), [], []
        for configuration, score in enumerate(scores):
            suggested.append(search.suggest(configuration))
            finite += [score] if math.isfinite(score) else []
            search.tell(configuration, score if math.isfinite(score) or not counted else worst(finite, default=None))
        found.append(suggested)
    assert found[0] == found[1]


@pytest.mark.parametrize("search", ["tpe", "gp"])
def test_stored_configurations_count_though_they_were_not_suggested(search):
    """A search whose suggestions were all replaced by others goes on from what it was told of those."""
    one = search_of(spec_of(search))
    for configuration in range(16):
        rho = 0.01 * 1.28**configuration
        one.suggest(configuration)
        one.tell(configuration, None)
        one.tell_other({"method.rho": rho}, accuracy({"method.rho": rho}) if configuration else None)
    later = [one.suggest(configuration)["method.rho"] for configuration in range(16, 22)]
    assert min(abs(rho / BEST_RHO - 1) for rho in later) < 0.1


def test_lists_and_whole_numbers_can_be_told_by_value():
    search = search_of(spec_of("tpe", MIXED))
    values = search.suggest(0)
    search.tell(0, None)
    search.tell_other({**values, "optimizer": MIXED["optimizer"]["choice"][1]}, 0.9)
    assert [*search.suggest(1)] == [*MIXED]


def test_a_grid_tries_each_point_once_and_learns_nothing():
    space = {"method.rho": {"grid": [0.1, 0.2]}, "shuffle": {"choice": [True, False]}}
    spec = spec_of("grid", space, trials=4)
    points = walk(spec)
    assert [(values["method.rho"], values["shuffle"]) for values in points] == [
        (0.1, True),
        (0.2, True),
        (0.1, False),
        (0.2, False),
    ]
    assert not search_of(spec).adaptive
    assert search_of(spec_of("tpe")).adaptive


def test_a_range_in_a_grid_is_cut():
    points = [values["method.rho"] for values in walk(spec_of("grid", trials=16))]
    assert (points[0], points[-1], len(points)) == (0.01, 0.5, 16)


def test_searching_is_silent(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        for search in ALL:
            walk(spec_of(search, MIXED, trials=12))
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == []
