"""What the tests of the service share: a spec, a Ray that only keeps a list, a wait with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sampa.service.launcher import Content, RayUnreachable
from sampa.service.room import Node
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Job, Store, Sweep
from sampa.service.sweeps.spec import SweepSpec

DEADLINE_S = 30.0


def spec_of(name: str = "sample", **changes: Any) -> JobSpec:
    fields = {
        "name": name,
        "task": {"entrypoint": "digits"},
        "method": {"name": "sampa", "rho": 0.1, "lambda": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "epochs": 1,
        "batch_size": 64,
    }
    return JobSpec.model_validate({**fields, **changes})


def sweep_spec_of(name: str = "rho", **changes: Any) -> SweepSpec:
    base = spec_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    del base["name"]
    fields = {
        "name": name,
        "base": base,
        "space": {"method.rho": {"loguniform": [0.01, 0.5]}},
        "trials": 4,
        "baselines": ["sgd"],
        "parallel": 2,
    }
    return SweepSpec.model_validate({**fields, **changes})


def wait_until(true: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < deadline, f"not so within {deadline_s:g} s"
        time.sleep(0.01)


class FakeRay:
    """A launcher whose submissions change only when the test says so."""

    def __init__(self) -> None:
        self.up = True
        self.submissions: dict[str, str] = {}
        self.started: list[str] = []
        self.entrypoints: dict[str, str] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.codes: dict[str, str] = {}
        self.pips: dict[str, list[str]] = {}
        self.packages: dict[str, bytes] = {}
        self.obstacles: dict[str, str] = {}
        self.delays: dict[str, str] = {}
        self.stopped: list[str] = []
        self.nodes: list[Node] | None = None
        self.not_shared = ""
        self.on_status: Callable[[], object] = lambda: None

    def submit(
        self, submission_id: str, entrypoint: str, env: Mapping[str, str], code: str = "", pip: Sequence[str] = ()
    ) -> None:
        self._check()
        if submission_id not in self.submissions:
            self.submissions[submission_id] = "RUNNING"
            self.started.append(submission_id)
            self.entrypoints[submission_id] = entrypoint
            self.environments[submission_id] = dict(env)
            self.codes[submission_id], self.pips[submission_id] = code, [*pip]

    def carry(self, sha256: str, content: Content) -> str:
        self._check()
        address = f"gcs://{sha256}"
        if address not in self.packages:
            self.packages[address] = b"".join(content())
        return address

    def obstacle(self, submission_id: str) -> str:
        self._check()
        return self.obstacles.get(submission_id, "")

    def look(self, submission_ids: Sequence[str]) -> None:
        self._check()

    def delay(self, submission_id: str) -> str:
        return self.delays.get(submission_id, "")

    def status(self, submission_id: str) -> str | None:
        self._check()
        answer = self.submissions.get(submission_id)
        self.on_status()
        return answer

    def stop(self, submission_id: str) -> None:
        self._check()
        self.stopped.append(submission_id)

    def check(self) -> None:
        self._check()

    def room(self) -> list[Node] | None:
        return self.nodes

    def why_not_shared(self, directory: Path) -> str:
        return self.not_shared

    def close(self) -> None:
        pass

    def lose_everything(self) -> None:
        self.submissions.clear()
        self.packages.clear()

    def _check(self) -> None:
        if not self.up:
            raise RayUnreachable("http://fake", "it is down")


def submitted(store: Store, **changes: Any) -> str:
    return store.submit(spec_of(**changes))[0].id


def running_sweep(store: Store, **changes: Any) -> Sweep:
    """Return a sweep whose first runner is at work."""
    sweep, _ = store.sweeps.submit(sweep_spec_of(**changes))
    store.move(sweep.id, State.STARTING, next_attempt=True)
    store.move(sweep.id, State.RUNNING, attempt=1)
    return store.sweeps.get(sweep.id)


def added_trial(store: Store, sweep: Sweep, number: int = 1, rho: float = 0.1) -> Job:
    """Return a trial that waits; number 0 is the baseline's."""
    part = sweep.spec.part(number, {"method.rho": rho})
    return store.sweeps.add_trial(sweep.id, part, sweep.spec.job_of(part), sweep.attempt)


def begun_trial(store: Store, sweep: Sweep | None = None, number: int = 1) -> Job:
    """Return a trial that is RUNNING."""
    sweep = sweep or running_sweep(store)
    trial = store.sweeps.begin_trial(added_trial(store, sweep, number).id, sweep.attempt)
    store.move(trial.id, State.RUNNING, attempt=trial.attempt)
    return store.job(trial.id)
