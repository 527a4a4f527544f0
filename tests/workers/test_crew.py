"""The crew on a made-up cluster: workers come where there is room."""

import pytest
from sampa.workers import crew as module
from sampa.workers.crew import Crew

from .made_up_cluster import Cluster


@pytest.fixture
def made(monkeypatch):
    def make(least=1, **cpus):
        cluster = Cluster(**cpus)
        cluster.stand_in(monkeypatch, module)
        return cluster, Crew(cluster.start, {"CPU": 1.0}, least)

    return make


def look(crew, wanted, times=4):
    for _ in range(times):
        assert crew.keep(wanted) == []


def test_room_that_a_starting_worker_is_promised_is_not_given_to_the_next(made):
    cluster, crew = made(n1=1)
    look(crew, 2)
    assert cluster.places() == [("worker 0", "n1")]
    assert cluster.free("n1") == 1, "its run has not taken it yet"
    assert [group.without for group in cluster.groups] == ["!in(n1)"], "what an autoscaler sees is one more node"
    cluster.cpus["n2"] = 1
    look(crew, 2)
    assert cluster.places() == [("worker 0", "n1"), ("worker 1", "n2")]
    assert cluster.groups == []


def test_a_node_with_room_for_several_gets_them_at_once(made):
    cluster, crew = made(least=2, n1=2)
    look(crew, 3, times=1)
    assert cluster.places() == [("worker 0", "n1"), ("worker 1", "n1")]
    look(crew, 3)
    assert [group.without for group in cluster.groups] == ["!in(n1)"]


def test_a_node_that_is_no_longer_full_is_asked_again(made):
    cluster, crew = made(n1=1, n2=0)
    look(crew, 2)
    cluster.runs[0].over = True
    cluster.cpus.update(n1=0, n2=1)
    look(crew, 2)
    assert cluster.places()[1:] == [("worker 1", "n2")]
    cluster.cpus.update(n1=1)
    look(crew, 2)
    assert cluster.places()[2:] == [("worker 2", "n1")]


def test_while_nothing_changes_nothing_is_asked_again(made):
    cluster, crew = made(n1=1)
    look(crew, 3)
    asked = next(cluster.asked)
    look(crew, 3, times=20)
    assert next(cluster.asked) == asked + 1
    assert crew.close([], 0) is None
    assert cluster.groups == []


def test_the_end_of_a_worker_that_has_worked_is_no_setback_and_delays_nothing(made):
    cluster, crew = made(n1=1)
    look(crew, 1)
    for number in range(12):
        cluster.runs[-1].over, cluster.runs[-1].error = True, RuntimeError("no reason\nit crashed")
        assert crew.keep(1, proven={f"worker {number}"}) == [(f"worker {number}", "it crashed")]
        look(crew, 1)
    assert (crew.setbacks, len(cluster.runs)) == (0, 13)


def test_the_end_of_one_that_has_not_delays_the_next(made, monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF_S", (60.0,))
    cluster, crew = made(n1=1)
    look(crew, 1)
    cluster.runs[-1].over, cluster.runs[-1].error = True, RuntimeError("it can't import")
    assert crew.keep(1, proven={"worker 7"}) == [("worker 0", "it can't import")]
    look(crew, 1)
    assert (crew.setbacks, len(cluster.runs)) == (1, 1)
