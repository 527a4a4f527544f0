"""The exchange: the fixed-order mean has the same bits on any number of workers, and a culprit is named."""

import itertools
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sampa.workers.collective import Rendezvous, SampaGroup, TransferError, reach_store, serve_store
from sampa.workers.errors import ExchangeError, WorkerLate, WorkerLost
from sampa.workers.exchange import Alone, Exchange
from sampa.workers.pairs import Hosts

HERE = "127.0.0.1"
SIZE = 1000
CASES = [(width, paired, workers) for width in (1, 2, 3) for paired in (True, False) for workers in range(1, 7)
         if workers <= width * (2 if paired else 1)]  # fmt: skip


@pytest.fixture(scope="module")
def store():
    return serve_store(HERE)


names = itertools.count()


def together(store, size, act, deadline_s=20.0):
    """Run ``act(group, rank)`` in one thread per rank, over a real gloo group; return the results in order of rank."""
    name = f"test-{next(names)}"

    def member(rank):
        own_connection = reach_store(f"{HERE}:{store.port}", 20.0)
        how = Rendezvous(own_connection, HERE, torch.device("cpu"), deadline_s, deadline_s)
        group = SampaGroup(size, rank, name, how)
        try:
            return act(group, rank)
        finally:
            group.destroy_group()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(member, range(size)))


def halves_of(width):
    generator = torch.Generator().manual_seed(width)
    return {
        (kind, shard): torch.randn(SIZE, generator=generator) * 10.0**shard
        for shard in range(width)
        for kind in ("perturbed", "plain")
    }


def traded(store, width, paired, workers, by_shard=False):
    hosts = Hosts(width, paired=paired, workers=workers)
    halves = halves_of(width)

    def act(group, rank):
        exchange = Exchange(group if workers > 1 else Alone(), hosts, rank, [f"worker {r}" for r in range(workers)])
        mine = {half: vector.clone() for half, vector in halves.items() if hosts.of(*half) == rank}
        return exchange.means(0, ["perturbed", "plain"], mine, lambda: torch.empty(SIZE), by_shard=by_shard)

    return hosts, halves, together(store, workers, act)


@pytest.mark.parametrize(("width", "paired", "workers"), CASES)
def test_means_are_those_of_one_worker_bit_for_bit(store, width, paired, workers):
    _, halves, results = traded(store, width, paired, workers)
    for kind in ("perturbed", "plain"):
        total = halves[kind, 0].clone()
        for shard in range(1, width):
            total += halves[kind, shard]
        expected = total / width
        for means in results:
            assert torch.equal(means.mean[kind], expected)


@pytest.mark.parametrize(("width", "paired", "workers"), CASES)
def test_each_perturbed_half_finds_its_shards_own_gradient(store, width, paired, workers):
    hosts, halves, results = traded(store, width, paired, workers, by_shard=True)
    for rank, means in enumerate(results):
        assert sorted(means.own) == hosts.shards("perturbed", rank)
        for shard, vector in means.own.items():
            assert torch.equal(vector, halves["plain", shard])


TENSORS = [torch.arange(5.0), torch.tensor(7), torch.empty(0)]


@pytest.mark.parametrize("root", [0, 2])
@pytest.mark.parametrize("to", [None, (1,), (0, 1, 3)])
def test_a_state_is_copied_to_those_who_need_it_and_to_nobody_else(store, root, to):
    def act(group, rank):
        exchange = Exchange(group, Hosts(2, paired=True, workers=4), rank, ["a", "b", "c", "d"])
        tensors = [tensor.clone() if rank == root else torch.full_like(tensor, -1) for tensor in TENSORS]
        exchange.spread("test", 0, tensors, root, to)
        told = exchange.tell("test", 0, {"told by": rank}, root, to) if rank == root or to is None or rank in to else 0
        exchange.meet("test", 0)
        return tensors, told

    for rank, (tensors, told) in enumerate(together(store, 4, act)):
        received = rank == root or to is None or rank in to
        assert told == ({"told by": root} if received else 0)
        for tensor, original in zip(tensors, TENSORS, strict=True):
            assert torch.equal(tensor, original if received else torch.full_like(original, -1))


