"""Checkpoints: what is there is complete, whatever happened while one was written, and fits the run that reads it."""

import threading

import pytest
import torch
from sampa.workers import checkpoints as module
from sampa.workers.checkpoints import Checkpoints, Record, restore
from sampa.workers.errors import CheckpointError
from sampa.workers.storage import Storage

from .serial import engine_of, plan_of
from .tasks import convolution

SAMPA = {"name": "sampa", "rho": 0.1, "lambda": 0.2}
DEADLINE_S = 20.0


def checkpoints_in(directory, keep=2, writer="worker 0", **identity):
    return Checkpoints(Storage.at(directory), {"plan": 1} | identity, keep, writer)


def engine_after(steps, perturbation="global"):
    plan = plan_of(
        method=SAMPA | {"perturbation": perturbation},
        optimizer={"name": "adamw", "lr": 0.01},
        pairs=2,
    )
    engine, exchange = engine_of(plan, convolution())
    engine.start(exchange)
    for _ in range(steps):
        engine.advance(exchange)
    return engine, exchange


def save(checkpoints, engine, record=None):
    """Save and wait; return what was told of it."""
    told = []
    checkpoints.save(engine.state, record or Record(), told.append)
    checkpoints.settle()
    (saved,) = told
    return saved


def files_in(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize("perturbation", ["global", "pair"])
@pytest.mark.parametrize("settled", [True, False])
def test_a_restored_engine_goes_on_with_the_same_bits(tmp_path, perturbation, settled):
    torch.manual_seed(1)
    engine, exchange = engine_after(3, perturbation)
    engine.state.settled = settled
    record = Record(1.5, [0.25], {"lr": 0.1}, [("metrics", {"step": 3}, 1.5)], [{"step": 2, "split": "test"}])
    save(checkpoints_in(tmp_path), engine, record)
    other, other_exchange = engine_after(0, perturbation)
    content = checkpoints_in(tmp_path).load_newest()
    other.make_room(other.state, carried=content["carries"])
    restored = restore(other.state, content)
    restored.told = [tuple(entry) for entry in restored.told]
    assert restored == record
    assert (other.state.step, other.state.settled) == (3, settled)
    other.regain(other_exchange.hosts, 0)
    for _ in range(3):
        engine.advance(exchange)
        other.advance(other_exchange)
    assert torch.equal(engine.state.weights, other.state.weights)
    assert all(torch.equal(vector, other.state.optimizer[name]) for name, vector in engine.state.optimizer.items())


def test_a_state_without_a_carried_gradient_can_be_saved_too(tmp_path):
    engine, _ = engine_of(plan_of(method=SAMPA), convolution())
    save(checkpoints_in(tmp_path), engine)
    content = checkpoints_in(tmp_path).load_newest()
    other, _ = engine_after(1)
    other.make_room(other.state, carried=content["carries"])
    assert other.state.carried is None
    assert (content["step"], content["settled"], content["carries"]) == (0, False, False)


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    engine, exchange = engine_after(1)
    kept, go_on = checkpoints_in(tmp_path), threading.Event()
    kept.probe = lambda *_: go_on.wait(DEADLINE_S)
    before = engine.state.weights.clone()
    kept.save(engine.state, Record(), lambda saved: None)
    engine.advance(exchange)
    assert kept.steps() == [], "it must still be being written, or this proves nothing"
    go_on.set()
    kept.settle()
    content = kept.load_newest()
    assert content["step"] == 1
    assert torch.equal(content["tensors"][0], before)


def test_training_does_not_wait_for_a_checkpoint_that_is_still_being_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    engine, exchange = engine_after(1)
    kept, go_on, told = checkpoints_in(tmp_path), threading.Event(), []
    kept.probe = lambda *_: go_on.wait(DEADLINE_S)
    kept.save(engine.state, Record(), told.append)
    engine.advance(exchange)
    kept.save(engine.state, Record(), told.append)
    assert "the checkpoint of step 2 is left out" in capsys.readouterr().out
    go_on.set()
    kept.settle()
    assert [saved.step for saved in told] == kept.steps() == [1]


def test_the_newest_are_kept_and_described(tmp_path):
    engine, exchange = engine_after(0)
    kept = checkpoints_in(tmp_path, keep=2)
    for step in range(1, 5):
        engine.advance(exchange)
        saved = save(kept, engine)
        assert saved == kept.describe(step)
        assert (tmp_path / saved.path).stat().st_size == saved.bytes
    assert sorted(kept.steps()) == [3, 4]


@pytest.mark.parametrize("told_by", ["settle", "save"])
def test_a_write_that_fails_leaves_the_older_ones_and_nothing_else(tmp_path, monkeypatch, told_by):
    engine, exchange = engine_after(1)
    kept = checkpoints_in(tmp_path)
    save(kept, engine)
    engine.advance(exchange)

    def full(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.torch, "save", full)
    kept.save(engine.state, Record(), lambda saved: pytest.fail("it was not saved"))
    with pytest.raises(CheckpointError, match=r"of step 2 can't be written .*No space left .*make room"):
        if told_by == "settle":
            kept.settle()
        else:
            kept.save(engine.state, Record(), lambda saved: None)
    kept.settle()
    assert files_in(tmp_path) == ["step-000000001.ckpt"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_removed(tmp_path):
    engine, _ = engine_after(1)
    kept = checkpoints_in(tmp_path, writer="worker 0")
    save(kept, engine)
    stem = ".step-000000002.ckpt.worker {}." + "0" * 32
    for number in (1, 2):
        (tmp_path / "checkpoints" / stem.format(number)).write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes.txt").write_text("somebody's own")
    assert kept.load_newest()["step"] == 1
    kept.sweep({"worker 0", "worker 2"})
    assert files_in(tmp_path) == [stem.format(2), "notes.txt", "step-000000001.ckpt"]
    kept.sweep(())
    assert files_in(tmp_path) == ["notes.txt", "step-000000001.ckpt"]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    engine, exchange = engine_after(1)
    kept = checkpoints_in(tmp_path)
    save(kept, engine)
    engine.advance(exchange)
    newest = tmp_path / save(kept, engine).path
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert kept.load_newest()["step"] == 1
    assert "the checkpoint of step 2 can't be read" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    engine, _ = engine_after(1)
    save(checkpoints_in(tmp_path, seed=1), engine)
    with pytest.raises(CheckpointError, match="belong to a run with another seed; give another directory"):
        checkpoints_in(tmp_path, seed=2).load_newest()


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    engine, _ = engine_after(1)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_FORMAT", 1)
        save(checkpoints_in(tmp_path), engine)
    with pytest.raises(CheckpointError, match=r"are of format 1, this version reads \d+; use the version"):
        checkpoints_in(tmp_path).load_newest()


def test_there_may_be_none(tmp_path):
    assert checkpoints_in(tmp_path).load_newest() is None
