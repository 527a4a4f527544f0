"""A made-up cluster, where Ray grants room as soon as it looks free: what a crew needs of Ray."""

from dataclasses import dataclass, field
from itertools import count

from sampa.workers.crew import NODE


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

    def stand_in(self, monkeypatch, module):
        """Stand in for Ray in the module of the crew."""
        for name in ("placement_group", "placement_group_table", "remove_placement_group"):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(module.ray, "nodes", self.nodes)
