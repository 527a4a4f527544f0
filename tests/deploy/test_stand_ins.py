"""The operator and the kubelet of the miniature, with a program that only sleeps in Ray's place."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..api.processes import until
from . import miniature
from .miniature import GROUP, NAME, UP, Miniature, Pod, Timeline, raycluster

SLEEPER = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
print({UP!r}, flush=True)
time.sleep(600)
"""
DEAF = SLEEPER.replace("sys.exit(1)", "print('not yet')")


class Asleep(Miniature):
    """One in which nothing is Ray's, so that nobody but the test asks for workers."""

    program = SLEEPER

    def _ray_start(self, pod: Pod, address: str) -> list[str]:
        return [sys.executable, "-c", self.program]

    def wants(self, replicas: int, *unwanted: str) -> None:
        """Ask for so many workers, without some, as the autoscaler does."""
        group = "/spec/workerGroupSpecs/0"
        fields = {"replicas": replicas, "scaleStrategy": {"workersToDelete": [*unwanted]}}
        patch = [{"op": "replace", "path": f"{group}/{name}", "value": value} for name, value in fields.items()]
        self.kube.patch("rayclusters", NAME, patch)

    def until_workers(self, count: int) -> list[str]:
        return until(lambda: self.workers() if len(self.workers()) == len(self.pods()) == count else None, self.story())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asleep]:
    monkeypatch.setattr(miniature, "AUTOSCALER", "import time; time.sleep(600)")
    with Asleep(tmp_path, Timeline(), {}, raycluster()) as cluster:
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
    cluster.kube.patch(
        "rayclusters",
        NAME,
        [{"op": "replace", "path": "/spec/workerGroupSpecs/0/template/spec/terminationGracePeriodSeconds", "value": 1}],
    )
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
    assert [pod["metadata"]["name"] for pod in cluster.kube.list("pods", {"ray.io/group": GROUP})] == [second]
