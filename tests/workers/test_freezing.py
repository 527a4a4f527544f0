"""Frozen parameters: the same bits at the end, and less to store and to hand over."""

import pytest
import torch
from sampa.workers.checkpoints import Checkpoints, Record
from sampa.workers.errors import TaskError
from sampa.workers.freezing import freeze
from sampa.workers.storage import Storage
from torch import nn

from .serial import engine_of, plan_of
from .tasks import convolution

SAMPA = {"name": "sampa", "rho": 0.1, "lambda": 0.2}


def after_training(*patterns, pairs=1, steps=4):
    """Return the model's tensors before and after, and the engine."""
    torch.manual_seed(1)
    task = convolution()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    plan = plan_of(method=SAMPA, optimizer={"name": "adamw", "lr": 0.01}, pairs=pairs, batch_size=48, freeze=patterns)
    engine, exchange = engine_of(plan, task)
    engine.start(exchange)
    for _ in range(steps):
        engine.advance(exchange)
    engine.stand_on_weights()
    return before, task.model.state_dict(), engine


def same(before, after):
    return {name for name, tensor in before.items() if torch.equal(tensor, after[name])}


@pytest.mark.parametrize("pairs", [1, 3])
def test_frozen_tensors_have_the_same_bits_at_the_end(pairs):
    before, after, _ = after_training("0.*", "1.*", pairs=pairs)
    assert same(before, after) == {name for name in before if name.startswith(("0.", "1."))}
    assert "1.running_mean" in same(before, after)
    assert "1.num_batches_tracked" in same(before, after)


def test_a_frozen_batch_norm_uses_its_running_statistics():
    _, _, engine = after_training("1.*")
    engine.task.set_training()
    assert [layer.training for layer in engine.task.model] == [True, False, True, True, True, True]
    assert engine.task.model.training


@pytest.mark.parametrize("patterns", [(r"1\.weight",), (r"0\..*",)])
def test_a_batch_norm_that_is_not_frozen_altogether_goes_on_with_its_statistics(patterns):
    before, after, _ = after_training(*patterns)
    assert "1.running_mean" not in same(before, after)


def test_naming_a_batch_norms_parameters_is_enough():
    assert freeze(convolution().model, [r"1\.(weight|bias)"])


def test_a_batch_norm_without_parameters_is_frozen_with_its_statistics():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, track_running_stats=False)
    )
    assert freeze(model, [r"1\..*", r"2\..*"]) == (model[1], model[2])
    assert freeze(model, [r"0\..*"]) == ()


def test_checkpoints_and_what_a_newcomer_receives_shrink(tmp_path):
    sizes, states = {}, {}
    for patterns in ((), ("5.*",)):
        _, _, engine = after_training(*patterns)
        sizes[patterns] = sum(tensor.nbytes for tensor in engine.state.tensors())
        checkpoints = Checkpoints(Storage.at(tmp_path / str(len(patterns))), {}, 1, "worker 0")
        checkpoints.save(engine.state, Record(), lambda saved, key=patterns: states.update({key: saved.bytes}))
        checkpoints.settle()
    head = 4 * (8 * 36 * 10 + 16)  # bytes of 2,880 weights and 10 biases, padded to 64 bytes
    assert sizes[()] - sizes["5.*",] == 4 * head, "weights, Adam's two averages and the carried gradient"
    assert states[()] - states["5.*",] > 3.9 * head


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(TaskError, match=r"freeze: 'backbone\.\*' matches no parameter .* such as 0.weight"):
        freeze(convolution().model, ["0.*", "backbone.*"])


def test_freezing_everything_is_refused():
    with pytest.raises(TaskError, match="no parameter that requires a gradient"):
        after_training(".*")
