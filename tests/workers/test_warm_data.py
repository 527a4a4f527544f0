"""What a worker has loaded for one run serves the next, and no run's numbers depend on it."""

import gc
import os
import weakref

import numpy as np
import pytest
import torch
from sampa.workers.data import fetch
from sampa.workers.evaluate import evaluate
from sampa.workers.task import load_task
from sampa.workers.tasks import files

from .formats import write_cifar10
from .serial import engine_of, plan_of

TASKS = ("digits", "cifar10", "arrays")


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    monkeypatch.setattr(files, "_kept", {})
    torch.set_num_threads(1)


@pytest.fixture
def params(tmp_path):
    """Give the parameters of each task, over small files."""
    write_cifar10(tmp_path)
    write_arrays(tmp_path, 1.0)
    return {
        "digits": {"label_noise": 0.4},
        "cifar10": {"root": str(tmp_path), "model": "mlp", "validation_rows": 10},
        "arrays": {"path": str(tmp_path / "own.npz")},
    }


def write_arrays(folder, value):
    inputs, targets = np.full((30, 4), value, np.float32), np.arange(30) % 3
    np.savez(folder / "own.npz", x_train=inputs, y_train=targets, x_test=inputs, y_test=targets)


def plan(entrypoint, params=None, seed=0):
    task = {"entrypoint": entrypoint, "params": params or {}}
    return plan_of(task=task, method={"name": "sampa", "rho": 0.1}, seed=seed, steps=4)


def rows_of(task):
    sets = {"train": task.train, **task.evaluations()}
    return {name: fetch(data, torch.arange(5)) for name, data in sets.items()}


def same(one, other):
    return all(torch.equal(*pair) for name in one for pair in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_the_next_run_finds_the_data_loaded_and_gets_a_model_of_its_own(params, name):
    first, second = (load_task(plan(name, params[name], seed)) for seed in (0, 1))
    files._kept.clear()
    cold = load_task(plan(name, params[name], 1))
    assert first.train is second.train is not cold.train
    assert same(rows_of(second), rows_of(cold))
    weights = [torch.cat([one.flatten() for one in task.model.state_dict().values()]) for task in (first, second, cold)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("name", TASKS)
def test_a_run_leaves_the_data_as_they_were(params, name):
    asked = plan(name, params[name])
    task = load_task(asked)
    before = rows_of(task)
    engine, exchange = engine_of(asked, task)
    engine.start(exchange)
    for _ in range(2):
        engine.advance(exchange)
    evaluate(engine, exchange, task.test)
    assert same(before, rows_of(load_task(asked)))


def test_of_two_data_sets_one_is_kept():
    data = weakref.ref(load_task(plan("digits")).train[0])
    gc.collect()
    assert data() is not None
    load_task(plan("digits", {"split_seed": 1}))
    gc.collect()
    assert data() is None


def test_a_file_that_has_changed_is_read_again(params, tmp_path):
    before = os.stat(tmp_path / "own.npz")
    assert load_task(plan("arrays", params["arrays"])).train[0].unique().tolist() == [1.0]
    write_arrays(tmp_path, 2.0)
    os.utime(tmp_path / "own.npz", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load_task(plan("arrays", params["arrays"])).train[0].unique().tolist() == [2.0]


OWN = """
from functools import lru_cache
import torch
from sampa.workers.task import Task

reads = []

@lru_cache(maxsize=1)
def read(rows):
    reads.append(rows)
    return torch.ones(rows, 4), torch.zeros(rows).long()

def build(rows=32):
    return Task(model=torch.nn.Linear(4, 2), train=read(rows))
"""


def test_a_users_own_module_stays_and_with_it_what_it_keeps(tmp_path, monkeypatch):
    (tmp_path / "own_that_keeps.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    tasks = [load_task(plan("own_that_keeps:build", seed=seed)) for seed in (0, 1)]
    import own_that_keeps

    assert own_that_keeps.reads == [32]
    assert not torch.equal(tasks[0].model.weight, tasks[1].model.weight)
