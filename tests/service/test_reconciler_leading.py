"""Which reconciler works, what it says while Ray is away, and what it tells a cluster of others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sampa.service import reconciler as reconciler_module
from sampa.service.reconciler import NotLeading, Reconciler
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store

from .samples import FakeRay, running_sweep, submitted, wait_until

Clock = list[float]


@contextmanager
def running(reconciler: Reconciler) -> Iterator[None]:
    """Run a reconciler in a thread of its own."""
    stop = threading.Event()
    thread = threading.Thread(target=reconciler.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        reconciler.wake()
        thread.join(30)
    assert not thread.is_alive()


class TestRayIsAway:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(reconciler_module.time, "monotonic", lambda: now[0])
        return now

    @pytest.fixture
    def job_id(self, store: Store, ray: FakeRay, reconciler: Reconciler, clock: list[float]) -> str:
        """A job that runs while Ray has been away since a moment ago."""
        job_id = submitted(store)
        reconciler.step()
        store.move(job_id, State.RUNNING, attempt=1)
        ray.up = False
        reconciler.step()
        return job_id

    def told(self, store: Store, job_id: str) -> list[str]:
        return [event.kind for event in store.events(job_id) if event.kind in ("interrupted", "reconnected")]

    def test_its_jobs_say_so_once_for_each_absence_whoever_leads(
        self, store: Store, ray: FakeRay, settings: ServiceSettings, reconciler: Reconciler, job_id: str, clock: Clock
    ) -> None:
        clock[0] += 9.9
        reconciler.step()
        assert self.told(store, job_id) == []
        clock[0] += 0.1
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt) == (State.RUNNING, 1)
        assert "Ray does not answer" in job.reason
        assert job.interrupted_at is not None
        another = Reconciler(store, ray, settings)
        for one in (reconciler, another):
            for _ in range(2):
                clock[0] += 60
                one.step()
        assert store.job(job_id) == job
        assert self.told(store, job_id) == ["interrupted"]

    def test_a_runner_that_outlived_it_goes_on(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str, clock: Clock
    ) -> None:
        for absence in (1, 2):
            ray.up = False
            reconciler.step()
            clock[0] += 10
            reconciler.step()
            ray.up = True
            reconciler.step()
            job = store.job(job_id)
            assert (job.state, job.attempt, job.reason, job.interrupted_at) == (State.RUNNING, 1, "", None)
            assert self.told(store, job_id) == ["interrupted", "reconnected"] * absence
        assert len(ray.started) == 1

    def test_one_that_went_down_with_its_cluster_is_started_again(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str, clock: Clock
    ) -> None:
        clock[0] += 10
        reconciler.step()
        ray.lose_everything()
        ray.up = True
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.losses, job.interrupted_at) == (State.STARTING, 2, 1, None)
        assert "cluster was lost" in job.reason
        ray.up = False
        reconciler.step()
        clock[0] += 10
        reconciler.step()
        assert [(e.kind, e.data["attempt"]) for e in store.events(job_id) if e.kind == "interrupted"] == [
            ("interrupted", 1),
            ("interrupted", 2),
        ]

    def test_those_that_wait_or_are_to_stop_keep_their_own_words(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str, clock: Clock
    ) -> None:
        waiting = submitted(store)
        store.cancel(job_id)
        clock[0] += 10
        reconciler.step()
        assert self.told(store, job_id) == self.told(store, waiting) == []
        assert store.job(job_id).reason == "cancelled by request"

    def test_a_sweep_says_so_for_its_trials(
        self, store: Store, ray: FakeRay, reconciler: Reconciler, clock: Clock
    ) -> None:
        sweep = running_sweep(store)
        ray.up = False
        reconciler.step()
        clock[0] += 10
        reconciler.step()
        assert self.told(store, sweep.id) == ["interrupted"]
        assert store.sweeps.get(sweep.id).interrupted_at is not None


class TestLeading:
    """Of two processes over one store."""

    @pytest.fixture
    def leader(self, reconciler: Reconciler) -> Iterator[Reconciler]:
        with running(reconciler):
            wait_until(lambda: reconciler.leads and "ray" in reconciler.health())
            yield reconciler

    @pytest.fixture
    def settings(self, settings: ServiceSettings) -> ServiceSettings:
        return settings.model_copy(update={"lease_s": 1.0})

    def test_one_reconciles_and_the_other_is_well_and_says_who_does(
        self, store: Store, settings: ServiceSettings, leader: Reconciler
    ) -> None:
        class Untouched(FakeRay):
            def check(self) -> None:
                raise AssertionError("a local Ray would be started here")

        standby = Reconciler(store, Untouched(), settings)
        with running(standby):
            wait_until(lambda: standby.health() == {"reconciler": "ok"})
            job_id = submitted(store)
            standby.wake()
            wait_until(lambda: store.job(job_id).state is State.STARTING)
            assert (leader.leads, standby.leads) == (True, False)
            assert leader.leader == standby.leader != ""
            assert leader.health() == {"reconciler": "ok", "ray": "ok"}

    def test_the_other_one_goes_on_at_once_when_the_first_ends(
        self, store: Store, ray: FakeRay, settings: ServiceSettings
    ) -> None:
        for_long = settings.model_copy(update={"lease_s": 60.0})
        first, second = Reconciler(store, ray, for_long), Reconciler(store, ray, for_long)
        first._lease.look()
        second._lease._look_s = 0.05
        with running(second):
            with running(first):
                wait_until(lambda: second.health() == {"reconciler": "ok"})
                assert second.leader == first.leader
            wait_until(lambda: second.leads)
            assert not first.leads
            job_id = submitted(store)
            wait_until(lambda: store.job(job_id).state is State.STARTING)

    def test_a_leader_whose_lease_ends_in_a_pass_does_nothing_more(
        self, store: Store, ray: FakeRay, reconciler: Reconciler
    ) -> None:
        first = submitted(store)
        reconciler.step()
        ray.submissions[f"sampa-{first}-1"] = "FAILED"
        waiting = submitted(store)
        reconciler._lease.look()
        ray.on_status = reconciler._lease.give_up
        with pytest.raises(NotLeading):
            reconciler.step()
        assert store.job(first).state is State.STARTING
        assert store.job(waiting).state is State.QUEUED
        assert len(ray.started) == 1

    def test_one_that_is_stuck_in_a_pass_is_replaced(
        self, store: Store, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reconciler_module, "STUCK_S", 0.1)
        going_on = threading.Event()

        class Silent(FakeRay):
            def check(self) -> None:
                assert going_on.wait(60)

        stuck, other = Reconciler(store, Silent(), settings), Reconciler(store, FakeRay(), settings)
        with running(stuck):
            wait_until(lambda: stuck.leads)
            with running(other):
                wait_until(lambda: other.leads)
                job_id = submitted(store)
                wait_until(lambda: store.job(job_id).launched)
                going_on.set()
                wait_until(lambda: stuck.health() == {"reconciler": "ok"})

    def test_a_late_leader_starts_nothing_twice(self, store: Store, ray: FakeRay, settings: ServiceSettings) -> None:
        """Cut off between its look at a job and what it does about it, while another one does that."""
        late, other = Reconciler(store, ray, settings), Reconciler(store, ray, settings)
        job_id = submitted(store)
        late.step()
        store.move(job_id, State.RUNNING, attempt=1)
        ray.submissions[f"sampa-{job_id}-1"] = "FAILED"

        def meanwhile() -> None:
            ray.on_status = lambda: None
            other.step()

        ray.on_status = meanwhile
        late.step()
        assert ray.started == [f"sampa-{job_id}-1", f"sampa-{job_id}-2"]
        assert (store.job(job_id).attempt, store.job(job_id).restarts) == (2, 1)


class TestTheStoreUrl:
    @pytest.mark.parametrize(
        ("url", "ray_address", "sent"),
        [
            ("postgresql://sampa:secret@db/sampa", "http://head:8265", False),
            ("postgresql://sampa@db/sampa?password=secret", "http://head:8265", False),
            ("postgresql://sampa@db/sampa", "http://head:8265", True),
            ("sqlite:////shared/sampa.db", "http://head:8265", True),
            ("postgresql://sampa:secret@db/sampa", None, True),  # a local Ray tells only us
        ],
    )
    def test_a_password_is_not_told_to_a_cluster(
        self, store: Store, ray: FakeRay, tmp_path: Path, url: str, ray_address: str | None, sent: bool
    ) -> None:
        settings = ServiceSettings(state_dir=tmp_path, store_url=url, ray_address=ray_address)
        job_id = submitted(store)
        Reconciler(store, ray, settings).step()
        environment = ray.environments[f"sampa-{job_id}-1"]
        assert environment.get("SAMPA_STORE_URL") == (url if sent else None)
        assert sent or "secret" not in str(environment)
