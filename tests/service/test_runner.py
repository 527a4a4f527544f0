"""One attempt at a job, with a function in the trainer's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sampa.service import runner
from sampa.service.runner import advance, is_due, patiently, run
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Job, Store, StoreUnavailable
from sampa.workers.reports import Report

from .samples import spec_of, wait_until

Reports = Sequence[Report]


class Outcome:
    def __init__(self, succeeded: bool, reason: str = "", result: dict[str, Any] | None = None) -> None:
        self.succeeded, self.reason, self.result = succeeded, reason, result or {}


class FakeTrain:
    """Gives each bundle of reports, does what it is told to in between, and ends with an outcome or an error."""

    def __init__(
        self, *bundles: Reports, end: Outcome | Exception, before_end: Callable[[], object] = lambda: None
    ) -> None:
        self.bundles, self.end, self.before_end = bundles, end, before_end
        self.called_with: dict[str, Any] = {}

    def __call__(self, plan: Any, directory: Path, *, on_reports: Callable[[Reports], None], **rest: Any) -> Any:
        self.called_with = {"plan": plan, "directory": directory, **rest}
        for bundle in self.bundles:
            on_reports(bundle)
        self.before_end()
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


TASK = Report("task", {"steps": 40, "steps_per_epoch": 10, "parameters": 7, "training_rows": 80})
GOOD = Outcome(True, result={"metrics": {"accuracy": 0.9}})


def metrics(*steps: int) -> list[Report]:
    return [Report("metrics", {"step": step, "epoch": step / 10, "loss": 1 / step}) for step in steps]


def evaluation(step: int, split: str = "test") -> Report:
    return Report("evaluation", {"step": step, "split": split, "accuracy": 0.5})


def log(line: str) -> Report:
    return Report("log", {"worker": "worker 0", "line": line})


@pytest.fixture
def job(store: Store) -> Job:
    store.submit(spec_of())
    job = store.claim(max_running=1)
    assert job is not None
    return job


def kinds(store: Store, job: Job) -> list[str]:
    return [event.kind for event in store.events(job.id)]


def states(store: Store, job: Job) -> list[str]:
    return [event.data["state"] for event in store.events(job.id, kinds=("state",))]


def test_a_run_that_succeeds_leaves_its_reports_progress_and_result(store: Store, job: Job, tmp_path: Path) -> None:
    train = FakeTrain([TASK, *metrics(1)], [*metrics(2), evaluation(2)], end=GOOD)
    assert run(store, tmp_path, job.id, 1, train) == 0
    done = store.job(job.id)
    assert (done.state, done.result) == (State.SUCCEEDED, {"metrics": {"accuracy": 0.9}})
    assert done.progress == {"steps": 40, "steps_per_epoch": 10, "step": 2, "epoch": 0.2, "loss": 0.5, "accuracy": 0.5}
    assert kinds(store, job) == ["state"] * 3 + ["task", "metrics", "metrics", "evaluation", "state"]
    assert states(store, job) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert train.called_with == {"plan": job.spec, "directory": tmp_path, "attempt": 1, "reached": 0}


def test_a_run_that_fails_leaves_its_reason(store: Store, job: Job, tmp_path: Path) -> None:
    assert run(store, tmp_path, job.id, 1, FakeTrain(end=Outcome(False, "the loss became NaN at step 3"))) == 0
    failed = store.job(job.id)
    assert (failed.state, failed.reason, failed.result) == (State.FAILED, "the loss became NaN at step 3", None)


def test_a_fault_leaves_a_line_in_the_log_and_the_job_to_be_started_again(
    store: Store, job: Job, tmp_path: Path
) -> None:
    assert run(store, tmp_path, job.id, 1, FakeTrain([TASK], end=RuntimeError("node lost\nand more"))) == 1
    assert store.job(job.id).state is State.RUNNING
    last = store.events(job.id)[-1]
    assert (last.kind, last.data) == (
        "log",
        {"worker": "runner", "line": "the runner failed with RuntimeError: node lost"},
    )


def test_what_a_resumed_run_reports_again_is_dropped(store: Store, job: Job, tmp_path: Path) -> None:
    first = FakeTrain(
        [TASK, *metrics(1, 10, 20), evaluation(20), evaluation(20, "train"), log("a")], end=OSError("lost")
    )
    assert run(store, tmp_path, job.id, 1, first) == 1
    store.move(job.id, State.STARTING, attempt=1, next_attempt=True)
    again = FakeTrain(
        [TASK, *metrics(20, 30), evaluation(20), evaluation(20, "train"), log("a")], [evaluation(30)], end=GOOD
    )
    assert run(store, tmp_path, job.id, 2, again) == 0
    assert again.called_with["reached"] == 20
    assert [event.data["step"] for event in store.events(job.id, kinds=("metrics",))] == [1, 10, 20, 30]
    evaluations = [(event.data["step"], event.data["split"]) for event in store.events(job.id, kinds=("evaluation",))]
    assert evaluations == [(20, "test"), (20, "train"), (30, "test")]
    assert kinds(store, job).count("task") == 1
    assert kinds(store, job).count("log") == 3  # of two runs, and the fault between them
    assert store.job(job.id).progress["step"] == 30


def test_nothing_is_left_of_a_bundle_that_brings_nothing_new(store: Store, job: Job, tmp_path: Path) -> None:
    run(store, tmp_path, job.id, 1, FakeTrain([TASK, *metrics(5)], [TASK, *metrics(5)], end=GOOD))
    assert kinds(store, job).count("metrics") == 1


@pytest.mark.parametrize("end", [GOOD, Outcome(False, "no")])
def test_a_job_that_was_cancelled_meanwhile_is_left_to_the_reconciler(
    store: Store, job: Job, tmp_path: Path, end: Outcome
) -> None:
    train = FakeTrain([TASK], end=end, before_end=lambda: store.cancel(job.id))
    assert run(store, tmp_path, job.id, 1, train) == 0
    assert store.job(job.id).state is State.CANCELLING


def test_a_runner_that_was_replaced_leaves_quietly(store: Store, job: Job, tmp_path: Path) -> None:
    def replace() -> None:
        store.move(job.id, State.STARTING, attempt=1, next_attempt=True)

    assert run(store, tmp_path, job.id, 1, FakeTrain([TASK], end=GOOD, before_end=replace)) == 0
    assert (store.job(job.id).state, store.job(job.id).attempt) == (State.STARTING, 2)
    assert run(store, tmp_path, job.id, 1, FakeTrain([TASK], end=GOOD)) == 0
    assert kinds(store, job).count("task") == 1


def test_only_the_attempt_of_a_living_job_is_due(store: Store, job: Job) -> None:
    assert is_due(job, 1)
    assert not is_due(job, 2)
    assert not is_due(store.cancel(job.id), 1)


@pytest.mark.parametrize(
    ("kind", "data", "after"),
    [
        ("task", {"steps": 9, "parameters": 5}, {"loss": 1, "steps": 9}),
        ("metrics", {"step": 3, "epoch": 0.5, "loss": 2, "gradient_norm": 4}, {"step": 3, "epoch": 0.5, "loss": 2}),
        ("evaluation", {"step": 3, "loss": 5, "accuracy": 0.5}, {"loss": 1, "accuracy": 0.5}),
        ("log", {"line": "x"}, {"loss": 1}),
    ],
)
def test_progress_follows_the_reports(kind: str, data: dict[str, Any], after: dict[str, Any]) -> None:
    assert advance({"loss": 1}, kind, data) == after


def test_a_store_that_is_away_for_a_while_is_waited_for() -> None:
    answers = iter([StoreUnavailable("x", "locked"), StoreUnavailable("x", "locked"), "there"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask) == "there"


def test_a_store_that_stays_away_is_an_error_at_the_deadline() -> None:
    def ask() -> None:
        raise StoreUnavailable("x", "gone")

    with pytest.raises(StoreUnavailable):
        patiently(ask, patience_s=0.0)


class TestProcess:
    """The process itself, with a module in the trainer's place that reports once and then waits."""

    CODE = """
import sys, time
from sampa.service import runner
from sampa.workers.reports import Report
def train(plan, directory, *, on_reports, **_):
    on_reports([Report("log", {"line": "here"})])
    time.sleep(60)
runner._connected = lambda: train
sys.exit(runner.main())
"""

    def start(self, job: Job, settings: ServiceSettings, attempt: int) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "SAMPA_STATE_DIR": str(settings.state_dir),
            "SAMPA_STORE_URL": settings.store_url,
            "SAMPA_ATTEMPT": str(attempt),
        }
        return subprocess.Popen([sys.executable, "-c", self.CODE, job.id], env=env)

    def test_it_ends_at_once_when_told_to(self, store: Store, job: Job, settings: ServiceSettings) -> None:
        with self.start(job, settings, attempt=1) as process:
            wait_until(lambda: store.job(job.id).state is State.RUNNING)
            process.send_signal(signal.SIGTERM)
            assert process.wait(3) == 0

    def test_it_ends_before_it_loads_ray_when_it_is_not_due(self, job: Job, settings: ServiceSettings) -> None:
        with self.start(job, settings, attempt=2) as process:
            assert process.wait(30) == 0

    def test_importing_it_loads_neither_ray_nor_torch(self) -> None:
        code = f"import sys, {runner.__name__}; print([m for m in ('ray', 'torch', 'numpy') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
