"""``sampa train``: one job without the service, with a task from a directory of the user's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from ..api.processes import SAMPA, until
from .jobs import CODE, Run, measured, spec

pytestmark = pytest.mark.ray
MODULES = {
    "my_module.py": """
        import api
        from sampa.workers.task import Task
        from workers.net import make_net

        def build(**params) -> Task:
            inputs, targets = api.data(**params)
            return Task(model=make_net(), train=(inputs, targets), test=(inputs, targets), loss=per_sample_loss)

        def per_sample_loss(model, batch):
            inputs, targets = batch
            return (model(inputs) - targets).square().sum(-1)
        """,
    "api.py": """
        import torch

        def data(rows):
            inputs = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
            return inputs, inputs.sum(-1, keepdim=True)
        """,
    "workers/__init__.py": "",
    "workers/net.py": """
        from torch import nn

        def make_net():
            return nn.Linear(3, 1)
        """,
    "mistaken.py": "import nowhere_to_be_found",
}


def job(entrypoint: str) -> dict[str, Any]:
    return {
        "name": "own",
        "task": {"entrypoint": entrypoint, "params": {"rows": 64}},
        "method": {"name": "sampa", "rho": 0.05, "lambda": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "epochs": 5,
        "batch_size": 16,
    }


class Command:
    """``sampa train`` in a folder of its own, with a directory of code."""

    def __init__(self, folder: Path, entrypoint: str) -> None:
        for name, text in MODULES.items():
            path = folder / "code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (folder / "JOB.yaml").write_text(yaml.safe_dump(job(entrypoint)))
        command = [*SAMPA, "train", "JOB.yaml", "--out", "out", "--code", "code"]
        pipe = subprocess.PIPE
        self.out = folder / "out"
        self._process = subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end and return exit code, output and errors."""
        output, errors = self._process.communicate(timeout=120)
        return self._process.returncode, output, errors

    def end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Command]]:
    """Both at the same time, each on a Ray of its own."""
    started = {name: Command(tmp_path_factory.mktemp(name), f"{name}:build") for name in ("my_module", "mistaken")}
    yield started
    for command in started.values():
        command.end()


@pytest.mark.long
def test_a_task_of_the_users_own_is_trained(commands: dict[str, Command]) -> None:
    code, _, errors = commands["my_module"].ended()
    assert code == 0, errors
    out = commands["my_module"].out
    result = json.loads((out / "result.json").read_text())
    assert (result["state"], result["steps"], result["epochs"]) == ("SUCCEEDED", 20, 5)
    assert result["metrics"]["final"]["test"]["loss"] < 0.5
    assert result["spec"]["task"]["entrypoint"] == "my_module:build"
    assert load_file(out / "model.safetensors")["weight"].shape == (1, 3)
    kinds = [json.loads(line)["kind"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert {"task", "metrics", "evaluation", "elastic"} <= set(kinds)


def test_a_module_that_fails_to_import_is_one_sentence(commands: dict[str, Command]) -> None:
    assert commands["mistaken"].ended() == (
        1,
        "",
        "own failed: the module of task mistaken:build failed to import: ModuleNotFoundError: No module named "
        "'nowhere_to_be_found'; is it in the code directory, and does `python -c 'import mistaken'` work there?\n",
    )


@pytest.mark.long
def test_a_run_that_was_killed_or_stopped_is_resumed_by_the_same_command(tmp_path: Path, calm: Run) -> None:
    """With the bits of an unbroken run, and each step's events once; a stopped one loses no step."""
    (tmp_path / "JOB.yaml").write_text(yaml.safe_dump(spec("broken", pace_s=0.02)))
    command = [*SAMPA, "train", "JOB.yaml", "--out", "out", "--code", str(CODE)]
    events = tmp_path / "out" / "events.jsonl"

    def seen() -> list[dict[str, Any]]:
        lines = events.read_text().splitlines() if events.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def of_kind(kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in seen() if event["kind"] == kind]

    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as first:
        until(lambda: any(event["kind"] == "checkpoint" for event in seen()) or None, "a checkpoint", 60, 0.05)
        first.kill()
    assert not (tmp_path / "out" / "model.safetensors").exists(), "it must be killed before its end"
    with events.open("a") as file:
        file.write('{"kind": "metr')  # what a kill in the middle of a line leaves
    steps = len(of_kind("metrics"))
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as second:
        until(lambda: len(of_kind("metrics")) > steps or None, "a step after those of before", 60, 0.05)
        os.killpg(second.pid, signal.SIGINT)  # as a terminal does: to everything that was started in it
        _, errors = second.communicate(timeout=60)
    assert second.returncode == 130
    assert "stopping with a checkpoint; once more stops at once" in errors
    stopped = of_kind("checkpoint")[-1]["step"]
    assert f"broken: stopped at step {stopped}; the same command goes on from there\n" in errors
    assert "Traceback" not in errors
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    whole = seen()
    start, killed, resume = of_kind("elastic")
    assert [change["cause"] for change in (start, killed, resume)] == ["start", "resume", "resume"]
    assert (resume["step"], resume["steps_lost"]) == (stopped, 0)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["restarts"], result["steps_lost"]) == (2, killed["steps_lost"])
    metrics, evaluations = ([e["data"] for e in whole if e["kind"] == kind] for kind in ("metrics", "evaluation"))
    Run(measured(metrics), evaluations, load_file(tmp_path / "out" / "model.safetensors")).assert_same(calm)
