"""The whole service with the backend rayjob: over HTTP in front, a Kubernetes that only keeps things behind."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sampa.api.app import create_app
from sampa.api.auth import token_in
from sampa.service import kube as kube_module
from sampa.service import runner
from sampa.service.settings import ServiceSettings
from sampa.service.store import Store
from sampa.service.told import Told
from sampa.workers.reports import Report
from sampa.workers.storage import Storage

from ..fake_kube import FakeKube, allowed, deployed, fake_kube, make_account
from ..service.samples import FakeRay, wait_until
from .conftest import SPEC, SWEEP


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKube]:
    """A cluster, of which this process is a pod that may do what the Role says."""
    account = make_account(tmp_path / "account")
    with fake_kube(account) as kube:
        kube.finalizers["rayjobs"] = ["ray.io/rayjob-finalizer"]
        host, _, port = kube.url.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setattr(kube_module, "ACCOUNT", account)
        yield kube
        assert kube.used <= allowed()


@pytest.fixture
def rayjob_settings(tmp_path: Path, settings: ServiceSettings) -> ServiceSettings:
    template = tmp_path / "template.yaml"
    template.write_text(deployed("RayJob").read_text().replace("/var/lib/sampa", str(settings.state_dir)))
    return ServiceSettings(
        state_dir=settings.state_dir,
        store_url="postgresql+psycopg://sampa:pass-word@db/sampa",
        backend="rayjob",
        rayjob_template=template,
        poll_s=0.02,
    )


@contextmanager
def serving(settings: ServiceSettings, store: Store) -> Iterator[httpx.Client]:
    """Serve, and give a client with a token."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings, store), port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": f"Bearer {token_in(settings.state_dir)}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def service(kube: FakeKube, rayjob_settings: ServiceSettings, store: Store) -> Iterator[httpx.Client]:
    with serving(rayjob_settings, store) as client:
        yield client


GOOD = SimpleNamespace(succeeded=True, stopped=False, reason="", result={"metrics": {"accuracy": 0.9}})


