"""The stand-ins for Kubernetes: what Ray's autoscaler asks of the API is answered, and a container ends as a whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ..api.processes import until
from ..documents import patched
from ..fake_kube import FakeKube, Refused, fake_kube
from .miniature import CONTAINER, NAME, NAMESPACE, SPOT, raycluster


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[FakeKube]:
    with fake_kube(tmp_path) as kube:
        kube.create("rayclusters", raycluster())
        yield kube


def pod(name: str, **labels: str) -> dict[str, Any]:
    labels = {"cluster": NAME, "node_type": "worker", "group": SPOT} | labels
    named = {f"ray.io/{key.replace('_', '-')}": value for key, value in labels.items()}
    running = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
    return {"metadata": {"name": name, "labels": named}, "spec": {}, "status": running}


def group(kube: FakeKube) -> dict[str, Any]:
    groups = kube.get("rayclusters", NAME)["spec"]["workerGroupSpecs"]
    return next(one for one in groups if one["groupName"] == SPOT)


def test_rays_own_provider_launches_and_terminates_through_it(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.kuberay import node_provider
    from ray.autoscaler.v2.instance_manager.cloud_providers.kuberay.cloud_provider import KubeRayProvider

    where = kube.environment()
    here = partial(node_provider.url_from_resource, kubernetes_host=f"127.0.0.1:{kube.port}")
    monkeypatch.setattr(node_provider, "url_from_resource", here)
    for constant in ("CA_CERT_PATH", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH"):
        monkeypatch.setattr(node_provider, f"KUBERAY_{constant}", where[f"RAY_KUBERAY_{constant}"])
    provider = KubeRayProvider(NAME, {"namespace": NAMESPACE}, gcs_client=None)
    assert provider.get_non_terminated() == {}
    provider.launch({SPOT: 2}, "first")
    assert group(kube)["replicas"] == 2
    for name in ("a", "b"):
        kube.create("pods", pod(name))
    assert sorted(provider.get_non_terminated()) == ["a", "b"]
    provider.terminate(["b"], "second")
    assert (group(kube)["replicas"], group(kube)["scaleStrategy"]) == (1, {"workersToDelete": ["b"]})
    kube.delete("pods", "a", grace_s=30)
    assert sorted(provider.get_non_terminated()) == ["b"], "one that is told to end is none of its nodes any more"
    assert not provider.poll_errors()
    assert kube.used == {("get", "rayclusters"), ("patch", "rayclusters"), ("list", "pods")}


def test_a_client_that_trusts_nobody_else_is_answered(kube: FakeKube) -> None:
    import ssl

    trust = ssl.create_default_context(cafile=str(kube.certificate))
    with httpx.Client(base_url=f"https://127.0.0.1:{kube.port}", verify=trust, trust_env=False) as client:
        there = client.get(f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}")
        assert there.json()["metadata"]["name"] == NAME
        for path in (f"/api/v1/namespaces/{NAMESPACE}/pods/none", "/api/v1/namespaces/sampa/secrets"):
            assert client.get(path).status_code == 404
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
        stranger.get(f"https://127.0.0.1:{kube.port}/")


def test_documents_have_versions_and_are_deleted_in_two_steps_where_there_is_a_grace(kube: FakeKube) -> None:
    made = kube.create("pods", pod("a"))
    marked = kube.delete("pods", "a", grace_s=60)
    assert int(marked["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    again = kube.delete("pods", "a", grace_s=5)
    assert again["metadata"]["deletionTimestamp"] == marked["metadata"]["deletionTimestamp"]
    assert kube.list("pods", {"ray.io/group": SPOT, "ray.io/node-type": "worker"}) == [again]
    assert kube.list("pods", {"ray.io/node-type": "head"}) == []
    kube.delete("pods", "a")
    with pytest.raises(Refused, match='pods "a" not found'):
        kube.get("pods", "a")


def test_a_patch_is_done_as_a_whole_or_not_at_all() -> None:
    document = {"spec": {"groups": [{"replicas": 1}]}}
    there = {"op": "replace", "path": "/spec/groups/0/replicas", "value": 2}
    more = {"op": "add", "path": "/spec/groups/-", "value": {"replicas": 3}}
    gone = {"op": "remove", "path": "/spec/groups/0"}
    assert patched(document, [there, more]) == {"spec": {"groups": [{"replicas": 2}, {"replicas": 3}]}}
    assert patched(document, [more, gone]) == {"spec": {"groups": [{"replicas": 3}]}}
    for wrong in (
        {"op": "replace", "path": "/spec/none", "value": 1},
        {"op": "test", "path": "/spec/groups/0/replicas", "value": 7},
        {"op": "move", "path": "/spec/groups/0"},
        {"op": "add", "path": "/none/at/all", "value": 1},
    ):
        with pytest.raises(ValueError, match="/"):
            patched(document, [there, wrong])
    assert document == {"spec": {"groups": [{"replicas": 1}]}}


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
parent = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.Popen(['sleep', '600'])"])
parent.wait()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 7), (signal.SIGINT, 128 + signal.SIGKILL)])
def test_a_container_ends_as_a_whole(told: signal.Signals, code: int) -> None:
    command = [sys.executable, str(CONTAINER), sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        tree = until(lambda: _of_size(container.pid, 3), "the command, its child and the orphan")
        container.send_signal(told)
        assert container.wait(30) == code
    assert not [process for process in tree if process.is_running()]


def _of_size(pid: int, size: int) -> list[psutil.Process] | None:
    found = psutil.Process(pid).children(recursive=True)
    return found if len(found) == size else None
