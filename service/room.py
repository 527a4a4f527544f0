"""Whether a cluster could ever hold what is asked for: decided from what its nodes have, not from what is free now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from ..workers.plan import Count, Workers
from ..workers.settings import Settings
from ..workers.sharing import room_for


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has in all."""

    cpus: float
    gpus: float
    address: str = field(default="", compare=False)
    """Where it is; empty: unknown."""

    def holds(self, workers: Workers) -> int:
        """Return how many of these workers have room on the node, if nobody else is there."""
        return room_for({"CPU": workers.cpus, "GPU": workers.gpus}, {"CPU": self.cpus, "GPU": self.gpus})

    def __str__(self) -> str:
        return f"{_count(self.cpus, 'processor')} and {_count(self.gpus, 'GPU')}"


class NodeGroup(Settings):
    """Nodes that are alike, as whoever runs the cluster says; it can have so many of them at most."""

    cpus: Annotated[float, Field(ge=0)] = Field(description="processors of each node that jobs may use")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs of each node")
    count: Annotated[Count, Field(le=10_000)] = Field(description="how many of them there can be")

    def nodes(self) -> list[Node]:
        """Return the nodes of the group, when all of them are there."""
        return [Node(self.cpus, self.gpus)] * self.count


def why_no_room(workers: Workers, nodes: Sequence[Node]) -> str:
    """Return why not even the fewest of these workers have room on the nodes; empty if they have."""
    fit = sum(node.holds(workers) for node in nodes)
    if fit >= workers.min:
        return ""
    each = str(Node(workers.cpus, workers.gpus))
    has = "; ".join(f"{count} with {node}" for node, count in _counted(nodes)) or "none"
    wanted = f"{'a worker' if workers.min == 1 else f'{workers.min} workers at once'} of {each}"
    advice = "ask for less, or add nodes"
    return f"there must be room for {wanted}, but the nodes of the cluster have room for {fit} ({has}); {advice}"


def _counted(nodes: Sequence[Node]) -> list[tuple[Node, int]]:
    kinds = sorted(set(nodes), key=lambda node: (node.gpus, node.cpus))
    return [(kind, list(nodes).count(kind)) for kind in kinds]


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")
