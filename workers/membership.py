"""A worker's seat among the others: it joins generations, forms their groups, and gives the loop its exchange.

Between two steps the loop asks its seat whether a change is wanted, and never computes who is in by itself. A thread
gives the coordinator signs of life and learns from it, so a step costs no word with anybody but the other members.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from .collective import Rendezvous, TransferError, form_group, leave_group, reach_store, serve_store
from .errors import WorkerLate
from .exchange import Alone, Exchange, Group
from .generations import GRACE
from .pairs import Hosts, Member, View
from .words import Place, Word

PATIENCE_S, PATIENCE_STEPS = 10.0, 5  # a worker is late after this long, or this many median steps: the longer
TRANSFER_S = 600.0  # for what takes as long as it takes: large states, evaluations, files; signs of life go on
FORM_S = 3.0  # seconds in which a group must form: all of its members have just come to the meeting
BEAT_S = 1.0  # seconds between two signs of life
_PAUSE_S = 0.02  # seconds between two talks with the coordinator: how long a change may go unnoticed
_PACE_STEPS = 32  # steps whose median is the pace


class Meeting(Protocol):
    """How a worker reaches the coordinator; as there, but blocking where an answer is returned."""

    def join(self, member: Member, word: Word) -> View:
        """Wait for the next generation; raises Dismissed."""

    def watch(self, name: str, generation: int, step: int, patience_s: float, wait_s: float) -> bool:
        """Give a sign of life; return whether the generation is to change."""

    def resumed(self, generation: int, step: int, pause_s: float | None) -> None:
        """Tell of a generation's first commit."""

    def saved(self, name: str, step: int) -> None:
        """Tell that the last checkpoint before a stop is written."""


class Seat:
    """One worker's place in the run.

    Args:
        meeting: The coordinator.
        run: A name that no other run uses.
        name: How messages call this worker; no other worker of the run has the same.
        node: Identity of its machine.
        host: Address of its network interface.
        device: Where its vectors live.
        deadline_s: Seconds that any one exchange may take, or None: as long as the pace of the steps suggests.
        hosts: From a number of workers, who computes what.
    """

    def __init__(
        self,
        meeting: Meeting,
        *,
        run: str,
        name: str,
        node: str,
        host: str,
        device: torch.device,
        deadline_s: float | None,
        hosts: Callable[[int], Hosts],
    ) -> None:
        self._meeting, self._run, self._host, self._device, self._hosts = meeting, run, host, device, hosts
        self._deadline_s = deadline_s
        self._store = serve_store(host)
        self.member = Member(name, node, f"{host}:{self._store.port}")
        self.view: View | None = None
        self.exchange: Exchange | None = None
        self._group: Any = None
        self._pace: deque[float] = deque(maxlen=_PACE_STEPS)
        self._patience_s = deadline_s or PATIENCE_S
        self._step = 0
        self._asked_for = 0  # the newest generation that is to change
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="membership", daemon=True).start()

    @property
    def asked(self) -> bool:
        """Whether this generation is to change."""
        return self.view is not None and self._asked_for == self.view.generation

    def enter(
        self, place: Place | None, *, in_flight: bool = False, failure: str = "", late: str | None = None
    ) -> Exchange:
        """Join the next generation and return its exchange; says where this worker stands and why it comes.

        Raises:
            ExchangeError: If the generation's group can't be formed.
            Dismissed: If this worker is not needed any more.
        """
        step = 0 if place is None else place.step
        word = Word(place, in_flight, failure, late, self._patience_s)
        view = self._meeting.join(self.member, word)
        self._step, self.view = step, view
        self.exchange = self._form(view, step)
        return self.exchange

    def leave(self) -> None:
        """Leave the generation: its group can't be used any more, or is not needed."""
        if self.view is not None:
            leave_group(self._group_name(self.view))
        self.view, self.exchange, self._group = None, None, None

    def close(self) -> None:
        """Leave for good."""
        self.leave()
        self._closed.set()

    def expect(self, seconds: float) -> None:
        """Take note that a step may take about this long, before there is one to measure."""
        if self._deadline_s is None:
            self._patience_s = max(PATIENCE_S, PATIENCE_STEPS * seconds)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let the exchanges inside take as long as they may: who hangs is still found by its missing signs of life."""
        if self._group is None:
            yield
            return
        group = self._group
        group.deadline_s = TRANSFER_S
        try:
            yield
        finally:
            group.deadline_s = self._exchange_s()

    def committed(self, step: int, seconds: float) -> None:
        """Take note that ``step`` steps are committed, the last of which took so long."""
        self._step = step
        self._pace.append(seconds)
        if self._deadline_s is None and step % (_PACE_STEPS // 2) == 0:
            self._patience_s = max(PATIENCE_S, PATIENCE_STEPS * self.pace_s)
            if self._group is not None:
                self._group.deadline_s = self._exchange_s()

    @property
    def pace_s(self) -> float:
        """Median of the last steps, in seconds."""
        return statistics.median(self._pace) if self._pace else 0.0

    def resumed(self, step: int, pause_s: float | None) -> None:
        """Tell of this generation's first commit; it began at ``step``."""
        if self.view is not None:
            self._meeting.resumed(self.view.generation, step, pause_s)

    def saved(self, step: int) -> None:
        """Tell that the last checkpoint before a stop is written."""
        self._meeting.saved(self.member.name, step)

    def _form(self, view: View, step: int) -> Exchange:
        size, rank = len(view.members), view.members.index(self.member)
        names = [member.name for member in view.members]
        group: Group = Alone()
        if size > 1:
            began, form_s = time.monotonic(), min(FORM_S, self._exchange_s())
            try:
                store = self._store if rank == 0 else reach_store(view.members[0].address, form_s)
                how = Rendezvous(store, self._host, self._device, self._exchange_s(), form_s)
                group = self._group = form_group(self._group_name(view), rank, size, how)
            except TransferError as error:
                waited = time.monotonic() - began
                raise WorkerLate("forming of the group", step, "a worker", waited) from error
        return Exchange(group, self._hosts(size), rank, names)

    def _exchange_s(self) -> float:
        """Return how long an exchange may take, so that who is late is cut off within the patience."""
        return self._patience_s * (1 - GRACE)

    def _group_name(self, view: View) -> str:
        return f"{self._run}-{view.generation}"

    def _watch(self) -> None:
        """Give signs of life, and learn of changes, until the seat is closed."""
        generation = 0
        while not self._closed.is_set():
            view = self.view
            generation = view.generation if view else generation
            beat_s = min(BEAT_S, self._patience_s / 5)
            wait_s = 0.0 if view is None or self.asked else beat_s
            try:
                if self._meeting.watch(self.member.name, generation, self._step, self._patience_s, wait_s):
                    self._asked_for = generation
            except Exception:  # late once, or gone, as the loop will find out when it joins
                wait_s = 0.0
            self._closed.wait(_PAUSE_S if wait_s else beat_s / 5)
