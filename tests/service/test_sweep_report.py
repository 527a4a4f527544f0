"""The answer of a sweep: from trials made up with a known answer, and from those of digits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampa.service.sweeps.report import report

from .made_up import baselines, digits, digits_like, halved, planted, trial, two_fields
from .sweeps import sweep_of

SPEC = sweep_of(search="grid", trials=16, seeds=3)
ONE = sweep_of(trials=40, baselines=[])
RHO_AND_OPTIMIZER = {"method.rho": {"loguniform": [0.01, 0.5]}, "optimizer.name": {"choice": ["sgd", "adamw"]}}


def rho_of(found):
    return found["recommended"]["values"]["method.rho"]


def ends_of(found):
    return found["recommended"]["intervals"]["method.rho"]


class TestDigits:
    """What design.md, section 7, says of digits is what a report says."""

    @pytest.mark.parametrize("seed", range(3))
    def test_made_up_like_them_give_rho_collapse_and_advantage(self, seed):
        found = report(SPEC, digits_like(seed=seed))
        assert 0.05 <= rho_of(found) <= 0.15
        assert 0.03 < ends_of(found)[0] < 0.09 < ends_of(found)[1] < 0.2
        assert 0.2 < found["collapse"]["method.rho"]["from"] < 0.3
        assert found["advantage"]["sgd"]["probability"] > 0.99
        assert found["advantage"]["sgd"]["worth_it"]
        assert found["verdict"].startswith(f"SAMPa at rho {rho_of(found):.3g} beats SGD here: +")
        assert found["verdict"].endswith("it is worth it")
        assert found["advantage"]["sam"]["probability"] < 0.9
        assert found["cost"]["trial"]["recommended"]["to_sgd"] == pytest.approx(7 / 4)

    def test_measured(self):
        found = report(SPEC, digits())
        assert 0.1 < rho_of(found) < 0.14
        assert found["recommended"]["mean"] == pytest.approx(0.959, abs=0.003)
        assert found["collapse"]["method.rho"]["from"] == 0.2287
        assert found["collapse"]["method.rho"]["share"] == pytest.approx(11 / 12)
        fell = "11 of 48 full trials fell apart (worse than 0.844), most of them from rho 0.229 on"
        assert found["collapse"]["sentence"] == fell
        assert found["advantage"]["sgd"]["difference"] == pytest.approx(0.055, abs=0.005)
        assert found["cost"]["trial"]["recommended"]["gradients_to_sgd"] == pytest.approx(2, abs=0.01)
        assert found["notes"] == []

    @pytest.mark.parametrize("seed", range(3))
    def test_one_seed_recommends_about_the_same(self, seed):
        one = [each for each in digits() if each.seed == seed]
        assert 0.08 < rho_of(report(SPEC, one)) < 0.14

    @pytest.mark.parametrize("order", range(4))
    @pytest.mark.parametrize("grace", [9, 15])
    def test_stopped_early_they_recommend_about_the_same(self, grace, order):
        stopped = report(SPEC, halved(digits(), grace=grace, order=order))
        assert stopped["trials"]["early"] > 20
        assert 0.05 <= rho_of(stopped) <= 0.15
        low, high = ends_of(report(SPEC, digits()))
        assert ends_of(stopped)[0] < high
        assert ends_of(stopped)[1] > low

    def test_that_early_epochs_mislead_is_said(self):
        found = report(SPEC, halved(digits(), grace=3))
        assert [row["epoch"] for row in found["stopping"]] == [3, 9, 27]
        assert found["stopping"][0]["agreement"] < 0.3
        assert found["stopping"][-1]["agreement"] > 0.9
        assert any(note.startswith("the order at epoch ") for note in found["notes"])


class TestAPlantedOptimum:
    @pytest.mark.parametrize("noise", [0.02, 0.1])
    def test_is_found_within_a_tenth_and_its_interval_covers_it(self, noise):
        covered, near = 0, 0
        for seed in range(20):
            trials, best = planted(seed, noise=noise)
            found = report(ONE, trials)
            covered += ends_of(found)[0] <= best <= ends_of(found)[1]
            near += abs(math.log(rho_of(found) / best)) < math.log(1.1)
        assert covered >= 18
        assert near >= 18

    def test_of_which_less_is_better_is_the_same_with_other_signs(self):
        more, less = (planted(3, sign=sign)[0] for sign in (1, -1))
        up = report(ONE, more)
        down = report(sweep_of(trials=40, baselines=[], metric="loss", mode="min"), less)
        assert ends_of(down) == ends_of(up)
        assert down["recommended"]["mean"] == pytest.approx(-up["recommended"]["mean"])
        low, high = down["recommended"]["interval"]
        assert low < high
        lower, upper = down["curve"]["method.rho"]["low"], up["curve"]["method.rho"]["high"]
        assert lower == pytest.approx([-value for value in upper])

    def test_at_an_end_of_the_space_is_said(self):
        rhos = [0.01 * 50 ** (i / 19) for i in range(20)]
        found = report(ONE, [trial(i, math.log(rho), values={"method.rho": rho}) for i, rho in enumerate(rhos)])
        assert found["notes"] == ["the best method.rho lies at the high end of what was tried, 0.5; search beyond it"]


class TestNoFalseCertainty:
    @pytest.mark.parametrize("seeds", [1, 3])
    @pytest.mark.parametrize(("margin", "most"), [(0.0, 3), (0.005, 1)])
    def test_a_win_is_seldom_claimed_over_an_sgd_that_is_as_good(self, seeds, margin, most):
        spec = sweep_of(search="grid", trials=16, seeds=seeds, margin=margin)
        flat = [digits_like(seeds, seed=seed, sgd=0.966, rise=0.0, fall=0.0) for seed in range(20)]
        found = [report(spec, trials)["advantage"]["sgd"] for trials in flat]
        assert sum(one["probability"] >= 0.95 for one in found) <= most
        assert not any(one["worth_it"] for one in found if seeds == 1)

    def test_one_seed_of_sgd_is_said(self):
        found = report(SPEC, digits_like(1))
        low, high = found["baselines"]["sgd"]["interval"]
        assert high - low > 0.01
        assert found["advantage"]["sgd"]["worth_it"] is None
        assert "seems to beat SGD here" in found["verdict"]
        assert "It rests on one seed of SGD" in found["verdict"]

    def test_what_does_not_pay_is_said(self):
        found = report(SPEC, digits_like(sgd=0.98))["advantage"]["sgd"]
        assert found["worth_it"] is False
        assert "is worse than SGD here: -" in found["verdict"]


def same(*scores):
    """Return two trials of each of these configurations."""
    return [
        trial(2 * i + seed, score, values={"method.rho": 0.1 * (i + 1)}, configuration=i, seed=seed)
        for i, score in enumerate(scores)
        for seed in range(2)
    ]


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], "no trial of the search space was trained to its end; 4 are needed"),
        (digits_like()[:6], "no trial of the search space was trained to its end"),
        ([trial(i, None, state="FAILED", values={"method.rho": 0.1}) for i in range(8)], "no trial of the search"),
        (same(math.nan, math.nan), "no trial of the search space ended with a finite metric"),
        (digits_like(1)[:5], "only 3 trials of 3 configurations can be used; 4 trials are needed, of two"),
        (same(0.9) + same(0.9), "4 trials of 1 configuration can be used"),
        (same(0.95, 0.1, 0.1), "only 2 trials didn't fall apart; 3 are needed: search where training is calmer"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_guessed(trials, reason):
    found = report(SPEC, trials)
    assert found["recommended"] is None
    assert reason in found["why_not"]
    assert found["verdict"] == f"nothing can be recommended: {found['why_not']}"
    assert (found["advantage"], found["sensitivity"], found["curve"]) == ({}, {}, {})
    assert len(found["trials"]["failed"]) == sum(one.state == "FAILED" for one in trials)
    json.dumps(found, allow_nan=False)


def test_several_fields_have_their_sensitivity():
    found = report(sweep_of(space=RHO_AND_OPTIMIZER, trials=60, baselines=[]), [*two_fields()])
    assert found["recommended"]["values"]["optimizer.name"] == "sgd"
    assert 0.05 < rho_of(found) < 0.15
    (first, chance), _ = found["recommended"]["intervals"]["optimizer.name"]
    assert first == "sgd"
    assert chance > 0.95
    assert sum(found["sensitivity"].values()) == pytest.approx(1)
    assert 0.3 < found["sensitivity"]["optimizer.name"] < 0.95
    assert found["curve"]["optimizer.name"]["x"] == ["sgd", "adamw"]
    assert len(found["values"]["optimizer.name"]) == 2


def test_whole_numbers_and_listed_ones_are_recommended_as_they_are():
    space = {"batch_size": {"choice": [32, 64, 128]}, "epochs": {"integer": [5, 20]}}
    stream = np.random.default_rng(0)
    pairs = [(batch, epochs) for batch in (32, 64, 128) for epochs in range(5, 21, 3)]
    trials = [
        trial(
            i,
            0.9 + 0.01 * (batch == 64) - 0.001 * (epochs - 12) ** 2 + stream.normal(0, 0.001),
            values={"batch_size": batch, "epochs": epochs},
        )
        for i, (batch, epochs) in enumerate(pairs)
    ]
    values = report(sweep_of(space=space, trials=18, baselines=[]), trials)["recommended"]["values"]
    assert values["batch_size"] == 64
    assert values["epochs"] in (11, 12, 13)
    assert isinstance(values["epochs"], int)


def test_the_same_trials_in_any_order_give_the_same_report():
    trials = halved(digits(), grace=9)
    assert report(SPEC, trials) == report(SPEC, trials[::-1])


def test_runs_that_became_infinite_have_fallen_apart():
    gone = ((30.0, math.nan),)
    trials = [replace(one, curve=gone) if one.values.get("method.rho", 0) > 0.2 else one for one in digits()]
    found = report(SPEC, trials)
    assert 0.08 < rho_of(found) < 0.15
    assert found["collapse"]["method.rho"]["share"] == 1
    assert found["configurations"][-1]["results"] == [None, None, None]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_the_trials_are_there_is_a_report(data):
    scores = st.one_of(st.just(0.5), st.floats(0, 1), st.sampled_from([math.nan, math.inf, -1e30]))
    trials = baselines(np.random.default_rng(0), 1, sgd=0.5)
    for number in range(1, 1 + data.draw(st.integers(0, 12))):
        epochs = sorted(data.draw(st.sets(st.sampled_from([1.0, 3.0, 9.0, 30.0]), max_size=4)))
        one = trial(
            number,
            0.0,
            values={"method.rho": data.draw(st.sampled_from([0.01, 0.1, 0.2, 0.5]))},
            state=data.draw(st.sampled_from(["SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"])),
            curve=tuple((epoch, data.draw(scores)) for epoch in epochs),
            full=bool(epochs) and data.draw(st.booleans()),
        )
        trials.append(one)
    found = report(SPEC, trials)
    assert (found["recommended"] is None) == bool(found["why_not"])
    json.dumps(found, allow_nan=False)