def test_sums_are_in_order_of_rank_for_everyone(store):
    values = [torch.tensor([1e16, 1.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)]
    values.append(torch.tensor([-1e16, 3.0], dtype=torch.float64))

    def act(group, rank):
        exchange = Exchange(group, Hosts(3, paired=False, workers=3), rank, ["a", "b", "c"])
        return exchange.add_up("test", 0, values[rank])

    expected = torch.stack(values).sum(0)
    assert all(torch.equal(total, expected) for total in together(store, 3, act))


@pytest.mark.parametrize("paired", [True, False])
def test_between_the_two_trades_comes_once_in_each_exchange_of_means(store, paired):
    workers = 2

    def act(group, rank):
        exchange = Exchange(group, Hosts(2, paired=paired, workers=workers), rank, ["a", "b"])
        called = []
        exchange.between = lambda: called.append(1)
        mine = {half: vector for half, vector in halves_of(2).items() if exchange.hosts.of(*half) == rank}
        exchange.means(0, ["perturbed", "plain"], mine, lambda: torch.empty(SIZE))
        return called

    assert together(store, workers, act) == [[1], [1]]


def test_a_late_worker_is_named_within_the_deadline(store):
    leave = threading.Event()

    def act(group, rank):
        if rank == 1:
            leave.wait(20)
            return None
        exchange = Exchange(group, Hosts(1, paired=True, workers=2), rank, ["worker 0", "worker 1"])
        with pytest.raises(
            WorkerLate, match=r"worker 1 did not answer within 0\.5\d* s in the exchange of step 7"
        ) as caught:
            exchange.means(7, ["perturbed", "plain"], {("perturbed", 0): torch.zeros(9)}, lambda: torch.empty(9))
        leave.set()
        return caught.value

    late = together(store, 2, act, deadline_s=0.5)[0]
    assert (late.worker, late.step) == ("worker 1", 7)
    assert 0.45 <= late.waited_s < 5


def test_a_lost_worker_is_named_at_once(store):
    def act(group, rank):
        exchange = Exchange(group, Hosts(1, paired=True, workers=2), rank, ["worker 0", "worker 1"])
        exchange.add_up("greeting", 0, torch.zeros(1))  # so that the connection stands
        if rank == 1:
            group.destroy_group()
            return None
        with pytest.raises(WorkerLost, match=r"worker 1 was lost in the exchange of step 3") as caught:
            exchange.means(3, ["perturbed", "plain"], {("perturbed", 0): torch.zeros(9)}, lambda: torch.empty(9))
        return caught.value

    assert together(store, 2, act)[0].worker == "worker 1"


def test_a_group_whose_members_stay_away_fails_at_its_deadline(store):
    how = Rendezvous(store, HERE, torch.device("cpu"), deadline_s=20.0, form_s=0.5)
    began = time.monotonic()
    with pytest.raises(TransferError, match="forming of the group"):
        SampaGroup(2, 0, "nobody-else", how)
    assert time.monotonic() - began < 5


def test_a_store_that_is_gone_is_found_out_at_once():
    with socket.create_server((HERE, 0)) as server:
        address = f"{HERE}:{server.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(TransferError, match="refused"):
        reach_store(address, 20.0)
    assert time.monotonic() - began < 5


def test_those_who_wait_for_one_who_has_given_up_are_told_at_once(store):
    """One of three breaks off: the second finds out and leaves, so the third, who waits for the second, does too."""

    def act(group, rank):
        names = ["worker 0", "worker 1", "worker 2"]
        exchange = Exchange(group, Hosts(3, paired=False, workers=3), rank, names)
        exchange.meet("greeting", 0)
        if rank == 0:
            group.destroy_group()
            return None
        began, kept = time.monotonic(), None
        try:
            exchange.spread("test", 1, [torch.zeros(9)], rank - 1, [rank])
        except WorkerLost as error:
            kept = error  # its traceback must not keep the connections of this group open
        group.destroy_group()
        return kept.worker, time.monotonic() - began

    _, second, third = together(store, 3, act)
    assert (second[0], third[0]) == ("worker 0", "worker 1")
    assert max(second[1], third[1]) < 10


def test_errors_cross_processes_with_their_values():
    for error in (WorkerLate("exchange", 3, "worker 1", 0.5), WorkerLost("exchange", 3, "worker 1", "closed")):
        copy = pickle.loads(pickle.dumps(error))
        assert isinstance(copy, ExchangeError)
        assert (str(copy), copy.worker, copy.step) == (str(error), "worker 1", 3)


def test_the_standard_operations_work_too(store):
    class Options:
        root_rank, dst_rank, src_rank = 1, 1, 0

        def __init__(self):
            from ray.util.collective.types import ReduceOp

            self.reduceOp = ReduceOp.SUM

    def act(group, rank):
        mine = torch.full((4,), float(rank + 1))
        summed = mine.clone()
        group.allreduce([summed], Options())
        told = mine.clone()
        group.broadcast([told], Options())
        gathered = [torch.empty(4), torch.empty(4)]
        group.allgather([gathered], [mine])
        scattered = torch.empty(4)
        group.reducescatter([scattered], [[mine, mine * 10]], Options())
        reduced = mine.clone()
        group.reduce([reduced], Options())
        passed = mine.clone()
        (group.send if rank == 0 else group.recv)([passed], Options())
        group.barrier()
        return [t[0].item() for t in (summed, told, *gathered, scattered, reduced if rank == 1 else summed, passed)]

    assert together(store, 2, act) == [[3, 2, 1, 2, 3, 3, 1], [3, 2, 1, 2, 30, 3, 1]]
