"""The crew: keeps as many workers going as are wanted and have room. Each is a run of Ray Train's with one worker.

Room is asked for with placement groups, which an autoscaler sees too: one for those that a run needs to start, all or
none, so that two runs can't wait for each other's halves; and one for each further worker. As soon as Ray has found the
room it is given back, and a run starts on that node. So nothing is held that isn't used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

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
        self._rooms: list[PlacementGroup] = []
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

    def keep(self, wanted: int, leaving: Collection[str] = ()) -> list[tuple[str, str]]:
        """Start, or ask room for, as many as are missing; those on nodes that are gone or about to go don't count.

        Returns:
            Name and error of each worker that ended with one, and was not known to be lost.
        """
        failed = [(run.name, _last_line(run.error)) for run in self._runs if self._failed(run)]
        self.set_back([name for name, _ in failed])
        self._runs = [run for run in self._runs if not run.over]
        alive = [run for run in self._runs if run.name not in self._lost and run.node not in leaving]
        asked = sum(group.bundle_count for group in self._rooms)
        while self._rooms and len(alive) + asked > wanted:
            asked -= self._give_back(self._rooms.pop())
        if time.monotonic() >= self._not_before:
            missing = wanted - len(alive) - asked
            if missing > 0 and not alive and not asked:
                gang = min(self._least, wanted)
                self._ask(gang)
                missing -= gang
            for _ in range(missing):
                self._ask(1)
        for group in [*self._rooms]:
            self._move_in(group)
        return failed

    def close(self, present: Collection[str], wait_s: float) -> None:
        """Ask for nothing more, and wait for those who were in the run to end."""
        while self._rooms:
            self._give_back(self._rooms.pop())
        deadline = time.monotonic() + wait_s
        while any(not run.over for run in self._runs if run.name in present) and time.monotonic() < deadline:
            time.sleep(0.05)

    def waits_for_room(self) -> bool:
        """Say whether nobody has been started, for want of room."""
        return not self._runs and bool(self._rooms)

    def _failed(self, run: Run) -> bool:
        return run.over and run.error is not None and run.name not in self._lost

    def _ask(self, bundles: int) -> None:
        self._rooms.append(placement_group([dict(self._resources)] * bundles, strategy="PACK"))

    def _move_in(self, group: PlacementGroup) -> None:
        found = placement_group_table(group)
        if found["state"] != "CREATED":
            return
        nodes = list(found["bundles_to_node_id"].values())
        self._rooms.remove(group)
        self._give_back(group)
        for node in nodes:
            self._runs.append(self._start(f"worker {self._count}", node))
            self._count += 1

    def _give_back(self, group: PlacementGroup) -> int:
        try:
            remove_placement_group(group)
        except RayError as error:
            log.warning("a placement group could not be removed: %s", error)
        return int(group.bundle_count)


def _last_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
