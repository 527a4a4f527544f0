"""Kill -9 of any process: the job goes on, its numbers are the same, and its past is told once and whole."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sampa.api.client import Client

from ..api.processes import ServerProcess
from .jobs import EVERY, Document, Run, Watched, assert_numbered, gone, kill, run_of, spec

pytestmark = pytest.mark.ray
Submit = Callable[[Document], Watched]


class Reader(threading.Thread):
    """Reads a job's stream to its end, and drops the connection after a random number of events, again and again."""

    def __init__(self, client: Client, job_id: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._client, self._job_id, self._random = client, job_id, random.Random(seed)
        self.events: list[Document] = []
        self.drops = 0

    def run(self) -> None:
        while self._read(self._random.randrange(1, 25)):
            self.drops += 1

    def _read(self, how_many: int) -> bool:
        """Read so many events and hang up; say whether there may be more."""
        stream = self._client.follow(self._job_id, self.events[-1]["seq"] if self.events else 0)
        for event in stream:
            self.events.append(event)
            how_many -= 1
            if not how_many:
                stream.close()
                return True
        return False


def test_a_job_goes_on_when_the_server_is_killed(
    server: ServerProcess, client: Client, submit: Submit, calm: Run, tmp_path: Path
) -> None:
    job = submit(spec("server-killed"))
    readers = [Reader(client, job.id, seed) for seed in range(2)]
    for reader in readers:
        reader.start()
    job.first("checkpoint")
    job.assert_in_the_middle()
    kill(server.processes[-1].pid)
    server.processes[-1].wait(10)
    seen = len(readers[0].events)
    server.start()
    job.assert_in_the_middle()
    ended = job.ended()
    assert (ended["state"], ended["attempt"], ended["restarts"]) == ("SUCCEEDED", 1, 0)
    assert job.path() == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert [data["cause"] for data in job.data("elastic")] == ["start"]
    whole = job.events()
    assert_numbered(whole)
    for reader in readers:
        reader.join(30)
        assert reader.events == whole
        assert reader.drops > 5
    assert 0 < seen < len(whole), "the server must be killed in the middle, or this proves nothing"
    run_of(job, tmp_path).assert_same(calm)


def test_a_job_whose_runner_is_killed_resumes_with_the_same_bits(submit: Submit, calm: Run, tmp_path: Path) -> None:
    job = submit(spec("runner-killed"))
    job.between_checkpoints()
    (runner,) = job.runners()
    kill(runner.pid)
    at_the_kill = job.assert_in_the_middle()
    newest = job.data("checkpoint")[-1]["step"]
    ended = job.ended()
    assert (ended["state"], ended["attempt"], ended["restarts"]) == ("SUCCEEDED", 2, 1)
    assert job.path() == ["QUEUED", "STARTING", "RUNNING", "STARTING", "RUNNING", "SUCCEEDED"]
    start, resume = job.data("elastic")
    assert (start["cause"], resume["cause"]) == ("start", "resume")
    assert resume["step"] % EVERY == 0
    assert resume["step"] in (newest, newest + EVERY), "workers outlive their runner for a moment"
    assert resume["steps_lost"] == max(0, at_the_kill["progress"]["step"] - resume["step"])
    assert resume["samples_replayed"] == resume["steps_lost"] * 64
    assert ended["result"]["steps_lost"] == ended["elastic"]["steps_lost"] == resume["steps_lost"]
    assert_numbered(job.events())
    run_of(job, tmp_path).assert_same(calm)


@pytest.mark.parametrize("victim", ["worker 0", "worker 1"])
def test_when_a_worker_is_killed_the_other_goes_on_and_a_new_one_joins(
    submit: Submit, calm: Run, tmp_path: Path, victim: str
) -> None:
    job = submit(spec("worker-killed", workers=2, pace_s=0.1))
    (other,) = {"worker 0", "worker 1"} - {victim}
    job.between_checkpoints()
    before = {name: pids[-1] for name, pids in job.worker_pids().items()}
    assert sorted(before) == ["worker 0", "worker 1"]
    kill(before[victim])
    job.assert_in_the_middle()
    survivor = before[other]
    loss = job.first("elastic", lambda data: data["cause"] == "loss")
    assert not gone(survivor)
    assert (loss["workers_before"], loss["workers_after"]) == (2, 1)
    assert loss["steps_lost"] in (0, 1), "at most the step in flight"
    assert loss["samples_replayed"] == loss["steps_lost"] * 64
    assert loss["recovery_seconds"] > 0
    assert victim in loss["detail"]
    join = job.first("elastic", lambda data: data["cause"] == "join")
    assert (join["workers_before"], join["workers_after"], join["steps_lost"]) == (1, 2, 0)
    assert join["step"] > loss["step"], "the survivor has trained meanwhile"
    ended = job.ended()
    assert (ended["state"], ended["attempt"], ended["restarts"]) == ("SUCCEEDED", 1, 0)
    assert [data["cause"] for data in job.data("elastic")] == ["start", "loss", "join"]
    after = job.worker_pids()
    assert set(after[other]) == {survivor}, "the survivor is the same process"
    assert set(after) == {"worker 0", "worker 1", "worker 2"}
    for totals in (ended["elastic"], ended["result"]):
        assert (totals["restarts"], totals["steps_lost"]) == (1, loss["steps_lost"])
    assert_numbered(job.events())
    run_of(job, tmp_path).assert_same(calm)
