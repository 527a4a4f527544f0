"""The lobby: where the workers of a pool wait for work, and where the coordinators of its runs live. An asyncio actor.

One process for all of them: a run that begins here starts no actor of its own. Loads without torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .coordinator import Coordinator, News, answered
from .errors import Dismissed
from .plan import Plan


@dataclass(frozen=True)
class Assignment:
    """What a worker is to take part in.

    Attributes:
        key: Of the run, in the lobby.
        plan: Of the run.
        run: A name that no other run uses.
        name: Of the worker there.
        directory: Of the run, on storage that all workers share.
        hold_at: Epochs after which the run stops with a checkpoint, or None.
    """

    key: str
    plan: Plan
    run: str
    name: str
    directory: str
    hold_at: float | None


class Lobby:
    """The meeting place of a pool."""

    def __init__(self) -> None:
        self._coordinators: dict[str, Coordinator] = {}
        self._waiting: dict[str, asyncio.Future[Assignment]] = {}
        self._released: set[str] = set()
        self._handles: dict[str, Any] = {}
        self._bell = asyncio.Event()  # rung by whoever comes for work, and by all coordinators

    # What workers say

    async def next(self, worker: str, handle: Any, wait_s: float) -> Assignment | None:
        """Return what a worker that has nothing to do is to take part in, or None if that isn't known in time.

        Raises:
            Dismissed: If it is not needed any more.
        """
        self._handles[worker] = handle
        if worker in self._released:
            raise Dismissed(save=False)
        answer: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()
        self._waiting[worker] = answer
        self._bell.set()
        await asyncio.wait([answer], timeout=wait_s)
        if answer.done():
            return answer.result()
        del self._waiting[worker]
        return None

    async def ask(self, key: str, method: str, *args: Any) -> Any:
        """Pass a word on to the coordinator of a run.

        Raises:
            Dismissed: If the run is over.
        """
        if key not in self._coordinators:
            raise Dismissed(save=False)
        return await getattr(self._coordinators[key], method)(*args)

    # What the pool says

    async def open(self, key: str, wanted: int, least: int, batch_size: int, reached: int) -> None:
        """Make the coordinator of a run; see there."""
        self._coordinators[key] = Coordinator(wanted, least, batch_size=batch_size, reached=reached, bell=self._bell)

    async def close(self, key: str) -> None:
        """Let go of a run that is over."""
        await self._coordinators.pop(key).close()

    async def assign(self, worker: str, assignment: Assignment) -> bool:
        """Give a worker something to do; say whether it was there to take it."""
        answer = self._waiting.pop(worker, None)
        if answer is None or answer.done():
            return False
        answer.set_result(assignment)
        return True

    async def release(self, worker: str) -> None:
        """Let a worker end, once it has nothing to do."""
        self._released.add(worker)
        answer = self._waiting.pop(worker, None)
        if answer is not None and not answer.done():
            answer.set_exception(Dismissed(save=False))

    async def end(self, worker: str) -> None:
        """End the process of a worker that doesn't come back."""
        import ray

        ray.kill(self._handles[worker])

    async def news(self, wait_s: float) -> tuple[Mapping[str, News], list[str]]:
        """Return what has happened in the runs, by key, and who has nothing to do; wait for something, if need be."""
        await answered(self._bell, wait_s)
        return {key: one.take_news() for key, one in self._coordinators.items()}, [*self._waiting]


@dataclass(frozen=True)
class Line:
    """Stands for the coordinator of one run where its actor's handle is expected: ``line.join.remote(...)``.

    Attributes:
        lobby: The actor's handle.
        key: Of the run.
    """

    lobby: Any
    key: str

    def __getattr__(self, method: str) -> _Call:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Call(self.lobby, self.key, method)


@dataclass(frozen=True)
class _Call:
    lobby: Any
    key: str
    method: str

    def remote(self, *args: Any) -> Any:
        return self.lobby.ask.remote(self.key, self.method, *args)
