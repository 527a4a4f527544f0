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
from sampa.service.runner import Wanted, advance, is_due, patiently
from sampa.service.settings import STARTED_TWICE, ServiceSettings
from sampa.service.states import State
from sampa.service.store import Job, Store, StoreUnavailable, Superseded
from sampa.service.told import Told
from sampa.workers.reports import Report
from sampa.workers.storage import Storage

from .samples import spec_of, wait_until

Reports = Sequence[Report]


class Outcome:
    def __init__(
        self, succeeded: bool, reason: str = "", result: dict[str, Any] | None = None, stopped: bool = False
    ) -> None:
        self.succeeded, self.reason, self.result, self.stopped = succeeded, reason, result or {}, stopped


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
STOPPED = Outcome(False, "paused by request", stopped=True)


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


def run(store: Store, directory: Path, job_id: str, attempt: int, train: Any, told: Told | None = None) -> int:
    return runner.run(store, lambda: Storage.at(directory), job_id, attempt, train, told or Told([]))


def elastic(cause: str, step: int, workers: int) -> Report:
    return Report("elastic", {"cause": cause, "step": step, "workers_after": workers})


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
    assert train.called_with.pop("orders")().stop == ""
    assert train.called_with == {
        "plan": job.spec,
        "directory": Storage.at(tmp_path),
        "attempt": 1,
        "reached": 0,
        "past": [],
    }


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


def test_a_resumed_run_is_told_what_changes_have_cost_before(store: Store, job: Job, tmp_path: Path) -> None:
    first = [elastic("start", 0, 2), elastic("loss", 7, 1)]
    run(store, tmp_path, job.id, 1, FakeTrain(first, end=OSError("lost")))
    assert store.job(job.id).progress == {"workers": 1}
    store.move(job.id, State.STARTING, attempt=1, next_attempt=True)
    again = FakeTrain(metrics(8), end=OSError("lost"))
    run(store, tmp_path, job.id, 2, again)
    assert again.called_with["past"] == [report.data for report in first]
    assert "workers" not in store.job(job.id).progress, "those of before are gone"


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


