"""One step on one worker: what it may change, what it must not, and how mistakes of the task come out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampa.workers.errors import NotFinite, TaskError, WorkerLost
from sampa.workers.methods.base import norm, perturb
from sampa.workers.task import Task, load_task
from torch import nn

from .serial import engine_of, plan_of
from .tasks import convolution

SAMPA = {"name": "sampa", "rho": 0.1, "lambda": 0.2}
finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(finite, min_size=1, max_size=50), st.floats(0, 10))
def test_the_perturbation_never_leaves_the_ball(values, rho):
    gradient = torch.tensor(values)
    point = perturb(torch.zeros_like(gradient), gradient, torch.empty_like(gradient), rho=rho)
    smallest = 2**-149  # step of float32 near 0, where rho over the norm may lie
    assert float(point.double().norm()) <= rho * (1 + 1e-5) + smallest * float(gradient.double().norm())


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-20])
def test_a_gradient_whose_squares_underflow_makes_no_large_step(size):
    gradient = torch.full((1000,), size)
    point = perturb(torch.zeros(1000), gradient, torch.empty(1000), rho=0.1)
    assert torch.isfinite(point).all()
    assert float(point.norm()) <= 0.1


def test_the_norm_of_a_long_vector_keeps_its_digits():
    vector = torch.full((3_000_001,), 1.0)
    assert float(norm(vector)) == pytest.approx(3_000_001**0.5, rel=1e-6)


def test_shapes_and_radius_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        perturb(torch.zeros(3), torch.zeros(2), torch.zeros(3), rho=0.1)
    with pytest.raises(ValueError, match="rho must be 0 or more"):
        perturb(torch.zeros(3), torch.zeros(3), torch.zeros(3), rho=-0.1)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.1, "momentum": 0.9}, {"name": "adamw", "lr": 0.1}])
def test_a_look_ahead_changes_no_state(optimizer):
    engine, exchange = engine_of(plan_of(method=SAMPA, optimizer=optimizer), convolution())
    engine.start(exchange)
    engine.advance(exchange)
    before = engine.state.weights.clone(), {n: v.clone() for n, v in engine.state.optimizer.items()}
    out = torch.empty(engine.flat.parameters)
    engine._moment().look_ahead(engine.state.carried.mean, out)
    assert torch.equal(engine.state.weights, before[0])
    assert all(torch.equal(v, before[1][n]) for n, v in engine.state.optimizer.items())
    assert not torch.equal(out, engine.state.weights[: len(out)])


def test_running_statistics_come_from_the_plain_halves():
    """What a plain forward pass over each shard leaves, averaged over pairs; the perturbed halves leave nothing."""
    plan = plan_of(method=SAMPA, batch_size=32, pairs=2, shuffle=False)
    task = convolution()
    task.augment = None
    engine, exchange = engine_of(plan, task)
    initial = {n: b.clone() for n, b in task.model.named_buffers()}
    engine.stand_on_weights()
    engine.start(exchange)
    engine.stand_on_weights()
    inputs = task.train[0][:32]
    with torch.no_grad():
        features = torch.nn.functional.conv2d(inputs, task.model[0].weight, task.model[0].bias, padding=1)
    shards = features[:16], features[16:]
    mean = torch.stack([0.1 * shard.mean((0, 2, 3)) for shard in shards]).mean(0)
    torch.testing.assert_close(task.model[1].running_mean, mean)
    assert int(task.model[1].num_batches_tracked) == int(initial["1.num_batches_tracked"]) + 1


def test_parameters_start_at_multiples_of_64_bytes():
    engine, _ = engine_of(plan_of(method=SAMPA), convolution(width=3))
    for parameter in engine.task.model.parameters():
        assert parameter.data_ptr() % 64 == 0


def test_a_worker_holds_no_more_than_six_vectors():
    engine, exchange = engine_of(
        plan_of(method=SAMPA, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}), convolution()
    )
    engine.start(exchange)
    for _ in range(5):
        engine.advance(exchange)
    stock = len(engine.vectors._free) + len(engine.vectors._lent)
    assert stock + len(engine.state.optimizer) + len({"weights", "point"}) <= 6


@pytest.mark.parametrize("method", [{"name": "sgd"}, {"name": "sam", "rho": 0.1}, SAMPA])
def test_a_loss_that_becomes_nan_stops_before_the_update(method):
    task = convolution()
    calls = []

    def loss(model, batch):
        calls.append(1)
        scale = float("nan") if len(calls) > 4 else 1.0
        return model(batch[0]).sum(-1) * scale

    task.loss = loss
    engine, exchange = engine_of(plan_of(method=method), task)
    engine.start(exchange)
    with pytest.raises(NotFinite, match=rf"became nan at step \d+, with {method['name']} .*lr 0.1") as caught:
        for _ in range(6):
            kept = engine.state.weights.clone()
            engine.advance(exchange)
    assert caught.value.step == engine.state.step
    assert torch.equal(kept, engine.state.weights)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, batch: model(batch[0]).mean(), r"one value per sample, shape \(16,\), but returned shape \(\)"),
        (lambda model, batch: 3.0, "but returned float"),
        (lambda model, batch: batch[7], "raised IndexError"),
    ],
)
def test_a_loss_that_cant_be_used_is_explained(loss, words):
    task = convolution()
    task.loss = loss
    engine, exchange = engine_of(plan_of(method={"name": "sgd"}, task={"entrypoint": "mine:build"}), task)
    with pytest.raises(TaskError, match=words):
        engine.advance(exchange)


def test_precision_follows_the_model_or_the_plan():
    task = convolution()
    task.model.double()
    engine, exchange = engine_of(plan_of(method=SAMPA), task)
    engine.start(exchange)
    engine.advance(exchange)
    assert engine.state.weights.dtype == torch.float64
    plan = plan_of(task={"entrypoint": "tests.workers.tasks:convolution"}, method=SAMPA, precision="float64")
    assert {p.dtype for p in load_task(plan).model.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        ("no_such_module:build", "failed to import: ModuleNotFoundError"),
        ("tests.workers.tasks:no_such_function", "has no function no_such_function"),
        ("tests.workers.bad_tasks:wrong_type", "returned int"),
        ("tests.workers.bad_tasks:raises", "failed to build: RuntimeError: no data here"),
        ("tests.workers.bad_tasks:too_small", "has 3 training rows, fewer than one batch of 16"),
        ("tests.workers.bad_tasks:uneven", "lengths"),
        ("tests.workers.bad_tasks:frozen", "no parameter that requires a gradient"),
    ],
)
def test_a_task_that_cant_be_trained_is_explained(entrypoint, words):
    plan = plan_of(task={"entrypoint": entrypoint}, method={"name": "sgd"})
    with pytest.raises(TaskError, match=words):
        engine_of(plan, load_task(plan))


def test_a_dataset_of_items_gives_the_same_numbers_as_tensors():
    tensors = convolution()
    dataset = convolution()
    dataset.model.load_state_dict(tensors.model.state_dict())
    dataset.train = torch.utils.data.TensorDataset(*dataset.train)
    weights = []
    for task in (tensors, dataset):
        engine, exchange = engine_of(plan_of(method=SAMPA), task)
        engine.start(exchange)
        engine.advance(exchange)
        weights.append(engine.state.weights.clone())
    assert torch.equal(*weights)


def test_frozen_parameters_stay_as_they_are():
    task = Task(
        model=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), train=(torch.randn(32, 4), torch.zeros(32).long())
    )
    task.model[0].requires_grad_(requires_grad=False)
    before = task.model[0].weight.clone()
    engine, exchange = engine_of(plan_of(method=SAMPA), task)
    engine.start(exchange)
    engine.advance(exchange)
    assert torch.equal(task.model[0].weight, before)


def seeded():
    torch.manual_seed(1)
    return convolution()


def test_a_wish_for_a_change_of_members_travels_with_the_step():
    engine, exchange = engine_of(plan_of(method=SAMPA, pairs=2), seeded())
    engine.start(exchange)
    changes = [engine.advance(exchange, asked=asked).change for asked in (False, True, False)]
    assert changes == [False, True, False]


def test_a_wish_changes_no_number():
    weights = []
    for asked in (True, False):
        engine, exchange = engine_of(plan_of(method=SAMPA, pairs=2), seeded())
        engine.start(exchange)
        for _ in range(3):
            engine.advance(exchange, asked=asked)
        weights.append(engine.state.weights)
    assert torch.equal(*weights)


def test_warming_up_changes_no_number():
    weights = []
    for warm in (True, False):
        engine, exchange = engine_of(plan_of(method=SAMPA | {"perturbation": "pair"}, pairs=2), seeded())
        if warm:
            engine.warm_up()
        engine.start(exchange)
        for _ in range(3):
            engine.advance(exchange)
        weights.append(engine.state.weights)
    assert torch.equal(*weights)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_shards_own_carried_gradient_can_be_taken_again(steps):
    """What a worker needs that comes to host another's perturbed halves: the same bits, with dropout and all."""
    engine, exchange = engine_of(
        plan_of(method=SAMPA | {"perturbation": "pair"}, batch_size=32, pairs=2), convolution()
    )
    engine.start(exchange)
    for _ in range(steps):
        engine.advance(exchange)
    taken = {shard: vector.clone() for shard, vector in engine.state.carried.own.items()}
    before = engine.state.weights.clone(), [other.clone() for other in engine.state.others]
    assert sorted(taken) == [0, 1]
    del engine.state.carried.own[1]
    engine.regain(exchange.hosts, 0)
    assert all(torch.equal(vector, taken[shard]) for shard, vector in engine.state.carried.own.items())
    engine.state.carried.own.clear()
    engine.regain(exchange.hosts, 0)
    assert sorted(engine.state.carried.own) == [0, 1]
    assert all(torch.equal(vector, taken[shard]) for shard, vector in engine.state.carried.own.items())
    assert torch.equal(engine.state.weights, before[0])
    assert all(torch.equal(*pair) for pair in zip(engine.state.others, before[1], strict=True))


