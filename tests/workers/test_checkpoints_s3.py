"""Checkpoints on S3: complete or not there, as on this machine; a storage that is away is no end of a run."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from sampa.workers import storage as storage_module
from sampa.workers.checkpoints import Checkpoints, Record, adopt, identity_of
from sampa.workers.errors import CheckpointError
from sampa.workers.storage import Storage, StorageError

from .serial import plan_of
from .test_checkpoints import SAMPA, engine_after, save

NOBODY = "s3://bucket/run?endpoint_override=http://127.0.0.1:1&region=us-east-1"

WRITER = """
import os, signal, sys
from sampa.workers.checkpoints import Checkpoints, Record
from sampa.workers.storage import Storage
from tests.workers.test_checkpoints import engine_after
engine, _ = engine_after(3)
kept = Checkpoints(Storage.at(sys.argv[1]), {"plan": 1}, 2, "worker 1")
kept.probe = lambda step: os.kill(os.getpid(), signal.SIGKILL)
kept.save(engine.state, Record(), print)
kept.settle()
"""


@pytest.fixture
def run(s3, bucket):
    """The storage of a run."""
    return Storage.at(s3.address(f"{bucket}/jobs")) / "run"


def checkpoints_in(storage, keep=2, identity=None):
    return Checkpoints(storage, identity or {"plan": 1}, keep, "worker 0")


def test_they_are_written_read_and_dropped(run):
    engine, exchange = engine_after(0)
    kept = checkpoints_in(run)
    for step in range(1, 5):
        engine.advance(exchange)
        saved = save(kept, engine)
        assert saved == kept.describe(step)
        assert saved.path == f"checkpoints/step-{step:09d}.ckpt"
    assert sorted(kept.steps()) == [3, 4]
    content = checkpoints_in(run).load_newest()
    assert content["step"] == 4
    assert torch.equal(content["tensors"][0], engine.state.weights)


def test_what_a_killed_writer_has_begun_is_not_there(run, s3, bucket):
    engine, _ = engine_after(1)
    save(checkpoints_in(run), engine)
    command = [sys.executable, "-c", WRITER, s3.address(f"{bucket}/jobs/run")]
    killed = subprocess.run(command, timeout=120, check=False, capture_output=True, cwd=os.getcwd())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (run / "checkpoints").names() == ["step-000000001.ckpt"]
    assert checkpoints_in(run).load_newest()["step"] == 1


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run, capsys):
    engine, exchange = engine_after(1)
    kept = checkpoints_in(run)
    save(kept, engine)
    engine.advance(exchange)
    save(kept, engine)
    files, newest = run / "checkpoints", "step-000000002.ckpt"
    files.write(newest, files.read(newest)[:1000])
    assert kept.load_newest()["step"] == 1
    assert "the checkpoint of step 2 can't be read" in capsys.readouterr().out


def test_a_run_goes_on_from_the_state_of_another(run):
    engine, _ = engine_after(2)
    mine, theirs = (plan_of(method=SAMPA | {"rho": rho}) for rho in (0.1, 0.2))
    source, target = run / "source", run / "target"
    save(checkpoints_in(source, identity=identity_of(theirs, "layout")), engine)
    adopt(source, target, mine, 2)
    content = checkpoints_in(target, identity=identity_of(mine, "layout")).load_newest()
    assert torch.equal(content["tensors"][0], engine.state.weights)
    assert (target / "checkpoints").names() == ["step-000000002.ckpt"]
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 3 in s3://.* can't be read"):
        adopt(source, target, mine, 3)


def test_training_goes_on_without_a_checkpoint_that_can_not_be_written(s3, capsys):
    engine, _ = engine_after(1)
    kept = checkpoints_in(Storage.at(NOBODY))
    kept.save(engine.state, Record(), lambda saved: pytest.fail("it was not saved"))
    kept.settle()
    said = capsys.readouterr().out
    assert said.startswith("the checkpoint of step 1 is left out: can't write step-000000001.ckpt to s3://bucket/run")
    assert said.endswith("; training goes on\n")


def test_the_last_one_is_tried_again_and_an_error_if_it_can_not_be_written(s3, bucket, monkeypatch, capsys):
    monkeypatch.setattr(storage_module, "AGAIN_S", 0.01)
    engine, _ = engine_after(1)
    late = Storage.at(s3.address("made-meanwhile/jobs")) / "run"
    tries, put = [], Checkpoints._put

    def at_the_second(self, content):
        tries.append(1)
        if len(tries) == 2:
            s3.make("made-meanwhile")
        put(self, content)

    monkeypatch.setattr(Checkpoints, "_put", at_the_second)
    kept, told = checkpoints_in(late), []
    kept.save(engine.state, Record(), told.append, last=True)
    kept.settle()
    assert [saved.step for saved in told] == kept.steps() == [1]
    assert "make the bucket, or name another one in SAMPA_STORAGE. It is tried again" in capsys.readouterr().err
    monkeypatch.setattr(storage_module, "AGAIN_S", 1e6)  # there is no time for another try
    lost = checkpoints_in(Storage.at(s3.address("never-made/jobs")))
    lost.save(engine.state, Record(), told.append, last=True)
    with pytest.raises(StorageError, match="make the bucket"):
        lost.settle()


def test_nobody_begins_anew_since_the_storage_is_away(s3):
    with pytest.raises(StorageError, match="see whether it answers"):
        checkpoints_in(Storage.at(NOBODY)).load_newest()
