"""The API's container of the rendered Deployment, as a process: what it runs with is what the manifests say.

It is probed as the kubelet probes, with the manifests' paths, periods and failures, and ended as the kubelet ends it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sampa.api.client import Client
from sampa.service.states import State
from sampa.service.store import Store

from ..api.conftest import SPEC
from ..api.containers import Container, ask, prefix_for, started
from ..api.fakes import fake_ray
from ..api.processes import until
from .consistency import given
from .manifests import Manifest, Pod, manifests, pods
from .miniature import resolved

TOKEN, RAY_TOKEN = "of-a-secret-0123456789", "of-another-0123456789"


def api_of(documents: list[Manifest]) -> tuple[Pod, Manifest]:
    """Return the API's pod, and its one container."""
    (pod,) = (pod for pod in pods(documents) if pod.where == "Deployment sampa-api")
    (container,) = pod.containers
    return pod, container


@dataclass(frozen=True)
class Probe:
    """One of a container's probes, asked as the kubelet asks."""

    path: str
    period_s: float
    timeout_s: float
    failures: int

    @classmethod
    def of(cls, container: Manifest, name: str) -> Probe:
        probe = container[name]
        assert probe["httpGet"]["port"] == container["ports"][0]["name"] == "http"
        assert set(probe) == {"httpGet", "periodSeconds", "timeoutSeconds", "failureThreshold"}, (
            "all else is not played"
        )
        return cls(probe["httpGet"]["path"], *(probe[name] for name in ("periodSeconds", "timeoutSeconds")),
                   failures=probe["failureThreshold"])  # fmt: skip

    def succeeds(self, url: str) -> bool:
        answer = ask(f"{url}{self.path}", self.timeout_s)
        return answer is not None and 200 <= answer.status_code < 400

    def holds(self, url: str) -> bool:
        """Say whether it succeeds once before it has failed as often as it may."""
        for attempt in range(self.failures):
            time.sleep(self.period_s if attempt else 0)
            if self.succeeds(url):
                return True
        return False


@pytest.fixture(scope="module")
def api() -> tuple[Pod, Manifest]:
    return api_of(manifests("overlays/prod"))


@pytest.fixture(scope="module")
def prefix(api: tuple[Pod, Manifest]) -> list[str]:
    """What makes a process what the manifests make of the container, as far as this machine lets us."""
    pod, container = api
    limits = pod.spec["securityContext"] | container["securityContext"]
    user = limits["runAsUser"]
    assert limits["runAsGroup"] == limits["fsGroup"] == user
    assert (limits["readOnlyRootFilesystem"], limits["allowPrivilegeEscalation"]) == (True, False)
    assert limits["capabilities"] == {"drop": ["ALL"]}
    return prefix_for(user)


@pytest.fixture
def volume(api: tuple[Pod, Manifest], prefix: list[str]) -> Iterator[Path]:
    """The claim with the jobs' files, which belongs to the pod's group."""
    folder, group = Path(tempfile.mkdtemp(prefix="sampa-claim-")), api[0].spec["securityContext"]["fsGroup"]
    if prefix:
        os.chown(folder, 0, group)
        folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, volume: Path) -> str:
    """A PostgreSQL's, where there is one."""
    try:
        url: str = request.getfixturevalue("postgres_url")
    except pytest.skip.Exception:
        return f"sqlite:///{volume}/sampa.db"
    return url


@contextmanager
def running(
    api: tuple[Pod, Manifest], prefix: list[str], volume: Path, store_url: str, ray_url: str, log: Path
) -> Iterator[Container]:
    """Run the container: its command, and its variables but for those that would lead nowhere here."""
    pod, container = api
    secrets = {
        ("sampa-secrets", "SAMPA_TOKEN"): TOKEN,
        ("sampa-secrets", "SAMPA_STORE_URL"): store_url,
        ("sampa-ray-auth", "auth_token"): RAY_TOKEN,
    }
    variables = resolved(given(manifests("overlays/prod"), pod), secrets)
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    assert int(variables["SAMPA_PORT"]) == container["ports"][0]["containerPort"]
    assert mounted == {variables["SAMPA_STATE_DIR"], variables["HOME"]}, "nothing else can be written to"
    here = {
        "SAMPA_PORT": "0",  # the port may be taken here
        "SAMPA_STATE_DIR": str(volume),  # what is mounted there
        "SAMPA_RAY_ADDRESS": ray_url,  # there is no such name here
    }
    assert here.keys() <= variables.keys()
    with started(container["command"] + container.get("args", []), prefix, log, variables | here) as served:
        yield served


@pytest.fixture
def served(
    api: tuple[Pod, Manifest], prefix: list[str], volume: Path, store_url: str, tmp_path: Path
) -> Iterator[Container]:
    with fake_ray() as (ray_url, _), running(api, prefix, volume, store_url, ray_url, tmp_path / "log") as served:
        yield served


def test_it_is_probed_drains_and_ends_as_the_manifests_say(
    api: tuple[Pod, Manifest], served: Container, store_url: str
) -> None:
    pod, container = api
    names = ("startupProbe", "readinessProbe", "livenessProbe")
    startup, readiness, liveness = (Probe.of(container, name) for name in names)
    began = time.monotonic()
    url = served.url()
    assert startup.holds(url)
    assert time.monotonic() - began < startup.period_s * startup.failures
    assert readiness.holds(url)
    assert liveness.succeeds(url)
    with Client(url, TOKEN) as client:
        job_id = client.submit(SPEC)["id"]
        until(lambda: served.said(f"{job_id}: attempt 1 is with Ray"), "the job to be with Ray")

        told = time.monotonic()
        served.signal(signal.SIGTERM)
        until(lambda: served.said("stopping on SIGTERM"), "the signal to be seen")
        assert not readiness.holds(url), "whoever sends requests here learns that it ends"
        assert served.process.poll() is None, "and has them answered until then"
        assert liveness.succeeds(url)
        assert client.submit({**SPEC, "name": "while-it-drains"})["state"] == "QUEUED"
    grace = pod.spec["terminationGracePeriodSeconds"]
    assert served.process.wait(grace - (time.monotonic() - told)) == 0
    assert served.lines()[-1]["message"] == "stopped"
    store = Store(store_url)
    assert store.job(job_id).state is State.STARTING, "jobs are left alone"
    store.close()
    said = served.log.read_text()
    assert not [secret for secret in (TOKEN, RAY_TOKEN) if secret in said]


def test_one_that_is_told_to_end_while_it_starts_ends_at_once(served: Container) -> None:
    """As the first process of a container, it is ended by no signal that it has no handler for."""
    until(lambda: served.takes(signal.SIGTERM) or None, "a handler")
    assert not served.said("serving at"), "there was none while it came up"
    served.signal(signal.SIGTERM)
    assert served.process.wait(10) == 128 + signal.SIGTERM
