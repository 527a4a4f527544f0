"""The coordinator: where a run's workers meet, and the letter box for their reports.

A run has one. Workers join it; when all that the run counts on have joined, it forms a generation: the members
in order, under a number that is never used twice. A member whose exchange failed joins again, its replacement
joins too, and the next generation forms. Loads without torch, so that its actor starts quickly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .errors import MembershipError, RunOver
from .pairs import Member, View, order
from .reports import Report

JOIN_S = 600.0  # seconds: a cluster that grows may need minutes to bring a replacement


class Coordinator:
    """The meeting place of one run's workers, and the letter box for their reports. An asyncio actor.

    Args:
        size: How many workers make a generation.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._generation = 0
        self._joining: dict[int, tuple[Member, asyncio.Future[View]]] = {}
        self._reports: list[Report] = []
        self._news = asyncio.Event()
        self._outcome: dict[str, Any] | None = None

    async def join(self, seat: int, member: Member) -> View:
        """Wait for the next generation and return it; a newer member on the same seat takes an older one's place.

        Raises:
            MembershipError: If the others don't come within ``JOIN_S`` seconds.
            RunOver: If the run has ended.
        """
        if self._outcome is not None:
            raise RunOver()
        meeting: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        self._joining[seat] = (member, meeting)
        if len(self._joining) == self._size:
            self._form()
        try:
            return await asyncio.wait_for(asyncio.shield(meeting), JOIN_S)
        except TimeoutError:
            there = sorted(member.name for member, _ in self._joining.values())
            raise MembershipError(
                f"only {len(there)} of {self._size} workers came within {JOIN_S:g} s ({', '.join(there)}); see whether "
                f"the cluster has room for the others, or lower workers.max"
            ) from None

    async def report(self, reports: Sequence[Report]) -> None:
        """Take a worker's reports."""
        self._reports += reports
        self._news.set()

    async def finish(self, outcome: dict[str, Any]) -> None:
        """Take how the run ended; the first word counts."""
        self._outcome = self._outcome or outcome
        self._news.set()
        for _, meeting in self._joining.values():
            meeting.set_exception(RunOver())
        self._joining = {}

    async def news(self, wait_s: float) -> tuple[list[Report], dict[str, Any] | None]:
        """Return the reports since the last call, and how the run ended if it has; wait for either, if need be."""
        if not self._news.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)
        self._news.clear()
        reports, self._reports = self._reports, []
        return reports, self._outcome

    def _form(self) -> None:
        self._generation += 1
        joined, self._joining = self._joining, {}
        view = View(self._generation, order([member for member, _ in joined.values()]))
        for _, meeting in joined.values():
            meeting.set_result(view)
