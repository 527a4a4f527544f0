"""What goes wrong for one job: it is told so, once, it is tried again less and less often, and the others go on."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from sampa.service.launcher import LaunchRefused, RayUnreachable
from sampa.service.reconciler import Reconciler
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store, StoreUnavailable

from .samples import FakeRay, running_sweep, submitted

AGAIN = "; it is tried again"


class Moody(FakeRay):
    """Raises something for some submissions, by what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[str, Exception] = {}
        self.asked = 0

    def submit(self, submission_id: str, *what: Any, **more: Any) -> None:
        self._refuse("submit", submission_id)
        super().submit(submission_id, *what, **more)

    def status(self, submission_id: str) -> str | None:
        self._refuse("status", submission_id)
        return super().status(submission_id)

    def _refuse(self, verb: str, submission_id: str) -> None:
        for key, error in self.refused.items():
            if key in f"{verb} {submission_id}":
                self.asked += 1
                raise error


@pytest.fixture
def ray() -> Moody:
    return Moody()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def reasons(store: Store, job_id: str) -> list[str]:
    return [one["reason"] for one in store.transitions(job_id)]


def lines(store: Store, job_id: str) -> list[str]:
    return [event.data["line"] for event in store.events(job_id, kinds=("log",))]


def test_a_job_that_ray_refuses_does_not_keep_the_others_from_starting(
    store: Store, reconciler: Reconciler, ray: Moody, clock: list[float]
) -> None:
    bad, good = submitted(store), submitted(store)
    ray.refused[bad] = LaunchRefused("http://fake", 500, "no agent")
    reconciler.step()
    assert ray.started == [f"sampa-{good}-1"]
    refused = f"its runner could not be started: Ray at http://fake refused a request with 500: no agent{AGAIN}"
    assert (store.job(bad).state, store.job(bad).reason) == (State.STARTING, refused)
    assert reconciler.health()["ray"] == f"{bad}: {refused}"
    ray.refused.clear()
    clock[0] += 1
    reconciler.step()
    assert ray.started == [f"sampa-{good}-1", f"sampa-{bad}-1"]
    assert (store.job(bad).reason, reconciler.health()["ray"]) == ("", "ok")


def test_it_is_told_each_thing_once_and_tried_less_and_less_often(
    store: Store, reconciler: Reconciler, ray: Moody, clock: list[float]
) -> None:
    job_id, tried_at, began_at = submitted(store), [], clock[0]
    ray.refused["submit"] = LaunchRefused("http://fake", 400, "no room")
    for _ in range(240):
        before = ray.asked
        reconciler.step()
        tried_at += [clock[0] - began_at] if ray.asked > before else []
        clock[0] += 0.5
    assert tried_at == [0, 1, 3, 7, 15, 31, 61, 91]
    assert len(reasons(store, job_id)) == 3, "queued, claimed, told"
    ray.refused["submit"] = LaunchRefused("http://fake", 400, "no such thing")
    clock[0] += 30
    reconciler.step()
    assert [reason[-len(AGAIN) - 13 : -len(AGAIN)] for reason in reasons(store, job_id)[3:]] == ["no such thing"]


def test_where_no_mark_can_be_left_others_are_looked_after_and_all_say_why(
    store: Store, reconciler: Reconciler, ray: Moody, settings: ServiceSettings, clock: list[float]
) -> None:
    failed, cancelled = submitted(store), submitted(store)
    reconciler.step()
    for job_id in (failed, cancelled):
        store.move(job_id, State.RUNNING, attempt=1)
    (settings.state_dir / "jobs").rename(settings.state_dir / "away")
    (settings.state_dir / "jobs").write_text("no directory")
    store.cancel(cancelled)
    ray.submissions |= {f"sampa-{failed}-1": "FAILED", f"sampa-{cancelled}-1": "STOPPED"}
    new = submitted(store)
    reconciler.step()
    assert store.job(cancelled).state is State.CANCELLED
    assert (store.job(failed).state, store.job(failed).attempt) == (State.STARTING, 2)
    for job_id in (failed, new):
        why = f"its runner could not be started: nothing can be written to {settings.state_dir}/jobs in the API, where "
        assert store.job(job_id).reason.startswith(why)
        assert "(Not a directory); see whether the volume is mounted there, has room" in store.job(job_id).reason
    assert "its runner vanished (Ray says FAILED)" in reasons(store, failed)[-2]
    (settings.state_dir / "jobs").unlink()
    clock[0] += 1
    reconciler.step()
    assert sorted(ray.started[2:]) == sorted([f"sampa-{failed}-2", f"sampa-{new}-1"])
    assert store.job(failed).reason == reasons(store, failed)[-3], "as it was before"
    assert store.job(new).reason == ""


