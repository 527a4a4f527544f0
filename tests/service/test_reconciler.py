"""What the reconciler decides, as a table; and what it does, with a Ray that only keeps a list."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sampa.service import reconciler as reconciler_module
from sampa.service.launcher import OVER
from sampa.service.local_ray import RayNotStarted
from sampa.service.reconciler import (
    LOSSES_ALLOWED,
    TRAIN_VARIABLES,
    Decision,
    Reconciler,
    decide,
    submission_id,
)
from sampa.service.settings import ServiceSettings
from sampa.service.states import OCCUPYING, State
from sampa.service.store import Job, Store, StoreUnavailable

from .samples import (
    FakeRay,
    added_trial,
    begun_trial,
    running_sweep,
    spec_of,
    submitted,
    sweep_spec_of,
    wait_until,
)

STARTING, RUNNING, PAUSING, CANCELLING = State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING


def names(store: Store, *ids: str) -> list[str]:
    return [submission_id(store.job(job_id)) for job_id in ids]


class TestDecide:
    @pytest.mark.parametrize(
        ("state", "launched", "ray_says", "decision"),
        [
            (STARTING, False, None, Decision.SUBMIT),  # cut off between the claim and the submit
            (STARTING, False, "PENDING", Decision.NOTE_LAUNCH),  # cut off between the submit and its note
            (STARTING, False, "RUNNING", Decision.NOTE_LAUNCH),
            (STARTING, False, "FAILED", Decision.RESTART),
            (STARTING, True, "HOPELESS", Decision.GIVE_UP),
            (STARTING, True, "PENDING", Decision.KEEP),
            (STARTING, True, "RUNNING", Decision.KEEP),
            (STARTING, True, "FAILED", Decision.RESTART),
            (STARTING, True, "STOPPED", Decision.RESTART),
            (STARTING, True, "SUCCEEDED", Decision.RESTART),
            (STARTING, True, None, Decision.RESUBMIT),
            (RUNNING, True, "RUNNING", Decision.KEEP),
            (RUNNING, True, "FAILED", Decision.RESTART),
            (RUNNING, True, "SUCCEEDED", Decision.RESTART),
            (RUNNING, True, "HOPELESS", Decision.GIVE_UP),
            (RUNNING, True, None, Decision.RESUBMIT),
            (RUNNING, False, "RUNNING", Decision.KEEP),  # it reports, so it was launched
            (RUNNING, False, None, Decision.RESUBMIT),
            (PAUSING, True, "RUNNING", Decision.KEEP),
            (PAUSING, True, "SUCCEEDED", Decision.END),
            (PAUSING, True, "FAILED", Decision.END),
            (PAUSING, True, None, Decision.END),
            (CANCELLING, True, "RUNNING", Decision.KEEP),
            (CANCELLING, True, "PENDING", Decision.KEEP),
            (CANCELLING, True, "STOPPED", Decision.END),
            (CANCELLING, True, "FAILED", Decision.END),
            (CANCELLING, True, "HOPELESS", Decision.END),
            (CANCELLING, True, None, Decision.END),
            (CANCELLING, False, None, Decision.END),
        ],
    )
    def test_the_table(self, state: State, launched: bool, ray_says: str | None, decision: Decision) -> None:
        assert decide(a_job(state=state, launched=launched), ray_says, for_s=1) is decision

    @pytest.mark.parametrize(
        ("state", "launched", "ray_says", "decision"),
        [
            (STARTING, True, "PENDING", Decision.RECONNECT),
            (STARTING, False, "RUNNING", Decision.NOTE_LAUNCH),
            (RUNNING, True, "RUNNING", Decision.RECONNECT),
            (RUNNING, True, "FAILED", Decision.RESTART),
            (RUNNING, True, None, Decision.RESUBMIT),
        ],
    )
    def test_the_table_after_an_absence_of_ray(
        self, state: State, launched: bool, ray_says: str | None, decision: Decision
    ) -> None:
        job = a_job(state=state, launched=launched, interrupted_at=datetime.now(UTC))
        assert decide(job, ray_says, for_s=1) is decision

    @pytest.mark.parametrize(("state", "patience_s"), [(CANCELLING, 10), (PAUSING, 60)])
    def test_a_runner_that_does_not_stop_by_itself_is_ended(self, state: State, patience_s: int) -> None:
        job = a_job(state=state)
        assert decide(job, "RUNNING", for_s=patience_s - 1) is Decision.KEEP
        assert decide(job, "RUNNING", for_s=patience_s) is Decision.STOP
        assert decide(job, "STOPPED", for_s=patience_s) is Decision.END

    @pytest.mark.parametrize("state", [CANCELLING, PAUSING])
    def test_a_runner_that_has_nothing_to_write_yet_is_ended_at_once(self, state: State) -> None:
        assert decide(a_job(state=state, started_at=None), "RUNNING", for_s=0) is Decision.STOP

    def test_a_vanished_runner_is_given_up_after_its_restarts(self) -> None:
        assert decide(a_job(restarts=2), "FAILED", 0) is Decision.RESTART
        assert decide(a_job(restarts=3), "FAILED", 0) is Decision.GIVE_UP

    def test_lost_clusters_do_not_use_up_the_restarts_but_are_bounded_too(self) -> None:
        assert decide(a_job(restarts=3), None, 0) is Decision.RESUBMIT
        assert decide(a_job(losses=LOSSES_ALLOWED), "FAILED", 0) is Decision.RESTART
        assert decide(a_job(losses=LOSSES_ALLOWED), None, 0) is Decision.GIVE_UP

    def test_every_case_has_a_decision(self) -> None:
        words = [None, "PENDING", "RUNNING", *OVER]
        for state, launched, ray_says in itertools.product(OCCUPYING, [True, False], words):
            assert isinstance(decide(a_job(state=state, launched=launched), ray_says, 0), Decision)


class TestStarting:
    def test_queued_jobs_start_in_order_and_not_too_many(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        ids = [submitted(store) for _ in range(4)]
        reconciler.step()
        reconciler.step()
        assert ray.started == [f"sampa-{ids[0]}-1", f"sampa-{ids[1]}-1"]
        assert [store.job(each).state for each in ids] == [STARTING, STARTING, State.QUEUED, State.QUEUED]
        store.move(ids[0], RUNNING)
        store.move(ids[0], State.SUCCEEDED)
        reconciler.step()
        assert ray.started[2:] == [f"sampa-{ids[2]}-1"]

    def test_a_runner_is_told_its_job_and_where_things_are(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, settings: ServiceSettings
    ) -> None:
        job_id = submitted(store)
        reconciler.step()
        [name] = names(store, job_id)
        assert ray.entrypoints[name] == f"exec {sys.executable} -m sampa.service.runner {job_id}"
        assert ray.environments[name] == {
            "SAMPA_STATE_DIR": str(settings.state_dir),
            "SAMPA_STORE_URL": settings.store_url,
            "SAMPA_STORAGE": str(settings.state_dir),
            "SAMPA_ATTEMPT": "1",
            "SAMPA_STORAGE_MARK": f"{job_id}/1",
            **TRAIN_VARIABLES,
            "RAY_JOB_STOP_WAIT_TIME_S": "10",
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
        }
        assert (ray.codes[name], ray.pips[name], ray.packages) == ("", [], {})

    def test_a_sweep_has_a_runner_of_its_own_kind_and_its_trials_have_none(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        sweep, _ = store.sweeps.submit(sweep_spec_of())
        reconciler.step()
        added_trial(store, store.sweeps.get(sweep.id))
        reconciler.step()
        assert ray.started == [name := f"sampa-{sweep.id}-1"]
        assert ray.entrypoints[name] == f"exec {sys.executable} -m sampa.service.sweeps.runner {sweep.id}"
        assert store.sweeps.get(sweep.id).launched

    def test_a_sweep_whose_runner_vanished_is_started_again_and_its_trials_wait(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        ray.submissions[f"sampa-{sweep.id}-1"] = "FAILED"
        reconciler.step()
        assert ray.started == [f"sampa-{sweep.id}-2"]
        waiting = store.job(trial.id)
        assert waiting.state is State.QUEUED
        assert "started again from its newest checkpoint" in waiting.reason

    def test_a_sweep_is_given_up_after_its_own_restarts(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        sweep = running_sweep(store, max_restarts=0)
        trial = begun_trial(store, sweep)
        ray.submissions[f"sampa-{sweep.id}-1"] = "FAILED"
        reconciler.step()
        assert "max_restarts is 0" in store.sweeps.get(sweep.id).reason
        assert store.job(trial.id).state is State.CANCELLED

    def test_a_start_cut_off_before_the_submit_is_made_up_for(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        job_id = submitted(store)
        store.claim(max_running=2)
        reconciler.step()
        assert ray.started == [f"sampa-{job_id}-1"]
        assert (store.job(job_id).restarts, store.job(job_id).launched) == (0, True)

    def test_a_start_cut_off_after_the_submit_is_only_noted(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        job_id = submitted(store)
        store.claim(max_running=2)
        ray.submit(f"sampa-{job_id}-1", "", {})
        reconciler.step()
        assert len(ray.started) == 1
        assert store.job(job_id).launched

    def test_reconcilers_on_one_store_start_no_job_twice_and_not_too_many(
        self, store: Store, ray: FakeRay, settings: ServiceSettings
    ) -> None:
        ids = [submitted(store) for _ in range(6)]
        threads = [threading.Thread(target=Reconciler(store, ray, settings).step) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(ray.started) == sorted(f"sampa-{each}-1" for each in ids[:2])


class TestVanished:
    @pytest.fixture
    def job_id(self, store: Store, reconciler: Reconciler) -> str:
        job_id = submitted(store, max_restarts=2)
        reconciler.step()
        store.move(job_id, RUNNING, attempt=1)
        return job_id

    def test_it_is_started_again_as_the_next_attempt(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        ray.submissions[f"sampa-{job_id}-1"] = "FAILED"
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.restarts, job.losses) == (STARTING, 2, 1, 0)
        assert ray.started[-1] == f"sampa-{job_id}-2"
        assert ray.environments[f"sampa-{job_id}-2"]["SAMPA_ATTEMPT"] == "2"
        assert "vanished" in job.reason

    def test_it_fails_after_its_restarts_and_says_how_often_and_where_to_look(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        for attempt in (1, 2, 3):
            ray.submissions[f"sampa-{job_id}-{attempt}"] = "FAILED"
            reconciler.step()
        job = store.job(job_id)
        assert job.state is State.FAILED
        assert "vanished 3 times (Ray says FAILED), and max_restarts is 2" in job.reason
        assert f"sampa-{job_id}-3" in job.reason

    def test_a_lost_cluster_costs_no_restart(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        ray.lose_everything()
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.restarts, job.losses) == (STARTING, 2, 0, 1)
        assert ray.started[-1] == f"sampa-{job_id}-2"
        assert "cluster was lost" in job.reason

    def test_while_ray_is_away_nothing_is_decided(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        waiting = submitted(store)
        before = store.job(job_id)
        ray.up = False
        reconciler.step()
        assert store.job(job_id) == before
        assert store.job(waiting).state is State.QUEUED
        assert "Ray's Jobs API at http://fake doesn't answer (it is down)" in reconciler.health()["ray"]
        ray.up = True
        reconciler.step()
        assert store.job(waiting).state is STARTING
        assert reconciler.health()["ray"] == "ok"

    def test_a_runner_that_ends_well_while_ray_is_asked_is_not_restarted(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        ray.submissions[f"sampa-{job_id}-1"] = "SUCCEEDED"
        ray.on_status = lambda: store.move(job_id, State.SUCCEEDED, attempt=1)
        reconciler.step()
        assert store.job(job_id).state is State.SUCCEEDED
        assert len(ray.started) == 1

    def test_two_reconcilers_that_notice_it_restart_it_once(
        self, store: Store, ray: FakeRay, settings: ServiceSettings, job_id: str
    ) -> None:
        ray.submissions[f"sampa-{job_id}-1"] = "FAILED"
        barrier = threading.Barrier(2)
        ray.on_status = lambda: barrier.wait(10)
        threads = [threading.Thread(target=Reconciler(store, ray, settings).step) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert ray.started == [f"sampa-{job_id}-1", f"sampa-{job_id}-2"]
        assert store.job(job_id).restarts == 1


class TestCancelling:
    def test_its_runner_is_ended_before_the_job_is(self, store: Store, ray: FakeRay, reconciler: Reconciler) -> None:
        job_id = submitted(store)
        reconciler.step()
        store.cancel(job_id)
        reconciler.step()
        assert ray.stopped == [f"sampa-{job_id}-1"]
        assert store.job(job_id).state is CANCELLING
        ray.submissions[f"sampa-{job_id}-1"] = "STOPPED"
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.reason) == (State.CANCELLED, "cancelled by request")

    def test_one_that_ray_does_not_know_is_cancelled_at_once(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        job_id = submitted(store)
        store.claim(max_running=2)
        store.cancel(job_id)
        reconciler.step()
        assert store.job(job_id).state is State.CANCELLED
        assert ray.started == []

    def test_its_place_is_given_to_the_next_in_the_same_pass(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        ids = [submitted(store) for _ in range(3)]
        reconciler.step()
        store.cancel(ids[0])
        ray.submissions[f"sampa-{ids[0]}-1"] = "STOPPED"
        reconciler.step()
        assert store.job(ids[2]).state is STARTING


class TestStopping:
    """Of runners that train."""

    @pytest.fixture
    def job_id(self, store: Store, reconciler: Reconciler) -> str:
        job_id = submitted(store)
        reconciler.step()
        store.move(job_id, RUNNING, attempt=1)
        return job_id

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [0.0]
        monkeypatch.setattr(reconciler_module.time, "monotonic", lambda: now[0])
        return now

    def test_they_are_given_their_time_and_each_state_its_own(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str, clock: list[float]
    ) -> None:
        store.pause(job_id)
        for clock[0] in (0.0, 59.0):
            reconciler.step()
        store.cancel(job_id)
        for clock[0] in (61.0, 70.0):
            reconciler.step()
        assert ray.stopped == []
        clock[0] = 71.0
        reconciler.step()
        assert ray.stopped == [f"sampa-{job_id}-1"]

    def test_one_that_has_ended_by_then_leaves_its_job_paused_and_its_place_free(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        waiting = [submitted(store) for _ in range(2)]
        store.pause(job_id)
        ray.submissions[f"sampa-{job_id}-1"] = "SUCCEEDED"
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.reason) == (State.PAUSED, "paused by request")
        assert [store.job(each).state for each in waiting] == [STARTING, STARTING]

    def test_a_resumed_job_is_started_as_the_next_attempt(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str
    ) -> None:
        store.pause(job_id)
        store.move(job_id, State.PAUSED, attempt=1)
        reconciler.step()
        assert len(ray.started) == 1
        store.resume(job_id)
        reconciler.step()
        assert ray.started[1:] == [f"sampa-{job_id}-2"]
        assert store.job(job_id).restarts == 0


class TestRunning:
    @pytest.fixture
    def stop(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        yield stop
        stop.set()

    def test_it_wakes_at_once_and_stops_when_told(
        self, store: Store, ray: FakeRay, settings: ServiceSettings, stop: threading.Event
    ) -> None:
        reconciler = Reconciler(store, ray, settings.model_copy(update={"poll_s": 3600.0}))
        thread = threading.Thread(target=reconciler.run, args=(stop,))
        thread.start()
        wait_until(lambda: reconciler.health() == {"ray": "ok", "reconciler": "ok"})
        job_id = submitted(store)
        reconciler.wake()
        wait_until(lambda: store.job(job_id).state is STARTING)
        stop.set()
        reconciler.wake()
        thread.join(30)
        assert not thread.is_alive()
        assert reconciler.health()["reconciler"] == "stopped"

    @pytest.mark.parametrize(
        "error",
        [StoreUnavailable("sqlite:///x", "gone"), RuntimeError("a bug"), RayNotStarted("no", Path("ray.log"))],
    )
    def test_it_survives_whatever_a_pass_raises_and_shows_it(
        self,
        store: Store,
        settings: ServiceSettings,
        stop: threading.Event,
        error: Exception,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        failures = iter([error, error])

        class Moody(FakeRay):
            def check(self) -> None:
                for each in failures:
                    raise each

        reconciler = Reconciler(store, Moody(), settings)
        shown: list[str] = []
        monkeypatch.setattr(reconciler_module.log, "log", lambda _level, _text, _part, word: shown.append(word))
        thread = threading.Thread(target=reconciler.run, args=(stop,))
        thread.start()
        wait_until(lambda: reconciler.health() == {"ray": "ok", "reconciler": "ok"})
        stop.set()
        reconciler.wake()
        thread.join(30)
        assert any(str(error) in word for word in shown)


def a_job(**changes: Any) -> Job:
    now = datetime.now(UTC)
    job = Job(
        id="0123456789ab",
        name="sample",
        state=RUNNING,
        reason="",
        spec=spec_of(max_restarts=3),
        attempt=1,
        restarts=0,
        losses=0,
        launched=True,
        created_at=now,
        updated_at=now,
        started_at=now,
        ended_at=None,
        progress={},
        result=None,
        workers=None,
        last_event=1,
        version=1,
    )
    return dataclasses.replace(job, **changes)
