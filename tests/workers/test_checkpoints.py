"""Checkpoints: what is there is complete, whatever happened while one was written, and fits the run that reads it."""

import pytest
import torch
from pyarrow import fs
from sampa.workers import checkpoints as module
from sampa.workers.checkpoints import Checkpoints, Record, restore
from sampa.workers.errors import CheckpointError

from .serial import engine_of, plan_of
from .tasks import convolution

SAMPA = {"name": "sampa", "rho": 0.1, "lambda": 0.2}


def checkpoints_in(directory, keep=2, **identity):
    return Checkpoints(fs.LocalFileSystem(), str(directory), {"plan": 1} | identity, keep)


def engine_after(steps):
    engine, exchange = engine_of(plan_of(method=SAMPA, optimizer={"name": "adamw", "lr": 0.01}), convolution())
    engine.start(exchange)
    for _ in range(steps):
        engine.advance(exchange)
    return engine, exchange


def test_a_restored_engine_goes_on_with_the_same_bits(tmp_path):
    torch.manual_seed(1)
    engine, exchange = engine_after(3)
    record = Record(1.5, [0.25], [("metrics", {"step": 3})], [{"step": 2, "split": "test", "accuracy": 0.5}])
    checkpoints_in(tmp_path).save(engine.state, {}, record)
    other, other_exchange = engine_after(0)
    content = checkpoints_in(tmp_path).load_newest()
    _, restored = restore(other.state, content, other.vectors.take)
    assert restored.seconds == 1.5
    assert [tuple(entry) for entry in restored.told] == record.told
    for _ in range(3):
        engine.advance(exchange)
        other.advance(other_exchange)
    assert torch.equal(engine.state.weights, other.state.weights)
    assert all(torch.equal(vector, other.state.optimizer[name]) for name, vector in engine.state.optimizer.items())


def test_the_newest_are_kept_and_described(tmp_path):
    engine, exchange = engine_after(0)
    kept = checkpoints_in(tmp_path, keep=2)
    for step in range(1, 5):
        engine.advance(exchange)
        saved = kept.save(engine.state, {}, Record())
        assert saved == kept.describe(step)
        assert (tmp_path / saved.path).stat().st_size == saved.bytes
    assert sorted(kept.steps()) == [3, 4]


def test_a_write_that_fails_leaves_the_older_ones_and_nothing_else(tmp_path, monkeypatch):
    engine, exchange = engine_after(1)
    kept = checkpoints_in(tmp_path)
    kept.save(engine.state, {}, Record())
    engine.advance(exchange)

    def full(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"of step 2 can't be written .*No space left .*make room"):
        kept.save(engine.state, {}, Record())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.ckpt"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_removed(tmp_path):
    engine, _ = engine_after(1)
    kept = checkpoints_in(tmp_path)
    kept.save(engine.state, {}, Record())
    (tmp_path / "checkpoints" / ".step-000000002.ckpt.abc").write_bytes(b"half")
    assert kept.load_newest()["step"] == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.ckpt"]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    engine, exchange = engine_after(1)
    kept = checkpoints_in(tmp_path)
    kept.save(engine.state, {}, Record())
    engine.advance(exchange)
    newest = tmp_path / kept.save(engine.state, {}, Record()).path
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert kept.load_newest()["step"] == 1
    assert "the checkpoint of step 2 can't be read" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    engine, _ = engine_after(1)
    checkpoints_in(tmp_path, seed=1).save(engine.state, {}, Record())
    with pytest.raises(CheckpointError, match="belong to a run with another seed; give another directory"):
        checkpoints_in(tmp_path, seed=2).load_newest()


def test_there_may_be_none(tmp_path):
    assert checkpoints_in(tmp_path).load_newest() is None
