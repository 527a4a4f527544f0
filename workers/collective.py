"""Our backend of Ray's collective API: a torch process group of its own for each generation of members.

Ray's stock gloo backend puts one torch.distributed world into a process for good. This one makes a gloo or
NCCL group from a store that the first member serves, never touches torch's default group, puts a deadline on
every operation, names the peer that missed it, and can be left and formed again in milliseconds. A group name
is never used twice, so nothing of an old generation can reach a new one.

Run on processors with gloo; the NCCL side has been reviewed by reading, not run.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from ray.util import collective
from ray.util.collective.backend_registry import register_collective_backend
from ray.util.collective.collective_group.base_collective_group import BaseGroup
from ray.util.collective.types import ReduceOp
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore
from torch.distributed import ReduceOp as TorchReduceOp
from torch.distributed.distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BarrierOptions,
    BroadcastOptions,
    ReduceOptions,
    ReduceScatterOptions,
)

BACKEND = "SAMPA"
_OPERATIONS = {
    ReduceOp.SUM: TorchReduceOp.SUM,
    ReduceOp.PRODUCT: TorchReduceOp.PRODUCT,
    ReduceOp.MIN: TorchReduceOp.MIN,
    ReduceOp.MAX: TorchReduceOp.MAX,
}


class TransferError(Exception):
    """An operation between members failed.

    Attributes:
        peer: Rank of the member that did not answer or was lost, or None where that can't be known.
        late: Whether the deadline passed, rather than the connection broke.
        waited_s: Seconds since the operation began.
    """

    def __init__(self, reason: str, *, peer: int | None, late: bool, waited_s: float) -> None:
        self.reason, self.peer, self.late, self.waited_s = reason, peer, late, waited_s
        super().__init__(f"{reason} (peer {peer}, after {waited_s:.3g} s)")


@dataclass(frozen=True)
class Rendezvous:
    """How the members of one generation find each other.

    Attributes:
        store: The key-value store that the first member serves.
        host: Address of this member's network interface.
        device: Where the exchanged tensors live; its type decides between gloo and NCCL.
        deadline_s: Seconds that any one operation may take.
        form_s: Seconds in which the group must form.
    """

    store: Store
    host: str
    device: torch.device
    deadline_s: float
    form_s: float


_awaited: dict[str, Rendezvous] = {}  # Ray makes the group from its name alone; the rest waits here


class SampaGroup(BaseGroup):  # type: ignore[misc]
    """One generation's group. Tensors are torch tensors.

    Ray's collective API makes it from the first three arguments, ``form_group`` having left the fourth for it.

    Attributes:
        deadline_s: Seconds that any one operation may take; may be changed between operations.
    """

    def __init__(self, world_size: int, rank: int, group_name: str, how: Rendezvous | None = None) -> None:
        super().__init__(world_size, rank, group_name)
        how = how or _awaited.pop(group_name)
        self.deadline_s = how.form_s
        self._device = how.device
        self._group = self._doing("forming of the group", lambda: _process_group(how, group_name, rank, world_size))
        self.deadline_s = how.deadline_s

    @classmethod
    def backend(cls) -> str:
        return BACKEND

    @classmethod
    def check_backend_availability(cls) -> bool:
        return bool(torch.distributed.is_available())

    def transfer(self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> None:
        """Send and receive, all at the same time, and return when all have arrived.

        Between two ranks, tensors arrive in the order in which they were sent; lengths must match.

        Args:
            sends: (rank, tensor) pairs; contiguous, any shape.
            receives: (rank, tensor to fill) pairs.

        Raises:
            TransferError: Naming the first peer that is late or lost. The group is unusable afterwards.
        """
        self._letting_go(lambda: self._transfer(sends, receives))

    def _transfer(self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> None:
        began = time.monotonic()
        landed = [(peer, tensor, tensor.to(self._device)) for peer, tensor in receives]  # no copy where it is there
        batch = [(self._group.recv, peer, there) for peer, _, there in landed]
        batch += [(self._group.send, peer, tensor.to(self._device)) for peer, tensor in sends]
        grouped = self._device.type == "cuda"  # NCCL deadlocks on sends that wait for each other, unless grouped
        if grouped:
            self._group._start_coalescing(self._device)
        works: list[tuple[Any, int | None]] = [
            (self._doing("start", partial(act, [tensor], peer, 0), began, peer), peer) for act, peer, tensor in batch
        ]
        if grouped:
            works = [(self._group._end_coalescing(self._device), None)]  # one work for all: the late peer has no name
        for work, peer in works:
            self._finish(work, began, peer)
        for _, tensor, there in landed:
            if there is not tensor:
                tensor.copy_(there)

    def allreduce(self, tensors: list[Tensor], allreduce_options: Any = None) -> None:
        options = AllreduceOptions()
        options.reduceOp = _operation(allreduce_options)
        self._run(lambda: self._group.allreduce(tensors, options))

    def barrier(self, barrier_options: Any = None) -> None:
        del barrier_options
        self._run(lambda: self._group.barrier(BarrierOptions()))

    def reduce(self, tensors: list[Tensor], reduce_options: Any = None) -> None:
        options = ReduceOptions()
        options.reduceOp = _operation(reduce_options)
        options.rootRank = reduce_options.root_rank if reduce_options else 0
        self._run(lambda: self._group.reduce(tensors, options))

    def allgather(self, tensor_lists: list[list[Tensor]], tensors: list[Tensor], allgather_options: Any = None) -> None:
        del allgather_options
        self._run(lambda: self._group.allgather(tensor_lists, tensors, AllgatherOptions()))

    def broadcast(self, tensors: list[Tensor], broadcast_options: Any = None) -> None:
        options = BroadcastOptions()
        options.rootRank = broadcast_options.root_rank if broadcast_options else 0
        self._run(lambda: self._group.broadcast(tensors, options))

    def reducescatter(
        self, tensors: list[Tensor], tensor_lists: list[list[Tensor]], reducescatter_options: Any = None
    ) -> None:
        options = ReduceScatterOptions()
        options.reduceOp = _operation(reducescatter_options)
        self._run(lambda: self._group.reduce_scatter(tensors, tensor_lists, options))

    def send(self, tensors: list[Tensor], send_options: Any) -> None:
        self.transfer([(send_options.dst_rank, tensor) for tensor in tensors], [])

    def recv(self, tensors: list[Tensor], recv_options: Any) -> None:
        self.transfer([], [(recv_options.src_rank, tensor) for tensor in tensors])

    def destroy_group(self) -> None:
        """Leave at once, whatever is in flight; the peers' operations fail."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _run(self, start: Callable[[], Any]) -> None:
        began = time.monotonic()
        self._letting_go(lambda: self._finish(self._doing("start", start, began), began, None))

    @staticmethod
    def _letting_go(act: Callable[[], None]) -> None:
        """Let an error keep nothing of ``act`` alive, as its traceback would.

        gloo closes a connection when the last operation on it is forgotten, ``abort`` or not; until then, peers that
        wait for this member wait for their deadline (measured with torch 2.13).
        """
        failure = None
        try:
            act()
        except TransferError as error:
            failure = error.with_traceback(None)
        if failure is not None:
            raise failure

    def _finish(self, work: Any, began: float, peer: int | None) -> None:
        left = max(self.deadline_s - (time.monotonic() - began), 0.001)
        self._doing("wait", lambda: work.wait(timedelta(seconds=left)), began, peer)
        if self._device.type == "cuda":  # NCCL's wait only orders streams; the deadline needs the host to wait
            self._doing("wait", lambda: _until_done(work, began + self.deadline_s), began, peer)

    def _doing(self, what: str, act: Callable[[], Any], began: float | None = None, peer: int | None = None) -> Any:
        began = time.monotonic() if began is None else began
        try:
            return act()
        except (RuntimeError, TimeoutError) as error:
            reason = f"{what}: {_plain(error)}"
        waited = time.monotonic() - began
        raise TransferError(reason, peer=peer, late=waited >= self.deadline_s * 0.99, waited_s=waited)