class Played:
    """An operator and a runner: takes a RayJob through its life, and does in this process what its runner would do."""

    def __init__(self, kube: FakeKube, store: Store, state_dir: Path) -> None:
        self._kube, self._store, self._state_dir = kube, store, state_dir

    def start(self, name: str) -> tuple[str, int]:
        """Bring up the cluster of a RayJob; return the job and the attempt that its runner was told."""
        wait_until(lambda: name in self._kube.all("rayjobs"))
        spec = self._kube.all("rayjobs")[name]["spec"]
        self._kube.set_status("rayjobs", name, jobDeploymentStatus="Initializing")
        env = json.loads(spec["runtimeEnvYAML"])["env_vars"]
        assert env["SAMPA_STATE_DIR"] == str(self._state_dir)
        self._kube.set_status("rayjobs", name, jobStatus="RUNNING", jobDeploymentStatus="Running")
        return shlex.split(spec["entrypoint"])[-1], int(env["SAMPA_ATTEMPT"])

    def train(self, name: str) -> None:
        """Let the runner train to the end, and KubeRay see it."""
        job_id, attempt = self.start(name)
        directory = self._state_dir / "jobs" / job_id

        def train(plan: Any, directory: Storage, *, on_reports: Any, **_: Any) -> Any:
            on_reports([Report("metrics", {"step": 7, "epoch": 1.0, "loss": 0.1})])
            return GOOD

        assert runner.run(self._store, lambda: Storage.at(directory), job_id, attempt, train, Told([])) == 0
        self._kube.set_status("rayjobs", name, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")


@pytest.fixture
def played(kube: FakeKube, store: Store, settings: ServiceSettings) -> Played:
    return Played(kube, store, settings.state_dir)


def test_a_job_goes_from_its_submission_to_its_end(service: httpx.Client, kube: FakeKube, played: Played) -> None:
    answer = service.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 201
    job_id = answer.json()["id"]
    played.train(f"sampa-{job_id}-1")
    wait_until(lambda: service.get(f"/v1/jobs/{job_id}").json()["state"] == "SUCCEEDED")
    assert service.get("/readyz").json()["checks"] == {"store": "ok", "ray": "ok", "reconciler": "ok"}
    [step] = service.get(f"/v1/jobs/{job_id}/metrics").json()["items"]
    assert step["step"] == 7
    assert "pass-word" not in json.dumps(kube.all("rayjobs"))


def test_one_that_loses_its_cluster_goes_on_in_another(
    service: httpx.Client, kube: FakeKube, store: Store, played: Played
) -> None:
    job_id = service.post("/v1/jobs", json=SPEC).json()["id"]
    played.start(f"sampa-{job_id}-1")
    wait_until(lambda: store.job(job_id).launched)
    kube.delete("rayjobs", f"sampa-{job_id}-1")
    kube.release("rayjobs", f"sampa-{job_id}-1")
    played.train(f"sampa-{job_id}-2")
    wait_until(lambda: service.get(f"/v1/jobs/{job_id}").json()["state"] == "SUCCEEDED")


def test_a_cancelled_one_takes_its_rayjob_along(service: httpx.Client, kube: FakeKube, played: Played) -> None:
    job_id = service.post("/v1/jobs", json=SPEC).json()["id"]
    name = f"sampa-{job_id}-1"
    played.start(name)
    assert service.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    wait_until(lambda: "deletionTimestamp" in kube.all("rayjobs")[name]["metadata"])
    kube.release("rayjobs", name)
    wait_until(lambda: service.get(f"/v1/jobs/{job_id}").json()["state"] == "CANCELLED")
    assert kube.used == allowed(), "from submission to deletion it takes all that the Role allows, and no more"


def test_without_kubernetes_the_server_is_not_ready_and_says_why(service: httpx.Client, kube: FakeKube) -> None:
    wait_until(lambda: service.get("/readyz").status_code == 200)
    kube.broken[""] = (403, 'rayjobs.ray.io is forbidden: User "x" cannot list resource')
    wait_until(lambda: service.get("/readyz").status_code == 503)
    assert "bind a Role with list on rayjobs of ray.io" in service.get("/readyz").json()["detail"]
    assert service.post("/v1/jobs", json=SPEC).status_code == 201  # the queue is in the store


def test_storage_that_is_not_shared_refuses_jobs(
    service: httpx.Client, rayjob_settings: ServiceSettings, store: Store
) -> None:
    assert rayjob_settings.rayjob_template is not None
    text = rayjob_settings.rayjob_template.read_text()
    rayjob_settings.rayjob_template.write_text(
        text.replace("persistentVolumeClaim: {claimName: sampa-state}", "emptyDir: {}")
    )
    answer = service.post("/v1/jobs", json=SPEC)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:sampa:problem:storage-not-shared")
    runs = rayjob_settings.state_dir / "jobs"
    assert answer.json()["detail"] == (
        f"{runs}, where the runs' files lie, is not shared with all nodes that jobs run on: the head of the RayJob "
        f"template has emptyDir at {runs}, which only one node sees. Nothing was stored. Use a volume that many nodes "
        "may write to, at the same path everywhere."
    )
    assert service.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(("path", "body"), [("/v1/jobs", SPEC), ("/v1/sweeps", SWEEP)])
def test_nothing_is_stored_where_it_could_not_run(
    http: httpx.Client, app: FastAPI, launcher: FakeRay, path: str, body: dict[str, Any]
) -> None:
    app.state.launcher, launcher.not_shared = launcher, "it lies elsewhere"
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:sampa:problem:storage-not-shared")
    assert http.get(path).json()["items"] == []


def test_its_end_leaves_rayjobs_alone(
    kube: FakeKube, rayjob_settings: ServiceSettings, store: Store, played: Played
) -> None:
    with serving(rayjob_settings, store) as client:
        job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
        played.start(f"sampa-{job_id}-1")
    assert "deletionTimestamp" not in kube.all("rayjobs")[f"sampa-{job_id}-1"]["metadata"]
