"""Jobs of a real service: what they are asked, what is seen of them, and which processes work on them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load, load_file
from sampa.api.client import Client
from sampa.service.specs import JobSpec
from sampa.workers.generations import Word
from sampa.workers.loop import Worker
from sampa.workers.membership import Seat
from sampa.workers.pairs import Hosts, Member, View
from sampa.workers.reports import Report, Reporter
from sampa.workers.storage import Storage

from ..api.processes import until

Document = dict[str, Any]
CODE = Path(__file__).with_name("code")
PATH = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])  # theirs stays: it may name our tree
KINDS = ("metrics", "evaluation")
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
END_S = 120.0
LOOK_S = 0.1  # between two looks: each costs the jobs that share the processors
STEPS, EVERY = 128, 20
MEASURED = ("step", "loss", "perturbed_loss", "gradient_norm", "lr", "rho")  # what is the same in every run of a spec


def spec(name: str, *, workers: int = 1, pace_s: float = 0.008, **fields: Any) -> Document:
    """Return a job on digits that trains for some seconds, so that much can happen to it meanwhile."""
    return {
        "name": name,
        "task": {"entrypoint": "own:digits", "params": {"label_noise": 0.4, "pace_s": pace_s}},
        "method": {"name": "sampa", "rho": 0.1, "lambda": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005},
        "schedule": {"name": "cosine"},
        "steps": STEPS,
        "batch_size": 64,
        "pairs": 1,
        "workers": {"min": workers, "max": workers},
        "checkpoint": {"every_steps": EVERY, "keep": 2},
        "evaluate": {"every_epochs": 2},
        "report": {"every_steps": 2},
    } | fields


def short(name: str, **fields: Any) -> Document:
    """Return a job that ends soon after its start."""
    return spec(name, pace_s=0.0, steps=20) | fields


class Watched:
    """One job, looked at through the API."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.client, self.id = client, job_id

    def now(self) -> Document:
        return self.client.job(self.id)

    def events(self, *kinds: str) -> list[Document]:
        return list(self.client.events(self.id, kinds=kinds))

    def data(self, kind: str) -> list[Document]:
        return [event["data"] for event in self.events(kind)]

    def path(self) -> list[str]:
        """Return the states it was in."""
        return [transition["state"] for transition in self.now()["transitions"]]

    def ended(self, deadline_s: float = END_S) -> Document:
        """Wait for its end and return it."""
        return self.reaches(*FINAL, deadline_s=deadline_s)

    def reaches(self, *states: str, deadline_s: float = END_S) -> Document:
        def look() -> Document | None:
            job = self.now()
            assert job["state"] in states or job["state"] not in FINAL, job
            return job if job["state"] in states else None

        return until(look, f"{self.id} to be {' or '.join(states)}", deadline_s, LOOK_S)

    def first(self, kind: str, fits: Callable[[Document], bool] = lambda _: True) -> Document:
        """Wait for an event that fits, and return its data."""

        def look() -> Document | None:
            return next(filter(fits, self.data(kind)), None)

        return until(look, f"an event {kind} of {self.id}", END_S, LOOK_S)

    def worker_pids(self) -> dict[str, list[int]]:
        """Return the processes that trained it, by worker, in order."""
        found: dict[str, list[int]] = {}
        for data in self.data("log"):
            if data["line"].startswith("pid "):
                found.setdefault(data["worker"], []).append(int(data["line"].split()[1]))
        return found

    def runners(self) -> list[psutil.Process]:
        """Return the processes that run it."""
        return [process for process in psutil.process_iter() if self._is_runner(process)]

    def _is_runner(self, process: psutil.Process) -> bool:
        try:
            line = process.cmdline()
            return "sampa.service.runner" in line and self.id in line and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def between_checkpoints(self) -> Document:
        """Wait until it has a checkpoint and steps beyond it to lose."""

        def look() -> Document | None:
            job = self.now()
            assert job["state"] not in FINAL, job
            step = job["progress"].get("step", 0)
            return job if step > EVERY and step % EVERY >= 4 else None

        until(look, f"{self.id} to be between two checkpoints", END_S, LOOK_S)
        return self.assert_in_the_middle()

    def assert_in_the_middle(self) -> Document:
        """See that it is running, and neither at its first step nor at its last."""
        job = self.now()
        assert job["state"] == "RUNNING", job
        assert 0 < job["progress"]["step"] < job["progress"]["steps"], job["progress"]
        return job


def kill(pid: int) -> None:
    """Kill -9, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid) or None, f"the end of process {pid}")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_numbered(events: list[Document], to: int = STEPS) -> None:
    """See that they are 1, 2, 3 ..., and that no measurement is there twice."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    steps = [event["data"]["step"] for event in events if event["kind"] == "metrics"]
    assert steps == sorted(set(steps))
    assert steps == [1, *range(2, to + 1, 2)]


@dataclass(frozen=True)
class Run:
    """What came out of a run: measurements and evaluations, and the weights by name."""

    measured: list[Document]
    evaluations: list[Document]
    weights: dict[str, torch.Tensor]

    def assert_same(self, other: Run) -> None:
        """See that another run has the same numbers, bit for bit."""
        assert len(self.evaluations) > 1
        assert self.measured == other.measured
        assert self.evaluations == other.evaluations
        assert self.weights.keys() == other.weights.keys()
        for name, tensor in self.weights.items():
            assert torch.equal(tensor, other.weights[name]), name


def run_of(job: Watched, folder: Path) -> Run:
    """Return what came out of a job, with the model as it is downloaded."""
    weights = load_file(job.client.model(job.id, folder / job.id))
    return Run(measured(job.data("metrics")), job.data("evaluation"), weights)


def measured(metrics: Sequence[Document]) -> list[Document]:
    return [{name: data[name] for name in MEASURED} for data in metrics]


def unbroken(asked: Document, where: Path | Storage) -> Run:
    """Train a job here, in this thread, without a service, Ray or a break, with its files where it is said."""
    storage = Storage.at(where)
    plan = JobSpec.model_validate(asked).training_part()
    reports: list[Report] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.workers.threads)
    try:
        seat = Seat(
            Alone(),
            run="unbroken",
            name="worker 0",
            node="here",
            host="127.0.0.1",
            device=torch.device("cpu"),
            deadline_s=10,
            hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
        )
        reporter = Reporter(reports.extend, lambda _: None)
        Worker(plan, seat, storage, reporter, torch.device("cpu")).run()
    finally:
        torch.set_num_threads(threads)
    metrics, evaluations = ([dict(one.data) for one in reports if one.kind == kind] for kind in KINDS)
    return Run(measured(metrics), evaluations, load(storage.read("model.safetensors")))


class Alone:
    """A meeting that nobody else comes to."""

    def join(self, member: Member, _word: Word) -> View:
        return View(1, (member,))

    def watch(self, _name: str, _generation: int, _step: int, _patience_s: float, wait_s: float) -> bool:
        time.sleep(wait_s)
        return False

    def resumed(self, _generation: int, _step: int, _pause_s: float | None) -> None:
        return

    def saved(self, _name: str, _step: int) -> None:
        raise AssertionError("nobody has asked for that")
