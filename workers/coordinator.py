"""The coordinator: where a run's workers meet, and the letter box for their reports. An asyncio actor, one per run.

It gives the protocol of ``generations`` a clock, a network and somebody to talk to, and decides nothing itself. Loads
without torch, so that it starts quickly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import Dismissed
from .generations import Generations
from .pairs import Member, View
from .reports import Report
from .words import Admit, Change, CutOff, Farewell, Happened, Lost, Stopped, Word

TICK_S = 0.1  # seconds between two looks at who is late
ANSWER_S = 60.0  # in which it answers, or its node is lost
LIFELINE_S = 5.0  # in which a worker's store must take the connection that tells of its end


@dataclass(frozen=True)
class News:
    """What has happened in a run since it was last asked.

    Attributes:
        reports: Of the workers, and the ledger's.
        lost: Names of the workers that are gone.
        present: Names of the workers that are in.
        reached: The last step that is known to be committed.
        outcome: How the run ended, or None.
    """

    reports: list[Report]
    lost: list[str]
    present: list[str]
    reached: int
    outcome: dict[str, Any] | None


class Coordinator:
    """The meeting place of one run's workers. See ``generations`` for the protocol, and its arguments.

    Args:
        wanted: The most workers that are to be in.
        least: How many make the first generation.
        batch_size: Rows of a step, for the ledger.
        reached: The last step that earlier attempts are known to have committed.
        end: Ends the process of a worker, given the handle that it came with.
        bell: Set when something has happened; for several coordinators whose news one asks for at once.
    """

    def __init__(
        self,
        wanted: int,
        least: int | None = None,
        *,
        batch_size: int = 1,
        reached: int = 0,
        end: Callable[[Any], None] | None = None,
        bell: asyncio.Event | None = None,
    ) -> None:
        least = wanted if least is None else least
        self._protocol = Generations(wanted, least, batch_size=batch_size, reached=reached)
        self._end_process = end or _kill
        self._answers: dict[str, asyncio.Future[View]] = {}
        self._handles: dict[str, Any] = {}
        self._lifelines: dict[str, asyncio.Task[None]] = {}
        self._change = asyncio.Event()
        self._reports: list[Report] = []
        self._lost: list[str] = []
        self._bell = bell or asyncio.Event()
        self._outcome: dict[str, Any] | None = None
        self._claimed: set[int] = set()
        self._ticking: asyncio.Task[None] | None = None

    # What workers say

    async def join(self, member: Member, word: Word, handle: Any = None) -> View:
        """Wait for the next generation and return its view.

        Raises:
            Dismissed: If this worker is not needed any more, or the run is over.
        """
        answer: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        self._answers[member.name], self._handles[member.name] = answer, handle
        if member.address and member.name not in self._lifelines:
            self._lifelines[member.name] = asyncio.create_task(self._follow(member))
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        self._protocol.join(member, word, time.monotonic())
        self._act()
        return await answer

    async def watch(self, name: str, generation: int, step: int, patience_s: float, wait_s: float) -> bool:
        """Take a sign of life; return, at the latest after ``wait_s``, whether the generation is to change."""
        self._protocol.beat(name, step, patience_s, time.monotonic())
        view = self._protocol.view
        if view is None or view.generation != generation:
            return False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), wait_s)
        return self._change.is_set() and self._protocol.view is view

    async def resumed(self, generation: int, step: int, pause_s: float | None) -> None:
        """Take the news of a generation's first commit."""
        self._protocol.resumed(generation, step, pause_s, time.monotonic())
        self._act()

    async def saved(self, name: str, step: int) -> None:
        """Take the news that the last checkpoint before a stop is written."""
        self._protocol.saved(name, step, time.monotonic())
        self._act()

    async def report(self, reports: Sequence[Report]) -> None:
        """Take a worker's reports."""
        self._reports += reports
        self._bell.set()

    async def finish(self, name: str, outcome: dict[str, Any]) -> None:
        """Take how the run ended, from one of its workers; the first word counts.

        A failure that another process might not have is the worker's own end only, and so is any failure of one that
        never came in, while others train.
        """
        view = self._protocol.view
        inside = view is not None and name in {member.name for member in view.members}
        if self._outcome is not None or (outcome["succeeded"] and not inside):
            return
        if (inside or view is None) and not outcome.get("retry"):
            self._conclude(outcome)
            return
        self._reports.append(Report("log", {"worker": name, "line": outcome["reason"]}))
        self._lost.append(name)
        self._protocol.gone(name, time.monotonic())
        self._act()
        self._bell.set()

    async def claim(self, number: int) -> bool:
        """Say whether the fault of this number is still to come, and take it: each comes once."""
        new = number not in self._claimed
        self._claimed.add(number)
        if new:
            self._reports.append(Report("fault", {"number": number}))
            self._bell.set()
        return new

    async def due(self, numbers: Sequence[int]) -> bool:
        """Say whether one of these faults is still to come, and the crew it waits for is not complete."""
        view = self._protocol.view
        complete = view is not None and len(view.members) >= self._protocol.wanted
        return not complete and not self._claimed.issuperset(numbers)

    # What the runner says

    async def news(self, wait_s: float) -> News:
        """Return what has happened since the last call; wait for something to happen, if need be."""
        await answered(self._bell, wait_s)
        return self.take_news()

    def take_news(self) -> News:
        """Return what has happened since the last call, now. It is told once, so nothing may come between this and
        the answer in which it goes out; above all nothing that can be cancelled."""
        reports, self._reports = self._reports, []
        lost, self._lost = self._lost, []
        view = self._protocol.view
        present = [member.name for member in view.members] if view else []
        return News(reports, lost, present, self._protocol.reached, self._outcome)

    async def want(self, workers: int) -> None:
        """From now on, at most this many workers are to be in."""
        self._protocol.want(workers, time.monotonic())
        self._act()

    async def drain(self, nodes: Sequence[str]) -> None:
        """These nodes, and no others, are about to go."""
        self._protocol.drain(nodes, time.monotonic())
        self._act()

    async def stop(self, why: str) -> None:
        """End the run at the next boundary, with a checkpoint."""
        self._protocol.stop(why, time.monotonic())
        self._act()

    async def dismiss(self, why: str) -> None:
        """End the run at the next boundary as it is."""
        if self._outcome is None:
            self._conclude({"succeeded": False, "reason": why})
            self._change.set()

    async def close(self) -> None:
        """Let go of everything; for a coordinator whose process goes on."""
        for task in [*self._lifelines.values(), *([self._ticking] if self._ticking else [])]:
            task.cancel()

    # How the protocol is served

    def _conclude(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self._protocol.finish(time.monotonic())
        self._act()
        self._bell.set()

    def _act(self) -> None:
        """Do what the protocol has decided."""
        effects, self._protocol.effects = self._protocol.effects, []
        for effect in effects:
            match effect:
                case Admit(view):
                    self._change = asyncio.Event()
                    for member in view.members:
                        self._answer(member.name, view)
                case Farewell(name, save):
                    self._answer(name, Dismissed(save=save))
                case Change():
                    self._change.set()
                case CutOff(name, why):
                    line = f"{name} is replaced, since it was late: {why}"
                    self._reports.append(Report("log", {"worker": "coordinator", "line": line}))
                case Lost(name):
                    self._lost.append(name)
                    if self._handles.get(name) is not None:  # it may live on, unheard
                        self._end_process(self._handles.pop(name))
                    self._answer(name, Dismissed())
                case Happened(data):
                    self._reports.append(Report("elastic", data))
                case Stopped(step, why):
                    self._outcome = {"succeeded": False, "stopped": True, "step": step, "reason": why}
        if effects:
            self._bell.set()

    def _answer(self, name: str, answer: View | Dismissed) -> None:
        future = self._answers.pop(name, None)
        if future is None or future.done():
            return
        if isinstance(answer, View):
            future.set_result(answer)
        else:
            future.set_exception(answer)

    async def _follow(self, member: Member) -> None:
        """Hold a connection to a worker's store: its end is the worker's."""
        host, _, port = member.address.rpartition(":")
        writer = None
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), LIFELINE_S)
            while await reader.read(1024):
                pass
        except (OSError, TimeoutError) as error:
            if writer is None:  # never reached: then it can't be told from one that has ended
                line = f"{member.name} can't be reached at {member.address} ({error or 'no answer'}) and is given up; "
                line += "let the nodes of the cluster connect to each other on all ports"
                self._reports.append(Report("log", {"worker": "coordinator", "line": line}))
        finally:
            if writer is not None:
                writer.close()
        del self._lifelines[member.name]
        self._protocol.gone(member.name, time.monotonic())
        self._act()

    async def _tick(self) -> None:
        while not self._protocol.over:
            await asyncio.sleep(TICK_S)
            self._protocol.tick(time.monotonic())
            self._act()


async def answered(bell: asyncio.Event, wait_s: float) -> None:
    """Wait until a bell is rung, but no longer than that; then it can be rung again."""
    if not bell.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(bell.wait(), wait_s)
    bell.clear()


def _kill(handle: Any) -> None:
    import ray

    ray.kill(handle)
