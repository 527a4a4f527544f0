"""The step against references: the authors' trajectory, the equations' ends, and plain torch."""

import copy
import json
from pathlib import Path

import pytest
import torch
from sampa.workers.methods.base import Gradients
from torch import nn
from torch.nn.functional import cross_entropy

from .serial import engine_of, plan_of

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "sampa_reference.json").read_text())


def reference_task():
    from sampa.workers.task import Task

    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), REFERENCE["start"]["params"], strict=True):
            parameter.copy_(torch.tensor(values, dtype=torch.float64).reshape(parameter.shape))
    data = torch.tensor(REFERENCE["x"], dtype=torch.float64), torch.tensor(REFERENCE["y"])

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.15)

    return Task(model=model, train=data, loss=loss)


def flat_of(engine, tensors):
    vector = torch.zeros(engine.flat.parameters, dtype=torch.float64)
    for slot, values in zip(engine.flat._slots, tensors, strict=True):
        slot.of(vector).copy_(torch.as_tensor(values, dtype=torch.float64).reshape(slot.shape))
    return vector


def split(engine, flat_gradient):
    lengths = [slot.shape.numel() for slot in engine.flat._slots]
    return torch.tensor(flat_gradient, dtype=torch.float64).split(lengths)


def test_follows_the_authors_script_to_1e_12():
    steps = REFERENCE["steps"]
    plan = plan_of(
        method={"name": "sampa", "rho": REFERENCE["rho"], "lambda": REFERENCE["lambda"]},
        optimizer={
            "name": "sgd",
            "lr": 1.0,
            "momentum": REFERENCE["momentum"],
            "weight_decay": REFERENCE["weight_decay"],
        },
        batch_size=REFERENCE["batch_size"],
        steps=len(steps),
        shuffle=False,
    )
    engine, exchange = engine_of(plan, reference_task())
    engine.state.optimizer["momentum_buffer"].copy_(flat_of(engine, REFERENCE["start"]["momentum_buffer"]))
    engine.state.carried = Gradients(flat_of(engine, split(engine, REFERENCE["start"]["plain_gradient"])))
    assert len(steps) == 23
    for number, step in enumerate(steps):
        assert (step["perturbed_batch"], step["plain_batch"]) == (number % 8, (number + 1) % 8)
        engine.plan = plan.model_copy(update={"optimizer": plan.optimizer.model_copy(update={"lr": step["lr"]})})
        engine.advance(exchange)
        expected = flat_of(engine, step["params"])
        torch.testing.assert_close(engine.state.weights[: len(expected)], expected, rtol=0, atol=1e-12)


def run(plan, steps):
    """The trajectory of the digits-like small problem, weights after each step."""
    engine, exchange = engine_of(plan, reference_task())
    engine.start(exchange)
    trajectory = []
    for _ in range(steps):
        engine.advance(exchange)
        trajectory.append(engine.state.weights[: engine.flat.parameters].clone())
    return engine, trajectory


def batch(number):
    rows = torch.arange(number * 16, (number + 1) * 16) % 128
    return torch.tensor(REFERENCE["x"], dtype=torch.float64)[rows], torch.tensor(REFERENCE["y"])[rows]


def gradient(model, number):
    task = reference_task()
    model.zero_grad()
    task.loss(model, batch(number)).mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def torch_optimizer(name, parameters):
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=name == "nesterov")


OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "nesterov": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_sam_follows_an_independent_torch_sam(name, rho):
    plan = plan_of(
        method={"name": "sam", "rho": rho}, optimizer=OPTIMIZERS[name], batch_size=16, steps=12, shuffle=False
    )
    engine, trajectory = run(plan, 12)
    model = reference_task().model
    optimizer = torch_optimizer(name, model.parameters())
    for number in range(12):
        kept = [p.detach().clone() for p in model.parameters()]
        g = gradient(model, number)
        length = torch.sqrt(sum((part**2).sum() for part in g)) + 1e-12
        with torch.no_grad():
            for p, part in zip(model.parameters(), g, strict=True):
                p.add_(rho * part / length)
        gradient(model, number)
        grads = [p.grad.clone() for p in model.parameters()]
        with torch.no_grad():
            for p, before, part in zip(model.parameters(), kept, grads, strict=True):
                p.copy_(before)
                p.grad = part
        optimizer.step()
        torch.testing.assert_close(trajectory[number], flat_of(engine, list(model.parameters())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sgd_is_the_base_optimizer(name):
    plan = plan_of(method={"name": "sgd"}, optimizer=OPTIMIZERS[name], batch_size=16, steps=12, shuffle=False)
    engine, trajectory = run(plan, 12)
    model = reference_task().model
    optimizer = torch_optimizer(name, model.parameters())
    for number in range(12):
        gradient(model, number)
        optimizer.step()
        torch.testing.assert_close(trajectory[number], flat_of(engine, list(model.parameters())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("rho", "lam"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.2), (0.1, 1.0)])
def test_sampa_follows_its_equations_written_out(name, rho, lam):
    """The look-ahead is a real step of a copied torch optimizer, then thrown away."""
    plan = plan_of(
        method={"name": "sampa", "rho": rho, "lambda": lam},
        optimizer=OPTIMIZERS[name],
        batch_size=16,
        steps=12,
        shuffle=False,
    )
    engine, trajectory = run(plan, 12)
    model = reference_task().model
    optimizer = torch_optimizer(name, model.parameters())
    g = gradient(model, 0)
    for number in range(12):
        x = [p.detach().clone() for p in model.parameters()]
        length = torch.sqrt(sum((part**2).sum() for part in g)) + 1e-12
        set_weights(model, [a + rho * b / length for a, b in zip(x, g, strict=True)])
        perturbed = gradient(model, number)
        ahead = reference_task().model
        set_weights(ahead, x)
        stepped = torch_optimizer(name, ahead.parameters())
        stepped.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p, part in zip(ahead.parameters(), g, strict=True):
            p.grad = part.clone()
        stepped.step()
        g = gradient(ahead, number + 1)
        set_weights(model, x)
        for p, a, b in zip(model.parameters(), perturbed, g, strict=True):
            p.grad = (1 - lam) * a + lam * b
        optimizer.step()
        torch.testing.assert_close(trajectory[number], flat_of(engine, list(model.parameters())), rtol=0, atol=1e-12)


def set_weights(model, tensors):
    with torch.no_grad():
        for p, value in zip(model.parameters(), tensors, strict=True):
            p.copy_(value)


def test_lambda_one_ignores_rho():
    base = {"optimizer": OPTIMIZERS["sgd"], "batch_size": 16, "steps": 12, "shuffle": False}
    _, near = run(plan_of(method={"name": "sampa", "rho": 0.0, "lambda": 1.0}, **base), 12)
    _, far = run(plan_of(method={"name": "sampa", "rho": 0.5, "lambda": 1.0}, **base), 12)
    assert torch.equal(near[-1], far[-1])


def test_with_rho_and_lambda_zero_each_update_uses_the_batch_of_its_step():
    """At rho 0 and lambda 0 SAMPa is the base optimizer on the same batches."""
    base = {"optimizer": OPTIMIZERS["sgd"], "batch_size": 16, "steps": 12, "shuffle": False}
    _, sampa = run(plan_of(method={"name": "sampa", "rho": 0.0, "lambda": 0.0}, **base), 12)
    _, sgd = run(plan_of(method={"name": "sgd"}, **base), 12)
    for a, b in zip(sampa, sgd, strict=True):
        assert torch.equal(a, b)
