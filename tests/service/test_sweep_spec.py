"""Sweeps as they are asked for: what is refused and in which words, and what their trials are."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sampa.api.faults import faults_of
from sampa.service.specs import JobSpec
from sampa.service.sweeps.space import Domain, compose
from sampa.service.sweeps.spec import Part, SweepSpec

RHO = {"method.rho": {"loguniform": [0.01, 0.5]}}
BASE = {
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "method": {"name": "sampa", "lambda": 0.0},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "epochs": 30,
    "batch_size": 64,
}
SAM = {**BASE, "method": {"name": "sam"}}
ANY = {**BASE, "method": {}}


def sweep(space=RHO, base=BASE, **changes):
    fields = {"name": "s", "base": base, "space": space, "trials": 16, **changes}
    return SweepSpec.model_validate({name: value for name, value in fields.items() if value != "-"})


def faults(*args, **changes):
    with pytest.raises(ValidationError) as caught:
        sweep(*args, **changes)
    return {fault.pointer: fault.detail for fault in faults_of(SweepSpec, caught.value)}


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"loguniform": [0, 0.5]}, "starts at 0, which has no logarithm"),
        ({"loguniform": [-1, 0.5]}, "starts at -1, which has no logarithm"),
        ({"uniform": [0.5, 0.1]}, "runs from 0.5 down to 0.1; give the smaller end first"),
        ({"uniform": [0.5, 0.5]}, "is a constant"),
        ({"choice": [0.1]}, "a constant belongs into base"),
        ({"grid": []}, "needs two values or more"),
        ({"choice": [1, 1.0]}, "has 1.0 twice"),
        ({}, "give exactly one of uniform, loguniform, integer, choice, grid"),
        ({"uniform": [0, 1], "choice": [0, 1]}, "not uniform and choice"),
        ({"uniform": [-0.1, 0.5]}, "must be at least 0, but is -0.1"),
        ({"choice": [0.1, -0.2]}, "must be at least 0, but is -0.2"),
        ({"choice": [0.1, "0.2"]}, "takes a number, but 0.2 is text"),
        ({"choice": [True, False]}, "takes a number, but true is true or false"),
    ],
)
def test_a_domain_that_cannot_mean_what_it_says_is_refused(domain, words):
    (detail,) = faults({"method.rho": domain}).values()
    assert "method.rho" in detail
    assert words in detail
    assert set(faults({"method.rho": domain})) == {"/space/method.rho"}


@pytest.mark.parametrize(
    ("path", "domain", "words"),
    [
        ("method.rh", {"uniform": [0, 1]}, "method has no field rh; did you mean method.rho?"),
        ("method.lam", {"uniform": [0, 1]}, "did you mean method.lambda?"),
        ("metod.rho", {"uniform": [0, 1]}, "a job has no field metod; did you mean method.rho?"),
        ("task.params.label_nois", {"uniform": [0, 0.4]}, "did you mean task.params.label_noise?"),
        ("epochs.x", {"uniform": [0, 1]}, "epochs has no fields"),
        ("zzz", {"uniform": [0, 1]}, "a job has no field zzz; there are: task, method"),
        ("method.lambda", {"uniform": [0, 1.5]}, "must be at most 1, but is 1.5"),
        ("batch_size", {"uniform": [16, 64]}, "takes whole numbers only; search it by integer, choice or grid"),
        ("shuffle", {"integer": [0, 1]}, "takes true or false, but 0 is a number"),
        ("method.name", {"choice": ["sampa", "zz"]}, "must be one of 'sgd', 'sam'"),
        ("seed", {"integer": [0, 3]}, "give the number of seeds"),
        ("workers.max", {"integer": [1, 2]}, "change how fast a trial is"),
        ("evaluate.every_epochs", {"integer": [1, 2]}, "can't be searched"),
    ],
)
def test_a_field_that_cannot_take_its_values_is_named(path, domain, words):
    (found,) = faults({path: domain}).items()
    assert found[0] == f"/space/{path}"
    assert words in found[1]


def test_a_range_of_whole_numbers_is_checked_between_its_ends():
    found = faults({"batch_size": {"integer": [16, 64]}}, base={**BASE, "pairs": 2})
    assert "batch_size 17 can't be cut into 2 equal shards" in found["/space/batch_size"]


@pytest.mark.parametrize("names", [["sam", "sampa"], ["sampa", "sam"]])
def test_choices_that_contradict_each_other_are_refused_with_both_names(names):
    found = faults({"method.name": {"choice": names}, "method.lambda": {"uniform": [0, 0.2]}}, base=ANY)
    words = "with method.name sam there is no method.lambda; search the two in sweeps of their own"
    assert found == {"/space/method.name": words}


def test_a_contradiction_between_two_later_values_is_found():
    space = {"optimizer.momentum": {"choice": [0.9, 0]}, "optimizer.nesterov": {"choice": [False, True]}}
    (detail,) = faults(space).values()
    assert detail.startswith("with optimizer.momentum 0 and optimizer.nesterov true: nesterov needs momentum")


def test_a_contradiction_that_only_a_search_would_meet_is_found_with_the_fields_that_make_it():
    space = {**RHO, "pairs": {"integer": [1, 4]}, "batch_size": {"integer": [16, 64]}}
    ((pointer, detail),) = faults(space).items()
    assert (pointer, "equal shards" in detail, "rho" in detail) == ("/space/pairs", True, False)


def test_combinations_that_all_fit_are_taken():
    space = {"pairs": {"choice": [1, 2, 4]}, "batch_size": {"choice": [32, 64, 128]}, **RHO}
    assert sweep(space).trial(2, {"pairs": 4, "batch_size": 32}).pairs == 4


def test_a_sweep_waits_for_as_many_workers_as_its_widest_method_needs():
    space = {"method.name": {"choice": ["sam", "sampa"]}}
    wide = {**ANY, "pairs": 2, "workers": {"min": 4}}
    assert "waits for, 4" in faults(space, base=wide, workers=3)["/workers"]
    assert sweep(space, base=wide, workers=4).workers == 4


def test_a_value_that_sets_another_searched_field_is_refused():
    space = {"method": {"choice": ["sampa", {"name": "sam", "rho": 0.2}]}, "method.rho": {"uniform": [0, 0.1]}}
    assert "leave it out there" in faults(space, base=ANY)["/space/method.rho"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"epochs": 0}, "/base/epochs", "base.epochs must be at least 1, but is 0"),
        ({"method": {"name": "sampa", "lamda": 0}}, "/base/method/lamda", "did you mean lambda?"),
        (
            {"task": {"entrypoint": "digits", "params": {"label_nois": 1}}},
            "/base/task/params/label_nois",
            "label_noise?",
        ),
        ({"batch_size": 63, "pairs": 2}, "/base/batch_size", "can't be cut into 2 equal shards"),
        ({"name": "x"}, "/base/name", "leave it out"),
        ({"seed": 2**31 - 1}, "/base/seed", "leaves no room for 2 seeds"),
    ],
)
def test_what_is_wrong_with_the_base_is_said_of_the_base(changes, pointer, words):
    found = faults(base={**BASE, **changes}, seeds=2)
    assert words in found[pointer]
    assert len(found) == 1


def test_faults_of_base_and_space_are_told_together():
    assert set(faults({"method.rho": {"uniform": [-1, 1]}}, base={**BASE, "epochs": 0})) == {
        "/base/epochs",
        "/space/method.rho",
    }


def test_the_space_may_give_what_the_base_lacks():
    lacking = {**BASE, "optimizer": {"name": "sgd"}}
    spec = sweep({"optimizer.lr": {"loguniform": ["1e-2", "1e-1"]}}, base=lacking, baselines=[])
    assert spec.trial(0, {"optimizer.lr": 0.02}).optimizer.lr == 0.02
    without = {name: value for name, value in BASE.items() if name != "epochs"}
    found = faults({"steps": {"integer": [10, 20]}}, base=without, baselines=["sgd"])
    assert found == {"/baselines/0": "baselines.0 needs steps, which only the space gives; give base.steps too"}
    found = faults({"optimizer.lr": {"uniform": [0.1, 0.2]}}, base=lacking, baselines=["sgd"])
    assert found == {
        "/baselines/0": "baselines.0 needs optimizer.lr, which only the space gives; give base.optimizer.lr too"
    }


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert sweep({"method.rho": {"choice": ["1e-2", "1e-1"]}}).space["method.rho"].listed == [0.01, 0.1]


def test_baselines_are_methods_and_their_faults_are_named():
    found = faults(baselines=["sgd", {"name": "asam", "rho": -1}, "zz", 3, {"name": "sam", "lambda": 0}])
    assert set(found) == {"/baselines/1/rho", "/baselines/2", "/baselines/3", "/baselines/4/lambda"}
    assert found["/baselines/1/rho"] == "baselines.1.rho must be at least 0, but is -1"


def test_a_baseline_sam_takes_rho_of_the_base_and_labels_are_unique():
    base = {**BASE, "method": {"name": "sampa", "rho": 0.3}}
    labels = sweep(base=base, baselines=["sam", "sgd", {"name": "sam", "rho": 0.2}, "asam"]).baseline_methods
    assert labels == [
        ("sam", {"name": "sam", "rho": 0.3}),
        ("sgd", {"name": "sgd"}),
        ("sam-2", {"name": "sam", "rho": 0.2}),
        ("asam", {"name": "asam"}),
    ]


def test_a_baseline_without_pairs_gets_as_many_shards_and_no_more_workers_than_it_can_use():
    spec = sweep(base={**BASE, "pairs": 4, "workers": {"min": 6, "max": 8}}, baselines=["sgd"])
    job = spec.trial(0)
    assert (job.method.name, job.pairs, job.shards, job.workers.min, job.workers.max) == ("sgd", None, 4, 4, 4)


def test_a_baseline_on_pairs_gets_as_many_as_the_base_has_shards():
    spec = sweep(base={**SAM, "shards": 2, "workers": {"max": 2}}, baselines=["sampa"])
    assert (spec.trial(0).pairs, spec.trial(0).shards) == (2, None)


def test_methods_with_and_without_pairs_can_be_searched_together():
    spec = sweep({"method.name": {"choice": ["sam", "sampa"]}}, base={**ANY, "pairs": 2, "workers": {"max": 4}})
    assert spec.trial(2, {"method.name": "sam"}).shards == 2
    assert spec.trial(3, {"method.name": "sampa"}).pairs == 2


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"metric": "acc"}, "/metric", "not among what digits reports: accuracy and loss"),
        ({"metric": ""}, "/metric", "at least 1 character"),
        ({"trials": "-"}, "/trials", "how many configurations tpe tries"),
        ({"trials": "-", "search": "grid"}, "/trials", "into how many values the grid cuts method.rho"),
        ({"trials": 1, "search": "grid"}, "/trials", "into a constant"),
        ({"scheduler": {"name": "asha", "grace_epochs": 30}}, "/scheduler/grace_epochs", "would end no trial"),
        ({"scheduler": {"name": "asha", "reduction": 1}}, "/scheduler/reduction", "at least 2, but is 1"),
        ({"scheduler": "median", "space": {"epochs": {"integer": [3, 9]}}}, "/space/epochs", "at the same epoch"),
        ({"scheduler": "pbt", "seeds": 2}, "/seeds", "one population"),
        ({"scheduler": "pbt", "search": "tpe"}, "/search", "search: random instead of tpe"),
        ({"scheduler": "pbt", "trials": 1}, "/trials", "two trials or more"),
        ({"scheduler": {"name": "pbt", "every_epochs": 30}}, "/scheduler/every_epochs", "no round before the end"),
        (
            {"scheduler": "pbt", "space": {"batch_size": {"choice": [32, 64]}}},
            "/space/batch_size",
            "while a trial trains",
        ),
        ({"nme": 1}, "/nme", "did you mean name?"),
        ({"name": "x" * 91}, "/name", "at most 90 characters"),
        ({"workers": 1, "base": {**BASE, "workers": {"min": 2}}}, "/workers", "fewer than a trial waits for, 2"),
        ({"trials": 10_001}, "/trials", "at most 10000"),
        ({"trials": 9_999}, "/trials", "are 10001 trials, but at most 10000 can be trained"),
        ({"trials": 3000, "seeds": 4}, "/seeds", "each with 4 seeds, are 12008 trials"),
        ({"trials": True}, "/trials", "must be a number, but is true"),
        ({"metric": " "}, "/metric", "not of the form that is allowed"),
        ({"metric": "a\0b"}, "/metric", "the character NUL"),
    ],
)
def test_a_sweep_that_contradicts_itself_is_refused_with_the_field(changes, pointer, words):
    found = faults(**changes)
    assert words in found[pointer]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"epochs": None, "steps": 100}, "/base/epochs"),
        ({"evaluate": {"every_epochs": None}}, "/base/evaluate/every_epochs"),
        ({"evaluate": {"every_epochs": 2}}, "/scheduler/every_epochs"),
    ],
)
def test_a_scheduler_needs_epochs_and_evaluations(changes, pointer):
    assert set(faults(base={**BASE, **changes}, scheduler={"name": "pbt", "every_epochs": 5})) == {pointer}


def test_a_task_of_the_users_own_may_report_any_metric_but_the_time_of_measuring():
    own = {**BASE, "task": {"entrypoint": "mine:build"}}
    assert sweep(base=own, metric="f1").metric == "f1"
    for metric in ("step", "epoch", "split"):
        assert "not what; name a measure" in faults(base=own, metric=metric)["/metric"]


@pytest.mark.parametrize(
    ("changes", "search"),
    [
        ({}, "tpe"),
        ({"scheduler": "pbt"}, "random"),
        ({"space": {"method.rho": {"grid": [0.1, 0.2]}}, "trials": 2}, "grid"),
    ],
)
def test_the_search_follows_from_the_space_and_the_scheduler(changes, search):
    assert sweep(**changes).search == search


@pytest.mark.parametrize(
    ("changes", "parallel"),
    [
        ({}, 4),
        ({"trials": 40}, 5),
        ({"trials": 400}, 50),
        ({"trials": 100, "seeds": 4, "search": "gp"}, 50),
        ({"trials": 9000}, 1000),
        ({"trials": "-", "space": {"method.rho": {"grid": [n / 100 for n in range(1, 81)]}}}, 4),
        ({"trials": 400, "scheduler": "asha"}, 50),
        ({"trials": 400, "parallel": 7}, 7),
    ],
)
def test_how_many_trials_are_undecided_at_once_follows_from_how_many_there_are(changes, parallel):
    assert sweep(**changes).parallel == parallel


def test_a_longer_sweep_keeps_its_places():
    stored = sweep(trials=40).model_dump(mode="json", by_alias=True)
    assert SweepSpec.model_validate({**stored, "trials": 400}).parallel == 5


def test_less_loss_is_better_unless_said_otherwise():
    assert sweep(metric="loss").mode == "min"
    assert sweep(metric="loss", mode="max").mode == "max"
    assert sweep().mode == "max"


def test_a_grid_has_a_trial_for_each_point_and_cuts_one_range():
    space = {**RHO, "optimizer.lr": {"grid": [0.1, 0.2, 0.3]}}
    grid = sweep(space, trials=9).grid
    assert grid["optimizer.lr"] == [0.1, 0.2, 0.3]
    assert grid["method.rho"] == [0.01, 0.0707107, 0.5]
    assert "is not 2 or more times 3" in faults(space, trials=10)["/trials"]
    two = {**RHO, "optimizer.lr": {"uniform": [0.1, 0.3]}}
    assert "can cut one range" in faults(two, search="grid")["/space/optimizer.lr"]


def test_a_grid_says_the_number_of_trials_itself():
    space = {"method.rho": {"grid": [0.1, 0.2]}, "optimizer.lr": {"choice": [0.1, 0.2, 0.3]}}
    assert sweep(space, trials="-").configurations == 6
    assert "has 6 points, but trials is 7" in faults(space, trials=7)["/trials"]
    assert "search: random doesn't try each value" in faults(space, search="random")["/space/method.rho"]


@given(st.floats(1e-6, 1.0), st.floats(1.001, 1e6), st.integers(2, 40), st.sampled_from(["uniform", "loguniform"]))
def test_a_cut_keeps_both_ends_and_rises(low, ratio, count, kind):
    domain = Domain.model_validate({kind: [low, low * ratio]})
    values = domain.cut(count)
    assert len(values) == count
    assert (values[0], values[-1]) == domain.ends
    assert values == sorted(values)


@given(st.integers(-50, 50), st.integers(1, 60), st.data())
def test_a_cut_of_whole_numbers_repeats_none(low, more, data):
    count = data.draw(st.integers(2, more + 1))
    values = Domain(integer=(low, low + more)).cut(count)
    assert all(isinstance(value, int) for value in values)
    assert len(set(values)) == count


def test_baselines_come_first_then_each_configuration_with_all_its_seeds():
    spec = sweep(seeds=3, base={**BASE, "seed": 7}, trials=2)
    assert spec.trial_count == 12
    assert [spec.part(n).baseline for n in range(7)] == ["sgd"] * 3 + ["sam"] * 3 + [None]
    assert [spec.part(n).seed for n in range(4)] == [7, 8, 9, 7]
    assert [*spec.numbers_of(1)] == [9, 10, 11]
    assert spec.part(10, {"method.rho": 0.1}) == Part(10, 1, None, {"method.rho": 0.1}, 8)
    job = spec.trial(10, {"method.rho": 0.1})
    assert (job.name, job.seed, job.method.rho) == ("s-10", 8, 0.1)


def test_a_trial_is_the_job_that_one_would_have_written():
    by_hand = {**BASE, "name": "s-3", "seed": 1, "method": {"name": "sampa", "lambda": 0.0, "rho": 0.2}}
    spec = sweep(seeds=2, baselines=["sgd"])
    assert spec.trial(3, {"method.rho": 0.2}) == JobSpec.model_validate(by_hand)


def test_composing_changes_nothing_that_is_given():
    base = json.loads(json.dumps(BASE))
    job = compose(base, {"method.rho": 0.1, "mix.mixup": 0.2, "method.with.k": 3})
    assert base == BASE
    assert job["method"] == {"name": "sampa", "lambda": 0.0, "rho": 0.1, "with": {"k": 3}}
    assert job["mix"] == {"mixup": 0.2}


def test_a_method_given_by_name_keeps_its_name_when_a_setting_is_searched():
    base = {**BASE, "method": {"name": "sampa", "with": "looksam"}}
    spec = sweep({"method.with.k": {"integer": [2, 5]}}, base=base)
    assert spec.trial(2, {"method.with.k": 4}).method.with_.k == 4


@pytest.mark.parametrize("scheduler", ["none", "asha", "median", "pbt"])
def test_a_sweep_survives_its_own_json(scheduler):
    spec = sweep(scheduler=scheduler, budget={"wall_s": 60}, workers=2)
    as_json = spec.model_dump_json(by_alias=True)
    assert SweepSpec.model_validate_json(as_json) == spec
    assert json.loads(as_json)["space"] == RHO


def test_a_sweep_knows_the_code_that_its_trials_need():
    spec = sweep(base={**BASE, "code": {"bundle": "a" * 64, "pip": ["timm"]}})
    assert (spec.bundle, spec.pip) == ("a" * 64, ["timm"])
    assert spec.with_pip(["einops"]).trial(5, {"method.rho": 0.1}).pip == ["einops"]


def test_a_copy_computes_anew_what_follows_from_its_fields():
    spec = sweep()
    assert (spec.example.epochs, spec.length_epochs, len(spec.baseline_methods)) == (30, 30, 2)
    copied = spec.model_copy(update={"base": {**BASE, "epochs": 9}, "baselines": ["sgd"]})
    assert (copied.example.epochs, copied.length_epochs, len(copied.baseline_methods)) == (9, 9, 1)
    assert (spec.length_epochs, spec.example is spec.example) == (30, True)
    assert spec == sweep(), "what was computed is no part of it"


def test_a_log_range_over_all_magnitudes_is_cut_without_overflow():
    assert Domain(loguniform=(1e-300, 1e300)).cut(3) == [1e-300, 1.0, 1e300]
    assert all(0 < value <= 1 for value in Domain(loguniform=(5e-324, 1)).samples)


def test_grace_is_rounded_up_to_an_evaluation():
    spec = sweep(scheduler={"name": "asha", "grace_epochs": 3}, base={**BASE, "evaluate": {"every_epochs": 2}})
    assert spec.scheduler.grace(2) == 4


def test_reading_a_sweep_loads_neither_ray_nor_torch_nor_optuna():
    code = "import sys, sampa.service.sweeps.spec; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "ray", "optuna", "numpy", "matplotlib"} & set(loaded.split())
