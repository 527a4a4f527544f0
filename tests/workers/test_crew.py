"""The crew on a made-up cluster, where Ray grants room as soon as it looks free: workers come where there is room."""

from dataclasses import dataclass, field
from itertools import count

import pytest
from sampa.workers import crew as module
from sampa.workers.crew import NODE, Crew


@dataclass
class Group:
    """A placement group."""

    bundle_count: int
    without: str = ""
    nodes: list = field(default_factory=list)


@dataclass
class Started:
    """A run as the crew sees it; ``holds`` once its worker has taken its room."""

    name: str
    node: str
    error: Exception | None = None
    over: bool = False
    holds: bool = False


class Cluster:
    """Nodes by name, with their processors."""

    def __init__(self, **cpus):
        self.cpus, self.groups, self.runs = cpus, [], []
        self.asked = count()

    def free(self, node):
        held = sum(run.holds and not run.over for run in self.runs if run.node == node)
        return self.cpus[node] - held - sum(group.nodes.count(node) for group in self.groups)

    def placement_group(self, bundles, strategy, bundle_label_selector):
        next(self.asked)
        without = {selector[NODE] for selector in bundle_label_selector or ()}
        self.groups.append(Group(len(bundles), *without))
        return self.groups[-1]

    def placement_group_table(self, group):
        if not group.nodes:
            rooms = [node for node in self.cpus if node not in group.without for _ in range(self.free(node))]
            group.nodes = rooms[: group.bundle_count] if len(rooms) >= group.bundle_count else []
        state = "CREATED" if group.nodes else "PENDING"
        return {"state": state, "bundles_to_node_id": dict(enumerate(group.nodes))}

    def remove_placement_group(self, group):
        self.groups.remove(group)

    def nodes(self):
        return [{"NodeID": name, "Alive": True, "Resources": {"CPU": float(cpus)}} for name, cpus in self.cpus.items()]

    def start(self, name, node):
        self.runs.append(Started(name, node))
        return self.runs[-1]

    def places(self):
        return [(run.name, run.node) for run in self.runs]


@pytest.fixture
def made(monkeypatch):
    def make(least=1, **cpus):
        cluster = Cluster(**cpus)
        for name in ("placement_group", "placement_group_table", "remove_placement_group"):
            monkeypatch.setattr(module, name, getattr(cluster, name))
        monkeypatch.setattr(module.ray, "nodes", cluster.nodes)
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