class TestStopped:
    @pytest.mark.parametrize(
        ("ask", "ended"), [(Store.pause, State.PAUSED), (Store.cancel, State.CANCELLED)], ids=["pause", "cancel"]
    )
    def test_as_the_store_wants_it_the_job_is_what_it_was_to_become(
        self, store: Store, job: Job, tmp_path: Path, ask: Callable[[Store, str], Job], ended: State
    ) -> None:
        train = FakeTrain([TASK, *metrics(1)], end=STOPPED, before_end=lambda: ask(store, job.id))
        assert run(store, tmp_path, job.id, 1, train) == 0
        done = store.job(job.id)
        assert (done.state, done.result, done.progress["step"]) == (ended, None, 1)
        assert done.reason == f"{ended.lower()} by request"

    def test_by_a_cancel_that_comes_while_it_pauses_it_is_cancelled(
        self, store: Store, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        move = store.move

        def move_late(job_id: str, to: State, **rest: Any) -> Job:
            if to is State.PAUSED:
                store.cancel(job_id)
            return move(job_id, to, **rest)

        monkeypatch.setattr(store, "move", move_late)
        train = FakeTrain([TASK], end=STOPPED, before_end=lambda: store.pause(job.id))
        assert run(store, tmp_path, job.id, 1, train) == 0
        assert store.job(job.id).state is State.CANCELLED

    def test_by_a_signal_alone_it_is_left_to_be_started_again(self, store: Store, job: Job, tmp_path: Path) -> None:
        assert run(store, tmp_path, job.id, 1, FakeTrain([TASK], end=STOPPED)) == 1
        assert store.job(job.id).state is State.RUNNING
        assert "goes on from its newest checkpoint" in store.events(job.id)[-1].data["line"]

    def test_before_it_has_begun_it_does_not_begin(self, store: Store, job: Job, tmp_path: Path) -> None:
        store.pause(job.id)
        train = FakeTrain([TASK], end=GOOD)
        assert run(store, tmp_path, job.id, 1, train) == 0
        assert train.called_with == {}
        assert states(store, job) == ["QUEUED", "STARTING", "PAUSING", "PAUSED"]

    @pytest.mark.parametrize("ask", [Store.pause, Store.cancel])
    def test_what_is_reported_meanwhile_is_kept(
        self, store: Store, job: Job, tmp_path: Path, ask: Callable[[Store, str], Job]
    ) -> None:
        def asked_at_first(plan: Any, directory: Path, *, on_reports: Callable[[Reports], None], **_: Any) -> Any:
            ask(store, job.id)
            on_reports([TASK, *metrics(1)])
            return STOPPED

        assert run(store, tmp_path, job.id, 1, asked_at_first) == 0
        assert kinds(store, job)[-3:] == ["task", "metrics", "state"]
        assert "RUNNING" not in states(store, job)

    @pytest.mark.parametrize(("end", "state"), [(GOOD, State.SUCCEEDED), (Outcome(False, "no"), State.FAILED)])
    def test_a_run_that_ends_while_it_is_to_pause_has_ended(
        self, store: Store, job: Job, tmp_path: Path, end: Outcome, state: State
    ) -> None:
        run(store, tmp_path, job.id, 1, FakeTrain([TASK], end=end, before_end=lambda: store.pause(job.id)))
        assert store.job(job.id).state is state


class TestWanted:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [0.0]
        monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
        return now

    def test_it_follows_the_store_with_one_read_a_second(
        self, store: Store, job: Job, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted, reads, read = Wanted(store, job.id, 1, Told([])), [], store.record
        monkeypatch.setattr(store, "record", lambda job_id: reads.append(job_id) or read(job_id))
        assert (wanted.orders().workers, wanted.orders().stop, reads) == (None, "", [])
        store.resize(job.id, 1)
        assert wanted.orders().workers is None
        clock[0] = 1.0
        assert [wanted.orders().workers for _ in range(9)] == [1] * 9
        assert len(reads) == 1
        store.pause(job.id)
        clock[0] = 2.0
        assert wanted.orders().stop == "paused by request"
        store.cancel(job.id)
        clock[0] = 3.0
        assert wanted.orders().stop == "cancelled by request"

    def test_while_the_store_is_away_the_last_word_holds(
        self, store: Store, job: Job, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.resize(job.id, 1)
        wanted = Wanted(store, job.id, 1, Told([]))

        def away(_: str) -> Job:
            raise StoreUnavailable("x", "gone")

        with monkeypatch.context() as patch:
            patch.setattr(store, "record", away)
            clock[0] = 1.0
            assert (wanted.orders().workers, wanted.orders().stop) == (1, "")
        store.pause(job.id)
        clock[0] = 2.0
        assert wanted.orders().stop

    def test_a_runner_that_was_replaced_learns_it(self, store: Store, job: Job, clock: list[float]) -> None:
        wanted = Wanted(store, job.id, 1, Told([]))
        store.move(job.id, State.STARTING, attempt=1, next_attempt=True)
        clock[0] = 1.0
        with pytest.raises(Superseded):
            wanted.orders()


def test_only_the_attempt_of_a_living_job_is_due(store: Store, job: Job) -> None:
    assert is_due(job, 1)
    assert not is_due(job, 2)
    assert not is_due(store.pause(job.id), 1)
    assert not is_due(store.cancel(job.id), 1)


@pytest.mark.parametrize(
    ("kind", "data", "after"),
    [
        ("task", {"steps": 9, "parameters": 5}, {"loss": 1, "steps": 9}),
        ("metrics", {"step": 3, "epoch": 0.5, "loss": 2, "gradient_norm": 4}, {"step": 3, "epoch": 0.5, "loss": 2}),
        ("metrics", {"step": 3, "seconds": {"exchange": 0.25}}, {"step": 3, "loss": 1, "exchange_seconds": 0.25}),
        ("evaluation", {"step": 3, "loss": 5, "accuracy": 0.5}, {"loss": 1, "accuracy": 0.5}),
        ("elastic", {"cause": "join", "step": 3, "workers_after": 2}, {"loss": 1, "workers": 2}),
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
    """The process itself, with a function in the trainer's place that reports once and then waits for its orders."""

    CODE = """
import sys, time
from types import SimpleNamespace
from sampa.service import runner
from sampa.workers.reports import Report
def connected(_):
    print("loading", flush=True)
    time.sleep(float(sys.argv[2]))
    return train
def train(plan, directory, *, on_reports, orders, **_):
    on_reports([Report("log", {"line": "here"})])
    while not orders().stop:
        time.sleep(0.05)
    on_reports([Report("checkpoint", {"step": 7})])
    time.sleep(float(sys.argv[3]))
    return SimpleNamespace(stopped=True)
runner._connected = connected
sys.exit(runner.main())
"""

    def start(
        self, job: Job, settings: ServiceSettings, attempt: int = 1, loads_s: float = 0, stops_s: float = 0
    ) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "SAMPA_STATE_DIR": str(settings.state_dir),
            "SAMPA_STORE_URL": settings.store_url,
            "SAMPA_ATTEMPT": str(attempt),
        }
        command = [sys.executable, "-c", self.CODE, job.id, str(loads_s), str(stops_s)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE)

    def test_told_to_end_it_has_a_checkpoint_written_and_asks_to_be_started_again(
        self, store: Store, job: Job, settings: ServiceSettings
    ) -> None:
        with self.start(job, settings) as process:
            wait_until(lambda: store.job(job.id).state is State.RUNNING)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 1
        assert kinds(store, job)[-3:] == ["log", "checkpoint", "log"]
        assert store.job(job.id).state is State.RUNNING

    def test_told_twice_it_ends_at_once(self, store: Store, job: Job, settings: ServiceSettings) -> None:
        with self.start(job, settings, stops_s=60) as process:
            wait_until(lambda: store.job(job.id).state is State.RUNNING)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: "checkpoint" in kinds(store, job))
            process.send_signal(signal.SIGTERM)
            assert process.wait(3) == 128 + signal.SIGTERM

    def test_told_before_it_trains_it_ends_at_once(self, job: Job, settings: ServiceSettings) -> None:
        with self.start(job, settings, loads_s=60) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(3) == -signal.SIGTERM

    def test_it_sees_by_itself_that_its_job_is_to_pause(
        self, store: Store, job: Job, settings: ServiceSettings
    ) -> None:
        with self.start(job, settings) as process:
            wait_until(lambda: "log" in kinds(store, job))
            store.pause(job.id)
            assert process.wait(10) == 0
        assert store.job(job.id).state is State.PAUSED
        assert kinds(store, job)[-3:] == ["state", "checkpoint", "state"]

    def test_it_ends_before_it_loads_ray_when_it_is_not_due(self, job: Job, settings: ServiceSettings) -> None:
        with self.start(job, settings, attempt=2) as process:
            assert process.wait(30) == 0

    def test_started_twice_as_one_attempt_it_leaves_the_job_to_the_next(
        self, store: Store, job: Job, settings: ServiceSettings
    ) -> None:
        store.move(job.id, State.RUNNING, attempt=1)
        with self.start(job, settings) as process:
            assert process.wait(30) == STARTED_TWICE
        assert store.job(job.id).state is State.RUNNING

    def test_where_the_storage_is_another_one_it_fails_the_job_at_once(
        self, store: Store, job: Job, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAMPA_STORAGE_MARK", f"{job.id}/1")
        with self.start(job, settings) as process:
            assert process.wait(30) == 0
        failed = store.job(job.id)
        assert failed.state is State.FAILED
        assert failed.reason.startswith(f"the storage is not shared: {settings.state_dir}/jobs on ")

    @pytest.mark.parametrize("module", ["sampa.service.runner", "sampa.service.sweeps.runner"])
    def test_where_nobody_says_where_the_store_is_it_ends_with_a_word(self, tmp_path: Path, module: str) -> None:
        others = {name: value for name, value in os.environ.items() if name != "SAMPA_STORE_URL"}
        env = {**others, "SAMPA_STATE_DIR": str(tmp_path), "SAMPA_ATTEMPT": "1"}
        command = [sys.executable, "-m", module, "0123456789ab"]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 1
        assert ended.stderr.startswith("SAMPA_STORE_URL is not set where this runner was started.")
        assert list(tmp_path.iterdir()) == [], "no store of its own is made"

    def test_importing_it_loads_neither_ray_nor_torch(self) -> None:
        code = f"import sys, {runner.__name__}; print([m for m in ('ray', 'torch', 'numpy') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
