"""A run's numbers depend on its plan alone: not on how many workers ran it, or whether it was interrupted."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from sampa.workers.trainer import train

from .actors import crew, until
from .serial import plan_of

pytestmark = pytest.mark.ray

OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "adamw": {"name": "adamw", "lr": 0.002},
}
SAMPA = {"name": "sampa", "rho": 0.1, "lambda": 0.2}
CASES = list(itertools.product(OPTIMIZERS, ("global", "pair")))


@pytest.fixture(scope="module")
def actors(ray_cluster):
    with crew() as made:
        yield made


def plan_for(*, optimizer="sgd", method=SAMPA, **fields):
    return plan_of(
        task={"entrypoint": "tests.workers.tasks:convolution"},
        method=method,
        optimizer=OPTIMIZERS[optimizer],
        schedule={"name": "cosine", "warmup_steps": 2},
        batch_size=32,
        **{"steps": 12, "checkpoint": {"every_steps": 5, "keep": 2}} | fields,
    )


def assert_same(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("optimizer", "perturbation"), CASES)
def test_pairs_give_the_same_bits_on_any_number_of_workers(actors, tmp_path, optimizer, perturbation):
    for pairs in (1, 2):
        plan = plan_for(optimizer=optimizer, method=SAMPA | {"perturbation": perturbation}, pairs=pairs)
        results = []
        for workers in range(1, 2 * pairs + 1):
            results.append(actors.train(plan, tmp_path / f"{pairs}-{workers}", workers))
            assert_same(tmp_path / f"{pairs}-1", tmp_path / f"{pairs}-{workers}")
        assert all(result["metrics"] == results[0]["metrics"] for result in results)


@pytest.mark.parametrize("perturbation", ["global", "shard"])
def test_sam_gives_the_same_bits_on_any_number_of_workers(actors, tmp_path, perturbation):
    plan = plan_for(method={"name": "sam", "rho": 0.1, "perturbation": perturbation}, shards=2)
    for workers in (1, 2):
        actors.train(plan, tmp_path / str(workers), workers)
    assert_same(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize(("optimizer", "perturbation"), CASES)
def test_a_killed_run_resumes_with_the_bits_of_an_unbroken_one(actors, tmp_path, optimizer, perturbation):
    plan = plan_for(optimizer=optimizer, method=SAMPA | {"perturbation": perturbation}, pairs=2, steps=40)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = actors.train(plan, whole, 2)
    coordinator, _ = actors.start(plan, broken, 4)
    assert until(coordinator, "checkpoint").data["step"] == 5
    actors.kill()
    assert not (broken / "model.safetensors").exists(), "the run must be killed before it ends, or this proves nothing"
    resumed = actors.train(plan, broken, 3)
    assert resumed["metrics"] == unbroken["metrics"]
    assert_same(whole, broken)


def test_ray_train_gives_the_same_bits_on_one_and_two_workers(ray_cluster, tmp_path):
    for workers in (1, 2):
        reports = []
        plan = plan_for(workers={"min": workers, "max": workers})
        outcome = train(plan, tmp_path / str(workers), on_reports=reports.extend)
        assert outcome.succeeded, outcome.reason
        assert [r.data["workers_after"] for r in reports if r.kind == "elastic"] == [workers]
        assert json.loads((tmp_path / str(workers) / "result.json").read_text())["steps"] == 12
    assert_same(tmp_path / "1", tmp_path / "2")
