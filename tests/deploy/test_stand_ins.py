"""The operator and the kubelet of the miniature, with a program that only sleeps in Ray's place."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..api.processes import until
from . import miniature
from .miniature import NAME, ON_DEMAND, SPOT, UP, Miniature, Pod, Timeline, raycluster, resolved

SLEEPER = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
print({UP!r}, flush=True)
time.sleep(600)
"""
SECRETS = {("sampa-ray-auth", "auth_token"): "of-rays", ("sampa-secrets", "SAMPA_STORE_URL"): "sqlite:///a.db"}
DEAF = SLEEPER.replace("sys.exit(1)", "print('not yet')")


class Asleep(Miniature):
    """One in which nothing is Ray's, so that nobody but the test asks for workers."""

    program = SLEEPER

    def _ray_start(self, pod: Pod, address: str) -> list[str]:
        return [sys.executable, "-c", self.program]

    def wants(self, replicas: int, *unwanted: str, group: str = SPOT) -> None:
        """Ask for so many workers of a group, without some, as the autoscaler does."""
        fields = {"replicas": replicas, "scaleStrategy": {"workersToDelete": [*unwanted]}}
        self.change(group, fields)

    def change(self, group: str, fields: dict[str, object]) -> None:
        """Replace what a group says at some paths."""
        where = f"/spec/workerGroupSpecs/{[ON_DEMAND, SPOT].index(group)}"
        patch = [{"op": "replace", "path": f"{where}/{path}", "value": value} for path, value in fields.items()]
        self.kube.patch("rayclusters", NAME, patch)

    def until_workers(self, count: int) -> list[str]:
        return until(lambda: self.workers() if len(self.workers()) == len(self.pods()) == count else None, self.story())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asleep]:
    monkeypatch.setattr(miniature, "AUTOSCALER", "import time; time.sleep(600)")
    with Asleep(tmp_path, Timeline(), {}, raycluster(), SECRETS) as cluster:
        yield cluster
        cluster.check()


def test_workers_come_when_they_are_wanted_and_those_that_are_not_go(cluster: Asleep) -> None:
    until(cluster.head, "the head")
    assert cluster.pods() == []
    cluster.wants(2)
    first, second = cluster.until_workers(2)
    cluster.wants(1, first)
    assert cluster.until_workers(1) == [second]
    cluster.wants(0, second)
    cluster.until_workers(0)
    assert cluster.timeline.table().count(f"{first} is gone") == 1


def test_a_machine_that_is_reclaimed_has_its_grace_and_is_replaced_once_it_is_gone(cluster: Asleep) -> None:
    cluster.program = DEAF
    cluster.change(SPOT, {"template/spec/terminationGracePeriodSeconds": 1})
    cluster.wants(1)
    (first,) = cluster.until_workers(1)
    began = time.monotonic()
    cluster.reclaim(first)
    until(lambda: not cluster.workers() or None, "it to be told")
    assert cluster.pods() == [first], "one that is still ending has its place"
    (second,) = until(lambda: cluster.workers() or None, "another one")
    assert second != first
    assert time.monotonic() - began >= 1
    assert "not yet" in (cluster.folder / f"{first}.log").read_text()


def test_a_machine_that_fails_is_replaced_and_so_is_the_head(cluster: Asleep) -> None:
    cluster.wants(1)
    (first,) = cluster.until_workers(1)
    cluster.kill(first)
    until(lambda: first not in cluster.pods() or None, "it to go")
    (second,) = cluster.until_workers(1)
    head = until(cluster.head, "the head")
    cluster.kill(head)
    until(lambda: cluster.head() not in (None, head) or None, "another head")
    assert cluster.until_workers(1) == [second], "what becomes of the workers is Ray's business"
    assert [pod["metadata"]["name"] for pod in cluster.kube.list("pods", {"ray.io/group": SPOT})] == [second]


def test_a_head_waits_for_a_machine_and_its_workers_for_the_head(cluster: Asleep) -> None:
    head = until(cluster.head, "the head")
    cluster.room_for_a_head = False
    cluster.kill(head)
    (new,) = until(lambda: [one for one in cluster.pods("head") if one != head] or None, "another head")
    cluster.wants(1)
    until(lambda: cluster.pods() or None, "the worker's pod")
    phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in cluster.kube.list("pods")}
    assert phases == dict.fromkeys([new, *cluster.pods()], "Pending")
    cluster.room_for_a_head = True
    cluster.until_workers(1)
    assert cluster.head() == new


def test_a_raycluster_that_is_deleted_takes_its_pods_along_and_may_be_applied_again(cluster: Asleep) -> None:
    cluster.change(SPOT, {"template/spec/terminationGracePeriodSeconds": 1})
    head = until(cluster.head, "the head")
    cluster.program = DEAF
    cluster.wants(1)
    (deaf,) = cluster.until_workers(1)
    cluster.program = SLEEPER
    cluster.wants(1, group=ON_DEMAND)
    until(lambda: len(cluster.pods()) == 2 or None, "another one, which may have no machine yet")
    cluster.delete()
    until(lambda: not cluster.kube.list("pods") or None, "all pods to go")
    assert "not yet" in (cluster.folder / f"{deaf}.log").read_text(), "it had its grace"
    cluster.apply()
    assert until(cluster.head, "the head") != head
    assert cluster.pods() == [], "it is as it was at first"


def test_a_container_has_what_its_template_says_and_what_is_in_secrets() -> None:
    def of(name: str, **more: bool) -> dict[str, object]:
        return {"secretKeyRef": {"name": "sampa-ray-auth", "key": name, **more}}

    given = {"A": "plain", "B": of("auth_token"), "C": of("other", optional=True)}
    assert resolved(given, SECRETS) == {"A": "plain", "B": "of-rays"}
    with pytest.raises(KeyError, match="other"):
        resolved({"D": of("other")}, SECRETS)
