"""``sampa drill``: real workers are killed, hang and dawdle, a real node is lost, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ..api.processes import SAMPA, until

pytestmark = pytest.mark.ray
JOB: dict[str, Any] = {
    "name": "drilled",
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "method": {"name": "sampa", "rho": 0.1, "lambda": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "steps": 60,
    "batch_size": 64,
    "workers": {"deadline_s": 3},
    "checkpoint": {"every_steps": 10},
}


class Drill:
    """``sampa drill`` in a folder of its own; its temporary files lie in another, so that what it leaves is seen."""

    def __init__(self, folder: Path, faults: str, *options: str) -> None:
        (folder / "JOB.yaml").write_text(yaml.safe_dump(JOB))
        self._temporary = tempfile.TemporaryDirectory(prefix="dr", dir="/tmp")  # short: sockets lie in it
        self.place = Path(self._temporary.name)
        command = [*SAMPA, "drill", "JOB.yaml", "--faults", faults, *options]
        pipe, environment = subprocess.PIPE, os.environ | {"TMPDIR": str(self.place)}
        self.process = subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)
        for process in self.running():
            process.kill()
        self._temporary.cleanup()

    def running(self) -> list[psutil.Process]:
        """Return its processes: they have its temporary directory in their environment or on their command line."""
        return [process for process in psutil.process_iter() if _mentions(process, str(self.place))]

    def assert_nothing_is_left(self) -> None:
        assert [process.cmdline() for process in self.running()] == []
        assert list(self.place.iterdir()) == []


def _mentions(process: psutil.Process, place: str) -> bool:
    try:
        words: Sequence[str] = [*process.cmdline(), *process.environ().values()]
        return process.status() != psutil.STATUS_ZOMBIE and any(place in word for word in words)
    except psutil.Error:
        return False


@pytest.mark.long
@pytest.mark.timeout(260)
def test_workers_are_killed_hang_and_dawdle_and_a_node_is_lost(tmp_path: Path) -> None:
    faults = "kill:1@10/updating,node:1@22/computing,slow:0@30/exchanging:0.5,hang:0@49/checkpointing"
    with Drill(tmp_path, faults, "--nodes", "--out", "out", "--json") as drill:
        output, errors = drill.process.communicate(timeout=240)
        assert drill.process.returncode == 0, errors
        drill.assert_nothing_is_left()
    found = json.loads(output)
    assert found["verdict"]["ok"]
    assert found == json.loads((tmp_path / "out" / "drill.json").read_text())
    kill, node, slow, hang = found["faults"]
    assert [one["cause"] for one in (kill, node, slow, hang)] == ["loss", "loss", None, "loss"]
    assert 0 < kill["pause_s"] < 3 <= hang["pause_s"] + 1
    assert node["complete_after_s"] > 0
    assert kill["complete_after_s"] > kill["pause_s"]
    assert "faulty" in errors
    for name in ("calm", "faulty"):
        assert json.loads((tmp_path / "out" / name / "result.json").read_text())["steps"] == JOB["steps"]


@pytest.mark.long
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with Drill(tmp_path, "1") as drill:
        stream = drill.process.stderr
        assert stream is not None
        until(lambda: ("start at step" in stream.readline()) or None, "the start of the calm run", 60)
        drill.process.send_signal(signal.SIGINT)
        drill.process.communicate(timeout=60)
        assert drill.process.returncode != 0
        drill.assert_nothing_is_left()
