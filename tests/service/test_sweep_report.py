"""The answer of a sweep, from made-up trials."""

import math

import numpy as np
import pytest
from sampa.service.sweeps.plot import draw
from sampa.service.sweeps.report import Measured, report

from .sweeps import sweep_of

GRID = [float(f"{0.01 * 50 ** (i / 15):.4g}") for i in range(16)]


def trial(number, score, *, rho=None, baseline=None, seed=0, epochs=9.0, state="SUCCEEDED", seconds=7.0):
    configuration = None if baseline else number
    values = {} if rho is None else {"method.rho": rho}
    full = state == "SUCCEEDED"
    curve = () if score is None else ((epochs, score),)
    return Measured(number, configuration, baseline, values, seed, state, "", curve, full, seconds, 960)


def digits(rho, noise):
    """Return an accuracy as digits with label noise give it: best near 0.09, falling apart above 0.2."""
    return 0.966 - 0.009 * math.log(rho / 0.09) ** 2 + noise.normal(0, 0.004)


def digits_trials(seeds=3, advantage=0.0):
    noise = np.random.default_rng(1)
    made = [
        trial(i, 0.931 + advantage + noise.normal(0, 0.006), baseline="sgd", seed=i, seconds=4) for i in range(seeds)
    ]
    made += [trial(i + 10, 0.965 + noise.normal(0, 0.004), baseline="sam", seed=i) for i in range(seeds)]
    for index, rho in enumerate(GRID):
        for seed in range(seeds):
            fell = rho > 0.2 and noise.random() < 0.7
            score = noise.uniform(0.1, 0.5) if fell else digits(rho, noise)
            one = trial(20 + 3 * index + seed, score, rho=rho, seed=seed)
            made.append(Measured(**{**vars(one), "configuration": index}))
    return made


def test_digits_get_their_rho_their_collapse_and_their_advantage():
    found = report(sweep_of(search="grid", trials=16, seeds=3), digits_trials())
    assert 0.05 <= found["recommended"]["values"]["method.rho"] <= 0.15
    low, high = found["recommended"]["intervals"]["method.rho"]
    assert 0.03 < low < 0.09 < high < 0.2
    assert found["collapse"]["method.rho"]["from"] > 0.2
    assert found["advantage"]["sgd"]["probability"] > 0.95
    assert found["advantage"]["sgd"]["verdict"].startswith("sampa with method.rho 0.")
    assert found["advantage"]["sam"]["probability"] < 0.5
    assert found["cost"]["trial"]["configurations"]["to_sgd"] == pytest.approx(1.75)


def test_no_win_is_claimed_where_there_is_none():
    found = report(sweep_of(search="grid", trials=16, seeds=3), digits_trials(advantage=0.034))
    assert found["advantage"]["sgd"]["probability"] < 0.8
    assert "it is not shown" in found["advantage"]["sgd"]["verdict"]


def test_one_seed_gives_no_false_certainty():
    found = report(sweep_of(search="grid", trials=16), digits_trials(seeds=1))
    low, high = found["baselines"]["sgd"]["interval"]
    assert high - low > 0.01


def clustered(seed, best=0.09, mode="max"):
    """Return forty trials as a search would place them: ten at random, thirty ever nearer to the best."""
    stream = np.random.default_rng(seed)
    near = [best * math.exp(stream.normal(0, 0.6)) for _ in range(30)]
    rhos = [*np.exp(stream.uniform(math.log(0.01), math.log(0.5), 10)), *np.clip(near, 0.01, 0.5)]
    sign = 1 if mode == "max" else -1
    return [
        trial(i, sign * (0.9 - 0.1 * math.log(rho / best) ** 2 + stream.normal(0, 0.004)), rho=float(rho))
        for i, rho in enumerate(rhos)
    ]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_planted_optimum_is_found_and_its_interval_covers_it(mode):
    spec = sweep_of(trials=40, baselines=[], metric="loss" if mode == "min" else "accuracy", mode=mode)
    found = [report(spec, clustered(seed, mode=mode))["recommended"] for seed in range(20)]
    within = [abs(one["values"]["method.rho"] / 0.09 - 1) <= 0.1 for one in found]
    covered = [one["intervals"]["method.rho"][0] <= 0.09 <= one["intervals"]["method.rho"][1] for one in found]
    assert sum(within) >= 18
    assert sum(covered) >= 17


def test_trials_that_were_stopped_early_count_by_what_they_had_come_to():
    noise = np.random.default_rng(2)
    made = []
    for index, rho in enumerate(np.exp(noise.uniform(math.log(0.01), math.log(0.5), 60))):
        last = digits(rho, noise) if rho < 0.25 else 0.3
        full = index % 6 == 0 or 0.05 < rho < 0.15
        curve = tuple((epoch, last - 0.5 * math.exp(-epoch)) for epoch in ((1.0, 3.0, 9.0) if full else (1.0,)))
        state = "SUCCEEDED" if full else "STOPPED"
        made.append(Measured(index, index, None, {"method.rho": float(rho)}, 0, state, "", curve, full, 1.0, 10))
    found = report(sweep_of(trials=60, baselines=[]), made)
    assert 0.05 <= found["recommended"]["values"]["method.rho"] <= 0.15


@pytest.mark.parametrize("made", [[], digits_trials()[:6], [trial(i, None, rho=0.1, state="FAILED") for i in range(8)]])
def test_too_little_is_said_and_not_guessed(made):
    found = report(sweep_of(search="grid", trials=16, seeds=3), made)
    assert found["recommended"] is None
    assert "are needed to recommend one" in found["why_not"]


def test_several_fields_have_their_sensitivity_and_a_picture(tmp_path):
    noise = np.random.default_rng(3)
    space = {"method.rho": {"loguniform": [0.01, 0.5]}, "optimizer.name": {"choice": ["sgd", "adamw"]}}
    made = []
    for index in range(40):
        rho, name = float(np.exp(noise.uniform(math.log(0.01), math.log(0.5)))), ["sgd", "adamw"][index % 2]
        score = digits(rho, noise) - (0.02 if name == "adamw" else 0.0)
        values = {"method.rho": rho, "optimizer.name": name}
        made.append(Measured(index, index, None, values, 0, "SUCCEEDED", "", ((9.0, score),), True, 1.0, 10))
    found = report(sweep_of(space=space, trials=40, baselines=[]), made)
    assert found["recommended"]["values"]["optimizer.name"] == "sgd"
    assert found["recommended"]["intervals"]["optimizer.name"] == ["sgd"]
    assert sum(found["sensitivity"].values()) == pytest.approx(1, abs=1e-3)
    draw(found, tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