@pytest.mark.parametrize("method", [SAMPA, SAMPA | {"perturbation": "pair"}, {"name": "sam", "rho": 0.1}])
@pytest.mark.parametrize("trade", range(3))
def test_a_step_whose_exchange_breaks_changes_nothing_and_can_be_done_again(method, trade):
    """Whichever trade it is that breaks, the step done again has the bits of one that never broke."""
    width = {"pairs": 2} if method["name"] == "sampa" else {"shards": 2}
    engine, exchange = engine_of(plan_of(method=method, batch_size=32, **width), seeded())
    calm, calm_exchange = engine_of(plan_of(method=method, batch_size=32, **width), seeded())
    for one, its in ((engine, exchange), (calm, calm_exchange)):
        one.start(its)
        one.advance(its)
    before = [tensor.clone() for tensor in engine.state.tensors()]
    left = [trade]

    def breaks(operation, step, sends, receives):
        if not left[0]:
            raise WorkerLost(operation, step, "worker 1", "on purpose")
        left[0] -= 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exchange, "_trade", breaks)
        with pytest.raises(WorkerLost):
            engine.advance(exchange)
    assert all(torch.equal(*pair) for pair in zip(engine.state.tensors(), before, strict=True))
    assert engine.state.step == 1
    for one, its in ((engine, exchange), (calm, calm_exchange)):
        while one.state.step < 4:
            one.advance(its)
    assert torch.equal(engine.state.weights, calm.state.weights)


def test_the_phases_of_a_step_are_told_in_order():
    engine, exchange = engine_of(plan_of(method=SAMPA), seeded())
    engine.start(exchange)
    phases = []
    engine.probe = phases.append
    engine.advance(exchange)
    assert phases == ["computing", "exchanging", "updating"]