def serve_store(host: str) -> TCPStore:
    """Serve a key-value store at ``host`` on a free port, for the generations in which this process comes first."""
    return TCPStore(host, 0, None, True, timedelta(seconds=60), wait_for_workers=False)


def reach_store(address: str, deadline_s: float) -> TCPStore:
    """Connect to a member's store at ``host:port``.

    Raises:
        TransferError: If it doesn't answer within ``deadline_s`` seconds.
    """
    began = time.monotonic()
    host, _, port = address.rpartition(":")
    try:
        # where nobody listens, torch tries again and again, for about twice its time limit (measured with 2.13)
        socket.create_connection((host, int(port)), deadline_s).close()
        return TCPStore(host, int(port), None, False, timedelta(seconds=deadline_s / 2))
    except (OSError, RuntimeError) as error:
        waited = time.monotonic() - began
        raise TransferError(_plain(error), peer=0, late=True, waited_s=waited) from error


def form_group(name: str, rank: int, size: int, how: Rendezvous) -> SampaGroup:
    """Form one generation's group through Ray's collective API and return its handle.

    Raises:
        TransferError: If the members don't meet within the deadline.
    """
    _register()
    _awaited[name] = how
    try:
        collective.init_collective_group(size, rank, backend=BACKEND, group_name=name)
    finally:
        _awaited.pop(name, None)
    return collective.get_group_handle(name)  # type: ignore[no-any-return]


def leave_group(name: str) -> None:
    """Leave a group, if this process is in it; the peers' operations with it fail."""
    if collective.is_group_initialized(name):
        collective.destroy_collective_group(name)


def _register() -> None:
    if not collective.is_backend_available(BACKEND):
        register_collective_backend(BACKEND, SampaGroup)


def _process_group(how: Rendezvous, name: str, rank: int, size: int) -> Any:
    store = PrefixStore(name, how.store)
    store.set_timeout(timedelta(seconds=how.form_s))
    if how.device.type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        nccl = ProcessGroupNCCL.Options()
        nccl._timeout = timedelta(seconds=10 * how.deadline_s)  # of its watchdog; our own deadline comes first
        return ProcessGroupNCCL(store, rank, size, nccl)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=how.form_s)
    options._devices = [ProcessGroupGloo.create_device(hostname=how.host)]
    return ProcessGroupGloo(store, rank, size, options)


def _plain(error: Exception) -> str:
    """Return what an error of torch's says, without the place in its source and advice about other trainers."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*\.(cc|cpp|h):\d+\] ?", "", first).partition(". This is")[0][:200]


def _operation(options: Any) -> Any:
    return _OPERATIONS[options.reduceOp if options else ReduceOp.SUM]


def _until_done(work: Any, end: float) -> None:
    while not work.is_completed():
        if time.monotonic() > end:
            raise TimeoutError("the transfer did not finish")
        time.sleep(0.0002)
