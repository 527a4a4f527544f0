"""The backend rayjob: what the reconciler does with it, over a Kubernetes that only keeps what it is given."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sampa.service import kube as kube_module
from sampa.service.backends import launcher_of
from sampa.service.kube import KubeUnusable, RayJobResources
from sampa.service.kube_launcher import KubeRayJobs
from sampa.service.launcher import LaunchRefused
from sampa.service.reconciler import Reconciler
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store

from ..fake_kube import FakeKube, allowed, deployed
from .samples import submitted, sweep_spec_of

ENV = {"SAMPA_STATE_DIR": "/var/lib/sampa", "SAMPA_STORE_URL": "postgresql://u:secret@db/x"}
FIRST, SECOND = "sampa-0123456789ab-1", "sampa-0123456789ab-2"


@pytest.fixture
def kube(kube: FakeKube) -> Iterator[FakeKube]:
    yield kube
    assert kube.used <= allowed()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    path.write_text(deployed("RayJob").read_text())
    return path


@pytest.fixture
def launcher(kube: FakeKube, account: Path, template: Path) -> Iterator[KubeRayJobs]:
    launcher = KubeRayJobs(RayJobResources(kube.url, account=account, timeout_s=10), template)
    yield launcher
    launcher.close()


@pytest.fixture
def settings(settings: ServiceSettings, template: Path) -> ServiceSettings:
    return settings.model_copy(update={"backend": "rayjob", "rayjob_template": template})


@pytest.fixture
def reconciler(store: Store, launcher: KubeRayJobs, settings: ServiceSettings) -> Reconciler:
    return Reconciler(store, launcher, settings)


def failed(kube: FakeKube, name: str, message: str = "exit code 1", reason: str = "AppFailed") -> None:
    kube.set_status("rayjobs", name, jobStatus="FAILED", jobDeploymentStatus="Failed", reason=reason, message=message)


class TestLauncher:
    def test_a_submission_is_a_rayjob_from_the_template(self, launcher: KubeRayJobs, kube: FakeKube) -> None:
        sha256 = launcher.carry("ab" * 32, lambda: [b"never read"])
        launcher.submit(FIRST, "exec true", ENV, sha256, ["einops"])
        made = kube.all("rayjobs")[FIRST]
        assert (made["spec"]["entrypoint"], made["spec"]["submissionMode"]) == ("exec true", "HTTPMode")
        assert json.loads(made["spec"]["runtimeEnvYAML"]) == {
            "env_vars": {"SAMPA_STATE_DIR": "/var/lib/sampa", "SAMPA_BUNDLE": sha256},
            "pip": {"packages": ["einops"], "pip_check": False},
        }

    def test_submitting_again_is_no_error_and_starts_nothing(self, launcher: KubeRayJobs, kube: FakeKube) -> None:
        launcher.submit(FIRST, "exec true", ENV)
        launcher.submit(FIRST, "exec false", ENV)
        assert [one["spec"]["entrypoint"] for one in kube.all("rayjobs").values()] == ["exec true"]

    def test_its_status_follows_kuberay(self, launcher: KubeRayJobs, kube: FakeKube) -> None:
        assert launcher.status(FIRST) is None
        launcher.submit(FIRST, "exec true", ENV)
        seen = [launcher.status(FIRST)]
        for job, deployment in [
            ("", "Initializing"),
            ("PENDING", "Running"),
            ("RUNNING", "Running"),
            ("SUCCEEDED", "Complete"),
        ]:
            kube.set_status("rayjobs", FIRST, jobStatus=job, jobDeploymentStatus=deployment)
            seen.append(launcher.status(FIRST))
        assert seen == ["PENDING", "PENDING", "PENDING", "RUNNING", "SUCCEEDED"]

    def test_a_stop_deletes_it_and_its_status_stays_until_the_runner_was_told(
        self, launcher: KubeRayJobs, kube: FakeKube
    ) -> None:
        kube.finalizers["rayjobs"] = ["ray.io/rayjob-finalizer"]
        launcher.stop(FIRST)
        launcher.submit(FIRST, "exec true", ENV)
        kube.set_status("rayjobs", FIRST, jobStatus="RUNNING", jobDeploymentStatus="Running")
        for _ in range(2):
            launcher.stop(FIRST)
            assert launcher.status(FIRST) == "RUNNING"
        kube.release("rayjobs", FIRST)
        assert launcher.status(FIRST) is None

    def test_an_attempt_takes_the_place_of_earlier_ones_and_of_no_other_job(
        self, launcher: KubeRayJobs, kube: FakeKube
    ) -> None:
        for name in (FIRST, "sampa-ffffffffffff-1", SECOND):
            launcher.submit(name, "exec true", ENV)
        assert [*kube.all("rayjobs")] == ["sampa-ffffffffffff-1", SECOND]
        launcher.submit(FIRST, "exec true", ENV)  # from one that lags behind
        assert SECOND in kube.all("rayjobs")

    def test_why_it_failed_is_said(self, launcher: KubeRayJobs, kube: FakeKube) -> None:
        assert launcher.obstacle(FIRST) == ""
        launcher.submit(FIRST, "exec true", ENV)
        assert launcher.obstacle(FIRST) == ""
        failed(kube, FIRST, "too late", "DeadlineExceeded")
        advice = "raise activeDeadlineSeconds in the RayJob template"
        assert launcher.obstacle(FIRST) == f"its RayJob {FIRST} failed (DeadlineExceeded): too late; {advice}"

    @pytest.mark.parametrize(
        ("code", "said", "why"),
        [(401, "Unauthorized", "our token"), (403, "forbidden", "bind a Role with list"), (500, "etcd", "now (500")],
    )
    def test_it_is_not_reachable_where_it_could_do_nothing(
        self, launcher: KubeRayJobs, kube: FakeKube, code: int, said: str, why: str
    ) -> None:
        launcher.check()
        kube.broken[""] = (code, said)
        with pytest.raises(KubeUnusable) as raised:
            launcher.check()
        assert why in str(raised.value)

    def test_without_kuberay_it_is_not_reachable(self, launcher: KubeRayJobs, kube: FakeKube) -> None:
        kube.installed.clear()
        with pytest.raises(KubeUnusable, match="install KubeRay's custom resources"):
            launcher.check()

    def test_a_template_is_read_anew_and_a_bad_one_refused(
        self, launcher: KubeRayJobs, kube: FakeKube, template: Path
    ) -> None:
        good = template.read_text()
        template.write_text("kind: RayJob")
        with pytest.raises(LaunchRefused, match=r"^the RayJob template .* is no RayJob of ray.io/v1; give one$"):
            launcher.submit(FIRST, "exec true", ENV)
        assert "is no RayJob" in launcher.why_not_shared(Path("/var/lib/sampa"))
        template.write_text(good.replace("activeDeadlineSeconds: 1209600", "activeDeadlineSeconds: 60"))
        launcher.submit(FIRST, "exec true", ENV)
        assert kube.all("rayjobs")[FIRST]["spec"]["activeDeadlineSeconds"] == 60
        assert launcher.why_not_shared(Path("/var/lib/sampa")) == ""

    def test_nobody_knows_how_large_the_cluster_will_be(self, launcher: KubeRayJobs) -> None:
        assert launcher.room() is None


class TestReconciling:
    @pytest.fixture
    def job_id(self, store: Store, reconciler: Reconciler) -> str:
        job_id = submitted(store, max_restarts=1)
        reconciler.step()
        store.move(job_id, State.RUNNING, attempt=1)
        return job_id

    def test_a_runner_is_started_in_its_image_with_what_it_needs(
        self, kube: FakeKube, store: Store, reconciler: Reconciler, settings: ServiceSettings
    ) -> None:
        job_id = submitted(store)
        sweep, _ = store.sweeps.submit(sweep_spec_of())
        reconciler.step()
        assert reconciler.health()["ray"] == "ok"
        made = kube.all("rayjobs")
        entrypoints = {name: one["spec"]["entrypoint"] for name, one in made.items()}
        assert entrypoints == {
            f"sampa-{job_id}-1": f"exec python -m sampa.service.runner {job_id}",
            f"sampa-{sweep.id}-1": f"exec python -m sampa.service.sweeps.runner {sweep.id}",
        }
        env = json.loads(made[f"sampa-{job_id}-1"]["spec"]["runtimeEnvYAML"])["env_vars"]
        assert (env["SAMPA_ATTEMPT"], env["SAMPA_STATE_DIR"]) == ("1", str(settings.state_dir))
        assert settings.store_url not in json.dumps(made)

    def test_two_reconcilers_start_each_once(
        self, kube: FakeKube, store: Store, launcher: KubeRayJobs, settings: ServiceSettings
    ) -> None:
        ids = [submitted(store) for _ in range(6)]
        threads = [threading.Thread(target=Reconciler(store, launcher, settings).step) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(kube.all("rayjobs")) == sorted(f"sampa-{each}-1" for each in ids[:2])

    def test_one_that_failed_is_started_again_and_then_given_up_with_the_reason(
        self, kube: FakeKube, store: Store, reconciler: Reconciler, job_id: str
    ) -> None:
        failed(kube, f"sampa-{job_id}-1", "exit code 1:\nKeyError: 'x'")
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.restarts) == (State.STARTING, 2, 1)
        assert f"its RayJob sampa-{job_id}-1 failed (AppFailed): KeyError: 'x'; it is started again" in job.reason
        assert [*kube.all("rayjobs")] == [f"sampa-{job_id}-2"]
        failed(kube, f"sampa-{job_id}-2", "exit code 1:\nKeyError: 'y'")
        reconciler.step()
        job = store.job(job_id)
        assert job.state is State.FAILED
        assert job.reason == f"its RayJob sampa-{job_id}-2 failed (AppFailed): KeyError: 'y'"

    @pytest.mark.parametrize("reason", ["DeadlineExceeded", "PreRunningDeadlineExceeded"])
    def test_after_a_deadline_of_the_template_the_job_fails_and_is_not_started_again(
        self, kube: FakeKube, store: Store, reconciler: Reconciler, job_id: str, reason: str
    ) -> None:
        name = f"sampa-{job_id}-1"
        status = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Failed", "reason": reason, "message": "too late"}
        kube.set_status("rayjobs", name, **status)
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.restarts) == (State.FAILED, 1, 0)
        assert job.reason.startswith(f"its RayJob {name} failed ({reason}): too late; ")
        assert [*kube.all("rayjobs")] == [name]

    def test_all_jobs_of_a_pass_are_looked_at_with_one_question(
        self, kube: FakeKube, store: Store, launcher: KubeRayJobs, settings: ServiceSettings
    ) -> None:
        reconciler = Reconciler(store, launcher, settings.model_copy(update={"max_running": 5}))
        ids = [submitted(store) for _ in range(5)]
        reconciler.step()
        kube.asked.clear()
        reconciler.step()
        assert kube.asked == {("list", "rayjobs"): 2}, "whether it answers, and these five"
        failed(kube, f"sampa-{ids[3]}-1")
        kube.delete("rayjobs", f"sampa-{ids[4]}-1")
        reconciler.step()
        assert [store.job(each).attempt for each in ids] == [1, 1, 1, 2, 2]

    def test_what_a_cluster_waits_for_is_the_reason_until_it_is_there(
        self, kube: FakeKube, store: Store, reconciler: Reconciler
    ) -> None:
        job_id = submitted(store)
        reconciler.step()
        name = f"sampa-{job_id}-1"
        short = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod", "message": "no quota"}
        status = {"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"conditions": [short]}}
        kube.set_status("rayjobs", name, **status)
        for _ in range(3):
            reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt) == (State.STARTING, 1)
        assert job.reason == f"its RayJob {name} waits for its cluster (FailedCreateHeadPod: no quota)"
        assert [one["reason"] for one in store.transitions(job_id)][-2:] == ["", job.reason]
        assert reconciler.health()["ray"] == "ok"
        store.move(job_id, State.RUNNING, attempt=1)
        reconciler.step()
        assert (store.job(job_id).state, store.job(job_id).reason) == (State.RUNNING, "")

    def test_a_spec_that_kuberay_refuses_fails_the_job_with_its_words(
        self, kube: FakeKube, store: Store, reconciler: Reconciler
    ) -> None:
        job_id = submitted(store, max_restarts=3)
        reconciler.step()
        said = "The RayJob spec is invalid: activeDeadlineSeconds must be a positive integer"
        status = {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": said}
        kube.set_status("rayjobs", f"sampa-{job_id}-1", **status)
        reconciler.step()
        assert store.job(job_id).state is State.FAILED
        assert said in store.job(job_id).reason

    @pytest.mark.parametrize("how", ["deleted", "another head"])
    def test_a_lost_cluster_costs_no_restart(
        self, kube: FakeKube, store: Store, launcher: KubeRayJobs, reconciler: Reconciler, job_id: str, how: str
    ) -> None:
        if how == "deleted":
            launcher.stop(f"sampa-{job_id}-1")
        else:
            failed(kube, f"sampa-{job_id}-1", "Job entrypoint command failed with exit code 75. No logs available.")
        reconciler.step()
        job = store.job(job_id)
        assert (job.state, job.attempt, job.restarts, job.losses) == (State.STARTING, 2, 0, 1)
        assert [*kube.all("rayjobs")] == [f"sampa-{job_id}-2"]

    def test_a_cancelled_job_ends_with_its_rayjob(self, kube: FakeKube, store: Store, reconciler: Reconciler) -> None:
        kube.finalizers["rayjobs"] = ["ray.io/rayjob-finalizer"]
        job_id = submitted(store)
        reconciler.step()
        store.cancel(job_id)
        reconciler.step()
        assert store.job(job_id).state is State.CANCELLING
        kube.release("rayjobs", f"sampa-{job_id}-1")
        reconciler.step()
        assert store.job(job_id).state is State.CANCELLED

    @pytest.mark.parametrize("answer", [(401, "Unauthorized"), (403, "no"), (500, "etcd"), (404, "<gone>"), (429, "x")])
    def test_while_kubernetes_is_of_no_use_jobs_keep_their_state(
        self, kube: FakeKube, store: Store, reconciler: Reconciler, job_id: str, answer: tuple[int, str]
    ) -> None:
        waiting, before = submitted(store), store.job(job_id)
        kube.broken[""] = answer
        reconciler.step()
        assert (store.job(job_id), store.job(waiting).state) == (before, State.QUEUED)
        assert reconciler.health()["ray"].startswith(f"Kubernetes at {kube.url} ")
        kube.broken.clear()
        reconciler.step()
        assert (reconciler.health()["ray"], store.job(waiting).state) == ("ok", State.STARTING)

    def test_what_is_refused_for_one_job_is_its_reason_and_tried_again(
        self, kube: FakeKube, store: Store, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = submitted(store)
        kube.broken["create"] = (403, "exceeded quota: gpus")
        reconciler.step()
        assert "403: exceeded quota: gpus" in reconciler.health()["ray"]
        job = store.job(job_id)
        assert job.state is State.STARTING
        assert "refused to create rayjobs in the namespace sampa (403: exceeded quota: gpus)" in job.reason
        kube.broken.clear()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 30)
        reconciler.step()
        assert store.job(job_id).reason == ""
        assert [*kube.all("rayjobs")] == [f"sampa-{job_id}-1"]
        assert store.job(job_id).launched


class TestConnecting:
    @pytest.fixture
    def pod(self, kube: FakeKube, account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be a pod of the fake's cluster."""
        host, _, port = kube.url.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setattr(kube_module, "ACCOUNT", account)

    @pytest.fixture
    def whole(self, settings: ServiceSettings) -> ServiceSettings:
        return settings.model_copy(update={"store_url": "postgresql+psycopg://db/sampa"})

    @pytest.mark.usefixtures("pod")
    def test_the_settings_choose_it(self, kube: FakeKube, whole: ServiceSettings) -> None:
        launcher = launcher_of(whole.model_copy(update={"kube_namespace": "other"}))
        launcher.submit(FIRST, "exec true", ENV)
        launcher.close()
        assert [*kube.all("rayjobs", "other")] == [FIRST]

    @pytest.mark.usefixtures("pod")
    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda _: {"rayjob_template": None}, "the backend rayjob needs SAMPA_RAYJOB_TEMPLATE"),
            (lambda _: {"rayjob_template": Path("/none")}, "the RayJob template /none can't be read"),
            (lambda path: {"store_url": f"sqlite:///{path}/x.db"}, "needs a store that other nodes reach, and SQLite"),
        ],
    )
    def test_what_is_missing_is_said_at_the_start(
        self, whole: ServiceSettings, tmp_path: Path, change: Callable[[Path], dict[str, Any]], why: str
    ) -> None:
        with pytest.raises(ValueError, match=why):
            launcher_of(whole.model_copy(update=change(tmp_path)))

    def test_outside_of_a_cluster_it_is_refused_at_the_start(
        self, whole: ServiceSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(ValueError, match="run the API in a pod, or choose the backend jobs"):
            launcher_of(whole)


def test_the_role_allows_what_a_life_takes_and_nothing_else(kube: FakeKube, launcher: KubeRayJobs) -> None:
    """Of the other tests, none may take more."""
    launcher.check()
    for name in (FIRST, SECOND):
        launcher.submit(name, "exec true", ENV)
        launcher.status(name)
        failed(kube, name)
        launcher.obstacle(name)
    launcher.stop(SECOND)
    assert kube.used == allowed()
    assert kube.all("rayjobs") == {}
