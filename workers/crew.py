"""The crew: keeps as many workers going as are wanted and have room. Each is a run of Ray Train's with one worker.

Room is asked for with placement groups, which an autoscaler sees too: one for those that a run needs to start, all or
none, so that two runs can't wait for each other's halves; and one for each further worker. As soon as Ray has found the
room it is given back, and a run starts on that node. So nothing is held that isn't used. Until the run has taken it,
some seconds later, the room looks free: Ray may find it again for the next worker, which then looks for another node.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from .sharing import room_for

NODE = "ray.io/node-id"  # the label by which Ray knows a node
BACK_OFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the next start, by failures since the last progress

log = logging.getLogger(__name__)


class Run(Protocol):
    """A worker that was started, on its way from its process's start to its end."""

    name: str
    node: str
    error: BaseException | None

    @property
    def over(self) -> bool:
        """Whether it has ended, and holds nothing any more."""


@dataclass(frozen=True)
class _Room:
    """A placement group that is asked for, and the nodes where it may not be."""

    group: PlacementGroup
    without: frozenset[str]

    @property
    def workers(self) -> int:
        return int(self.group.bundle_count)


class Crew:
    """Starts workers until there are as many as wanted.

    Args:
        start: ``start(name, node)`` starts a worker on a node and returns at once.
        resources: Of each worker.
        least: How many must have room before the first one starts.
    """

    def __init__(self, start: Callable[[str, str], Run], resources: dict[str, float], least: int) -> None:
        self._start, self._resources, self._least = start, resources, least
        self._runs: list[Run] = []
        self._rooms: list[_Room] = []
        self._lost: set[str] = set()
        self._count = 0
        self._setbacks = 0
        self._not_before = 0.0

    @property
    def runs(self) -> Sequence[Run]:
        """Those that were started and, when last looked at, had not ended."""
        return [*self._runs]

    @property
    def setbacks(self) -> int:
        """How many workers were lost or didn't start since the last progress."""
        return self._setbacks

    def progressed(self) -> None:
        """A step was committed: what was lost before doesn't count against the run any more."""
        self._setbacks = 0

    def set_back(self, lost: Collection[str]) -> None:
        """These workers are gone; they are replaced, the sooner the fewer were lost in a row."""
        new = [run for run in self._runs if run.name in lost and run.name not in self._lost]
        self._lost |= set(lost)
        if new:
            self._setbacks += len(new)
            self._not_before = time.monotonic() + BACK_OFF_S[min(self._setbacks - 1, len(BACK_OFF_S) - 1)]

    def keep(self, wanted: int, leaving: Collection[str] = (), proven: Collection[str] = ()) -> list[tuple[str, str]]:
        """Start, or ask room for, as many as are missing; those on nodes that are gone or about to go don't count.

        Args:
            wanted: How many there are to be.
            leaving: The nodes that don't count.
            proven: Names of workers that have worked: their end says nothing against starting others at once.

        Returns:
            Name and error of each worker that ended with one, and was not known to be lost.
        """
        failed = [(run.name, _last_line(run.error)) for run in self._runs if self._failed(run)]
        self._lost |= {name for name, _ in failed if name in proven}
        self.set_back([name for name, _ in failed])
        self._runs = [run for run in self._runs if not run.over]
        alive = [run for run in self._runs if run.name not in self._lost and run.node not in leaving]
        self._give_back_narrow()
        asked = sum(room.workers for room in self._rooms)
        while self._rooms and len(alive) + asked > wanted:
            asked -= self._give_back(self._rooms[-1])
        if time.monotonic() >= self._not_before:
            missing = wanted - len(alive) - asked
            if missing > 0 and not alive and not asked:
                gang = min(self._least, wanted)
                self._ask(gang)
                missing -= gang
            for _ in range(missing):
                self._ask(1)
        for room in [*self._rooms]:
            self._move_in(room)
        return failed

    def close(self, present: Collection[str], wait_s: float) -> None:
        """Ask for nothing more, and wait for those who were in the run to end."""
        while self._rooms:
            self._give_back(self._rooms[-1])
        deadline = time.monotonic() + wait_s
        while any(not run.over for run in self._runs if run.name in present) and time.monotonic() < deadline:
            time.sleep(0.05)

    def waits_for_room(self) -> bool:
        """Say whether nobody has been started, for want of room."""
        return not self._runs and bool(self._rooms)

    def _failed(self, run: Run) -> bool:
        return run.over and run.error is not None and run.name not in self._lost

    def _ask(self, bundles: int) -> None:
        without = self._full()
        where = [{NODE: f"!in({','.join(sorted(without))})"}] * bundles if without else None
        group = placement_group([dict(self._resources)] * bundles, strategy="PACK", bundle_label_selector=where)
        self._rooms.append(_Room(group, without))

    def _move_in(self, room: _Room) -> None:
        found = placement_group_table(room.group)
        if found["state"] != "CREATED":
            return
        self._give_back(room)
        for node in found["bundles_to_node_id"].values():
            if node not in self._full():  # else it is the room of one that is still starting there
                self._runs.append(self._start(f"worker {self._count}", node))
                self._count += 1

    def _give_back_narrow(self) -> None:
        """Give back what may not be on nodes that have room by now, so that it is asked for again."""
        full = self._full() if any(room.without for room in self._rooms) else frozenset()
        for room in [*self._rooms]:
            if room.without - full:
                self._give_back(room)

    def _full(self) -> frozenset[str]:
        """Return the nodes that hold as many of this crew as they ever could, those that are starting included."""
        there = Counter(run.node for run in self._runs if not run.over and run.name not in self._lost)
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]} if there else {}
        return frozenset(
            name for name, count in there.items() if name in nodes and count >= room_for(self._resources, nodes[name])
        )

    def _give_back(self, room: _Room) -> int:
        self._rooms.remove(room)
        try:
            remove_placement_group(room.group)
        except RayError as error:
            log.warning("a placement group could not be removed: %s", error)
        return room.workers


def _last_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
