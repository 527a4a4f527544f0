"""RayJobs through Kubernetes' API over HTTPS: each answer that isn't good is one sentence."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sampa.service.kube import KubeRefused, KubeUnusable, NotInCluster, RayJobResources, in_this_cluster
from sampa.service.launcher import LaunchRefused, NoRay

from ..fake_kube import FakeKube, fake_kube, make_account

RAYJOB = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a", "labels": {"sampa/job": "x"}}}


@pytest.fixture
def rayjobs(kube: FakeKube, account: Path) -> Iterator[RayJobResources]:
    rayjobs = RayJobResources(kube.url, account=account, timeout_s=10)
    yield rayjobs
    rayjobs.close()


def every(rayjobs: RayJobResources) -> dict[str, Callable[[], Any]]:
    return {
        "create": lambda: rayjobs.create(RAYJOB),
        "get": lambda: rayjobs.get("a"),
        "list": rayjobs.list,
        "delete": lambda: rayjobs.delete("a"),
    }


def test_one_is_created_once_found_and_deleted(rayjobs: RayJobResources, kube: FakeKube) -> None:
    assert rayjobs.get("a") is None
    assert rayjobs.create(RAYJOB)
    assert not rayjobs.create(RAYJOB)
    assert [*kube.all("rayjobs", "sampa")] == ["a"]
    found = rayjobs.get("a")
    assert found is not None
    assert found["metadata"]["namespace"] == "sampa"
    assert [one["metadata"]["name"] for one in rayjobs.list("sampa/job=x")] == ["a"]
    assert rayjobs.list("sampa/job=y") == []
    for _ in range(2):
        rayjobs.delete("a")
    assert kube.all("rayjobs") == {}


def test_a_namespace_that_is_given_is_used(kube: FakeKube, account: Path) -> None:
    rayjobs = RayJobResources(kube.url, "other", account)
    rayjobs.create(RAYJOB)
    rayjobs.close()
    assert [*kube.all("rayjobs", "other")] == ["a"]


def test_a_token_that_was_replaced_is_read_again(rayjobs: RayJobResources, kube: FakeKube, account: Path) -> None:
    rayjobs.create(RAYJOB)
    kube.tokens = {"second"}
    with pytest.raises(KubeUnusable, match=r"doesn't accept our token \(401: Unauthorized\); jobs keep their state"):
        rayjobs.get("a")
    (account / "token").write_text("second\n")
    assert rayjobs.get("a")


def test_a_token_that_is_gone_is_said_to_be(rayjobs: RayJobResources, account: Path) -> None:
    (account / "token").unlink()
    with pytest.raises(KubeUnusable, match=r"token can't be read \(No such file or directory\); jobs keep their state"):
        rayjobs.get("a")


@pytest.mark.parametrize(
    ("code", "said", "error", "sentence"),
    [
        (400, "bad", KubeRefused, "refused to {verb} rayjobs in the namespace sampa (400: bad); mend the file of"),
        (401, "Unauthorized", KubeUnusable, "doesn't accept our token (401: Unauthorized); jobs keep their state"),
        (
            403,
            "forbidden: x",
            KubeRefused,
            "(403: forbidden: x); unless that names a quota, bind a Role with {verb} on",
        ),
        (405, "no such method", KubeRefused, "refused to {verb} rayjobs in the namespace sampa (405: no such method)"),
        (409, "try again", KubeRefused, "refused to {verb} rayjobs in the namespace sampa (409: try again)"),
        (422, "spec.x:\n bad", KubeRefused, "(422: spec.x: bad); mend the file of SAMPA_RAYJOB_TEMPLATE"),
        (429, "slow down", KubeUnusable, "can't {verb} rayjobs now (429: slow down); jobs keep their state until"),
        (500, "etcd", KubeUnusable, "can't {verb} rayjobs now (500: etcd); jobs keep their state until it does"),
        (502, "<html>gateway\n</html>", KubeUnusable, "can't {verb} rayjobs now (502: <html>gateway); jobs keep"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "get", "list", "delete"])
def test_what_goes_wrong_is_one_sentence(
    rayjobs: RayJobResources, kube: FakeKube, verb: str, code: int, said: str, error: type[Exception], sentence: str
) -> None:
    kube.broken[verb] = (code, said)
    with pytest.raises(error) as raised:
        every(rayjobs)[verb]()
    text = str(raised.value)
    assert text.startswith(f"Kubernetes at {kube.url} ")
    assert sentence.format(verb=verb) in text
    assert "\n" not in text
    assert isinstance(raised.value, NoRay if error is KubeUnusable else LaunchRefused)
    assert str(pickle.loads(pickle.dumps(raised.value))) == text


@pytest.mark.parametrize("verb", ["create", "get", "list", "delete"])
def test_a_cluster_without_kuberay_is_not_one_without_this_rayjob(
    rayjobs: RayJobResources, kube: FakeKube, verb: str
) -> None:
    kube.installed.remove("rayjobs")
    with pytest.raises(KubeRefused, match=r"404: 404 page not found\); install KubeRay's custom resources"):
        every(rayjobs)[verb]()


@pytest.mark.parametrize("verb", ["create", "get", "list", "delete"])
def test_an_api_that_is_away_is_said_to_be(account: Path, kube: FakeKube, verb: str) -> None:
    rayjobs = RayJobResources("https://127.0.0.1:1", account=account)
    with pytest.raises(
        KubeUnusable, match=r"https://127.0.0.1:1 doesn't answer .*; jobs keep their state until it does"
    ):
        every(rayjobs)[verb]()
    rayjobs.close()


def test_an_api_that_says_nothing_is_given_up_at_the_deadline(rayjobs: RayJobResources, kube: FakeKube) -> None:
    rayjobs._http.timeout = 0.2
    with kube.lock, pytest.raises(KubeUnusable, match="doesn't answer"):
        rayjobs.get("a")


def test_an_api_that_is_not_the_clusters_own_gets_no_token(kube: FakeKube, tmp_path: Path) -> None:
    account = make_account(tmp_path / "stranger")
    with fake_kube(account):
        rayjobs = RayJobResources(kube.url, account=account)
        with pytest.raises(KubeUnusable, match="certificate verify failed"):
            rayjobs.get("a")
        rayjobs.close()
    assert kube.used == set()


def test_a_pod_finds_its_own_cluster(kube: FakeKube, account: Path) -> None:
    host, _, port = kube.url.removeprefix("https://").partition(":")
    where = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    rayjobs = in_this_cluster(None, where, account)
    assert (rayjobs.namespace, rayjobs.list()) == ("sampa", [])
    rayjobs.close()
    other = in_this_cluster("other", {"KUBERNETES_SERVICE_HOST": "fd00::1"}, account)
    assert (other.namespace, other.url) == ("other", "https://[fd00::1]:443")
    other.close()


def test_outside_of_a_cluster_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotInCluster, match="KUBERNETES_SERVICE_HOST, which it gives to each pod, is not set"):
        in_this_cluster(None, {})
    with pytest.raises(NotInCluster, match=r"no service account in .* run the API in a pod with automount"):
        in_this_cluster(None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
