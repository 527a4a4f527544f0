"""A worker's seat among the others: it joins generations, forms their groups, and gives the loop its exchange.

The loop asks its seat for the exchange of the moment before every step, and never computes who is in by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from .collective import Rendezvous, TransferError, form_group, leave_group, reach_store, serve_store
from .errors import WorkerLate
from .exchange import Alone, Exchange, Group
from .pairs import Hosts, Member, View


class Meeting(Protocol):
    """How a worker reaches the coordinator; blocking."""

    def join(self, seat: int, member: Member) -> View:
        """Wait for the next generation."""


class Seat:
    """One worker's place in the run.

    Args:
        meeting: The coordinator.
        number: The seat's number within the run.
        run: A name that no other run uses.
        name: How messages call this worker.
        node: Identity of its machine.
        host: Address of its network interface.
        device: Where its vectors live.
        deadline_s: Seconds that any one exchange may take.
        hosts: From a number of workers, who computes what.
    """

    def __init__(
        self,
        meeting: Meeting,
        number: int,
        *,
        run: str,
        name: str,
        node: str,
        host: str,
        device: torch.device,
        deadline_s: float,
        hosts: Callable[[int], Hosts],
    ) -> None:
        self._meeting, self._number, self._run = meeting, number, run
        self._host, self._device, self._deadline_s, self._hosts = host, device, deadline_s, hosts
        self._store = serve_store(host)
        self.member = Member(name, node, f"{host}:{self._store.port}")
        self.view: View | None = None
        self._exchange: Exchange | None = None

    def exchange(self, step: int) -> Exchange:
        """Return the exchange of the generation of the moment, for ``step``; join the next one if there is none.

        Raises:
            ExchangeError: If the generation's group can't be formed.
            MembershipError: If the others don't come.
        """
        if self._exchange is None:
            self.view = self._meeting.join(self._number, self.member)
            self._exchange = self._form(self.view, step)
        return self._exchange

    def leave(self) -> None:
        """Leave the generation: its group can't be used any more, or the run is over."""
        if self.view is not None:
            leave_group(self._group_name(self.view))
        self.view, self._exchange = None, None

    def _form(self, view: View, step: int) -> Exchange:
        size, rank = len(view.members), view.members.index(self.member)
        names = [member.name for member in view.members]
        group: Group = Alone()
        if size > 1:
            began = time.monotonic()
            try:
                store = self._store if rank == 0 else reach_store(view.members[0].address, self._deadline_s)
                how = Rendezvous(store, self._host, self._device, self._deadline_s)
                group = form_group(self._group_name(view), rank, size, how)
            except TransferError as error:
                waited = time.monotonic() - began
                raise WorkerLate("forming of the group", step, "a worker", waited) from error
        return Exchange(group, self._hosts(size), rank, names)

    def _group_name(self, view: View) -> str:
        return f"{self._run}-{view.generation}"