def test_a_bug_that_one_job_meets_is_a_line_of_its_log_while_it_trains(
    store: Store, reconciler: Reconciler, ray: Moody, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    odd = submitted(store)
    reconciler.step()
    store.move(odd, State.RUNNING, attempt=1)
    ray.refused[odd] = RuntimeError("a bug")
    other = submitted(store)
    with caplog.at_level(logging.WARNING):
        for clock[0] in (1001.0, 1002.0, 1004.0):
            reconciler.step()
    assert (store.job(odd).state, store.job(odd).reason) == (State.RUNNING, "")
    assert lines(store, odd) == [f"its runner could not be looked after: RuntimeError: a bug{AGAIN}"]
    assert store.job(other).launched
    assert "a bug" in reconciler.health()["ray"]
    assert caplog.text.count("Traceback") == 1


def test_a_cancel_is_not_kept_waiting(store: Store, reconciler: Reconciler, ray: Moody, clock: list[float]) -> None:
    job_id = submitted(store)
    ray.refused["submit"] = LaunchRefused("http://fake", 400, "no room")
    for clock[0] in (1000.0, 1001.0, 1003.0):
        reconciler.step()
    store.cancel(job_id)
    reconciler.step()
    assert store.job(job_id).state is State.CANCELLED
    reconciler.step()
    assert reconciler.health()["ray"] == "ok"


def test_a_runner_that_has_begun_meanwhile_is_not_put_back(store: Store, reconciler: Reconciler, ray: Moody) -> None:
    """Ray started it, and then answered as if it had not."""
    job_id = submitted(store)

    class Late(LaunchRefused):
        def __str__(self) -> str:
            if store.job(job_id).state is State.STARTING:
                store.move(job_id, State.RUNNING, attempt=1)
            return "too late"

    ray.refused["submit"] = Late("http://fake", 504, "")
    reconciler.step()
    assert (store.job(job_id).state, store.job(job_id).reason) == (State.RUNNING, "")


def test_a_sweep_is_told_too(store: Store, reconciler: Reconciler, ray: Moody) -> None:
    sweep = running_sweep(store)
    ray.submissions[f"sampa-{sweep.id}-1"] = "FAILED"
    ray.refused["submit"] = LaunchRefused("http://fake", 400, "no room")
    reconciler.step()
    told = store.sweeps.get(sweep.id)
    assert (told.state, told.attempt) == (State.STARTING, 2)
    assert "no room" in told.reason


@pytest.mark.parametrize("error", [RayUnreachable("http://fake", "gone"), StoreUnavailable("sqlite:///x", "gone")])
def test_what_is_wrong_for_all_ends_the_pass(
    store: Store, reconciler: Reconciler, ray: Moody, error: Exception
) -> None:
    first, second = submitted(store), submitted(store)
    ray.refused[first] = error
    try:
        reconciler.step()
    except StoreUnavailable:
        assert isinstance(error, StoreUnavailable)
    assert (ray.started, store.job(first).reason, store.job(second).state) == ([], "", State.QUEUED)


def test_what_a_runner_waits_for_is_the_reason(store: Store, reconciler: Reconciler, ray: Moody) -> None:
    job_id = submitted(store)
    reconciler.step()
    name = f"sampa-{job_id}-1"
    ray.submissions[name] = "PENDING"
    for ray.delays[name] in ("no head", "no head", "no image", "no image"):
        reconciler.step()
    assert reasons(store, job_id)[2:] == ["no head", "no image"]
    assert reconciler.health()["ray"] == "ok"
