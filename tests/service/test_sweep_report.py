"""The answer of a sweep: from trials made up with a known answer, and from those of digits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampa.service.sweeps.axes import axes_of
from sampa.service.sweeps.optimum import advantages, grouped, optimum_of
from sampa.service.sweeps.report import report, without
from sampa.service.sweeps.smoother import Results

from .made_up import baselines, digits, digits_like, flat, halved, planted, trial, two_fields
from .sweeps import sweep_of

SPEC = sweep_of(search="grid", trials=16, seeds=3, baselines=["sgd", {"name": "sam", "rho": 0.1}])
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
        assert stopped["advantage"]["sgd"]["worth_it"], "3.4 points are far more than luck"

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

    @pytest.mark.parametrize(("trials", "seeds", "together"), [(48, 1, True), (16, 3, True), (16, 3, False)])
    def test_nor_where_others_were_stopped_early_and_the_lucky_ones_went_on(self, trials, seeds, together):
        spec = sweep_of(search="grid", trials=trials, seeds=seeds)
        stopped = [halved(flat(trials, seeds, seed), grace=3, order=seed, together=together) for seed in range(6)]
        found = [grouped(spec, some) for some in stopped]
        leads = [advantages(optimum_of(spec, group), group.baselines)["sgd"] for group in found]
        assert sum(lead.above(spec.margin) >= 0.95 for lead in leads) <= 1
        assert np.mean([lead.mean for lead in leads]) < 0.004, "0.003 without early stops"

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


def method_of(number):
    return ["sampa", "sgd", {"name": "sam", "rho": 0.2}, {"name": "sam", "rho": 0.1}][number]


def test_whole_objects_are_recommended_and_told_by_their_settings():
    space = {"method": {"choice": [method_of(number) for number in range(4)]}}
    trials = [
        trial(2 * i + seed, 0.9 + 0.01 * i + 0.001 * seed, values={"method": method_of(i)}, configuration=i, seed=seed)
        for i in range(4)
        for seed in range(2)
    ]
    trials += [trial(8 + seed, 0.8 + 0.001 * seed, baseline="sgd", seed=seed) for seed in range(2)]
    found = report(sweep_of(space=space, trials=4, seeds=2, baselines=["sgd"]), trials)
    assert found["recommended"]["values"] == {"method": {"name": "sam", "rho": 0.1}}
    assert found["verdict"].startswith("SAM at rho 0.1 beats SGD here: +")
    assert [row["value"] for row in found["values"]["method"]] == [method_of(number) for number in range(4)]
    (panel,) = found["plot"]["panels"]
    assert panel["choices"] == ["sampa", "sgd", "sam (rho 0.2)", "sam (rho 0.1)"]
    assert (panel["at"], [point["x"] for point in panel["points"]]) == (3, [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize(
    ("space", "value"),
    [({"optimizer.name": {"choice": ["sgd", "adamw"]}}, "adam"), ({"batch_size": {"choice": [32, 64]}}, "many")],
)
def test_a_value_that_the_space_does_not_have_is_refused(space, value):
    (axis,) = axes_of(sweep_of(space=space, search="random", trials=2).space)
    with pytest.raises(ValueError, match=f"'{value}' is no"):
        axis.place(value)


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


class TestDivergence:
    """Runs whose loss is no number any more have fallen apart, however they ended."""

    def test_of_most_seeds_of_a_large_rho_keeps_it_from_being_recommended(self):
        trials = digits_like(fall=0.0, rise=-0.0065)  # those that are left are the better the larger
        gone = {"state": "FAILED", "reason": "the loss is not finite", "curve": (), "full": False, "diverged": True}
        trials = [
            replace(one, **gone) if one.values.get("method.rho", 0) > 0.15 and one.seed else one for one in trials
        ]
        found = report(SPEC, trials)
        assert rho_of(found) < 0.15
        fell = "10 of 48 full trials fell apart"
        assert found["collapse"]["sentence"].startswith(fell)
        assert found["collapse"]["method.rho"]["from"] == pytest.approx(0.1762)
        assert found["trials"]["full"] == 54
        assert len(found["trials"]["failed"]) == 10

    @pytest.mark.parametrize("full", [True, False])
    def test_in_the_last_evaluation_is_not_what_was_before(self, full):
        curve = ((9.0, 0.99), (18.0, math.nan))
        trials = [
            replace(one, curve=curve, full=full) if one.values.get("method.rho", 0) > 0.15 else one
            for one in digits_like(fall=0.0)
        ]
        found = report(SPEC, trials)
        assert rho_of(found) < 0.16
        assert found["collapse"]["method.rho"]["share"] == 1
        assert found["collapse"]["sentence"].startswith("15 of 48 full trials fell apart")

    def test_before_the_epoch_where_others_were_stopped_counts_once(self):
        trials = halved(digits_like(fall=0.0), grace=9)
        gone = {"state": "FAILED", "curve": ((3.0, 0.5),), "full": False, "diverged": True}
        trials = [replace(one, **gone) if one.values.get("method.rho", 0) > 0.2 else one for one in trials]
        assert report(SPEC, trials)["collapse"]["sentence"].startswith("12 of ")


class TestPopulation:
    SPEC = sweep_of(trials=8, scheduler={"name": "pbt", "every_epochs": 3})

    def trials(self):
        stream = np.random.default_rng(0)
        rhos = [0.02 * (1 + number) for number in range(8)]
        found = [trial(2 + i, 0.9 + 0.01 * i, values={"method.rho": rho}) for i, rho in enumerate(rhos)]
        history = ((0.0, {"method.rho": 0.02}), (10.0, {"method.rho": 0.08}), (20.0, {"method.rho": 0.16}))
        return [*baselines(stream, 1, sgd=0.8, sam=0.8), *found[:-1], replace(found[-1], changes=history)]

    def test_has_the_best_trials_schedule_and_no_claim(self):
        found = report(self.SPEC, self.trials())
        assert [row["epoch"] for row in found["schedule"]] == [0, 10, 20]
        assert found["schedule"][1]["values"] == {"method.rho": 0.08}
        assert found["recommended"]["values"] == {"method.rho": 0.16}
        assert (found["recommended"]["interval"], found["recommended"]["intervals"]) == (None, {})
        assert (found["advantage"], found["curve"], found["values"]) == ({}, {}, {})
        assert "trial 9 is the best of the population, with accuracy 0.97 at its end" in found["verdict"]
        assert "worth it" not in found["verdict"]
        assert any("no probability and no comparison" in note for note in found["notes"])
        assert any("promoted jobs are trained with its last values" in note for note in found["notes"])

    def test_whose_best_never_changed_has_a_schedule_of_one_row(self):
        found = report(self.SPEC, [replace(one, changes=()) for one in self.trials()])
        assert found["schedule"] == [{"epoch": 0.0, "values": {"method.rho": 0.16}}]


class TestBaselines:
    def test_are_told_with_their_settings(self):
        found = report(SPEC, digits())
        assert found["baselines"]["sam"]["method"]["rho"] == 0.1
        assert "SAM at rho 0.1 here: " in found["advantage"]["sam"]["verdict"]
        assert "SGD here: " in found["advantage"]["sgd"]["verdict"]

    def test_at_a_default_where_the_sweep_searched_are_said_to_be(self):
        found = report(sweep_of(search="grid", trials=16, seeds=3), digits())
        assert "SAM at rho 0.05 here: " in found["advantage"]["sam"]["verdict"]
        (note,) = found["notes"]
        assert note.startswith("sam was trained at its default rho 0.05, while method.rho was searched")


def test_a_cost_names_its_unit():
    assert report(SPEC, digits())["cost"]["unit"] == "worker-seconds"


def test_without_an_answer_it_has_the_same_fields_and_says_why():
    found, full = without(SPEC, digits(), "the report could not be made"), report(SPEC, digits())
    assert found.keys() == full.keys()
    assert found["trials"] == full["trials"] | {"early": 0}
    assert found["verdict"] == "nothing can be recommended: the report could not be made"
    json.dumps(found, allow_nan=False)


def test_of_many_trials_the_surface_is_fitted_to_evenly_spaced_ones():
    values = np.arange(4000.0)
    owners = np.repeat(np.arange(2000), 2)
    some = Results(values[:, None], values, values, owners, shared=True).some(1000)
    assert len(some.owners) == 1000
    assert (some.owners[::2] == some.owners[1::2]).all(), "all results of each"
    assert some.some(1000) is some


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
            diverged=data.draw(st.booleans()),
        )
        trials.append(one)
    found = report(SPEC, trials)
    assert (found["recommended"] is None) == bool(found["why_not"])
    json.dumps(found, allow_nan=False)
