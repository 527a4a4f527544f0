"""Data order, schedules and assignment: pure functions, checked for every input or against torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampa.workers.data import Batches, stream
from sampa.workers.pairs import Hosts
from sampa.workers.schedules import Schedule


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 100), st.booleans())
def test_an_epochs_batches_hold_each_row_at_most_once(width, per_shard, batches, seed, shuffle):
    size = width * per_shard
    data = Batches(size * batches + size - 1, batch_size=size, width=width, seed=seed, shuffle=shuffle)
    rows = [row for t in range(data.per_epoch) for i in range(width) for row in data.shard(t, i).tolist()]
    assert len(rows) == len(set(rows)) == size * batches


def test_the_order_is_a_function_of_seed_and_epoch():
    one, two = (Batches(64, batch_size=16, width=1, seed=1, shuffle=True) for _ in range(2))
    for t in (9, 3, 0, 5):
        assert torch.equal(one.shard(t, 0), two.shard(t, 0))
    assert not torch.equal(one.shard(0, 0), one.shard(4, 0))
    assert not torch.equal(one.shard(0, 0), Batches(64, batch_size=16, width=1, seed=2, shuffle=True).shard(0, 0))


def test_without_shuffling_batch_t_is_rows_t_times_batch_size_and_wraps_around():
    data = Batches(10, batch_size=4, width=2, seed=0, shuffle=False)
    assert [data.shard(t, i).tolist() for t in range(3) for i in range(2)] == [
        [0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 1],
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), unique=True, min_size=2, max_size=9)
)
def test_different_streams_have_different_seeds(coordinates):
    assert len({stream(*each) for each in coordinates}) == len(coordinates)


@given(st.integers(1, 8), st.booleans(), st.data())
def test_halves_are_dealt_out_evenly(width, paired, data):
    workers = data.draw(st.integers(1, width * (2 if paired else 1)))
    hosts = Hosts(width, paired=paired, workers=workers)
    kinds = ("perturbed", "plain") if paired else ("plain",)
    loads = [sum(len(hosts.shards(kind, rank)) for kind in kinds) for rank in range(workers)]
    assert sum(loads) == width * len(kinds)
    assert max(loads) - min(loads) <= 1
    if not paired:
        assert all(hosts.of("perturbed", shard) == hosts.of("plain", shard) for shard in range(width))


def test_workers_beyond_the_halves_host_nothing():
    hosts = Hosts(1, paired=True, workers=3)
    hosted = [sum(len(hosts.shards(kind, rank)) for kind in ("perturbed", "plain")) for rank in range(3)]
    assert sorted(hosted) == [0, 1, 1]


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert Schedule(name="cosine").factor(step, 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
def test_a_factor_stays_between_zero_and_one(name, warmup, steps, final):
    schedule = Schedule(name=name, warmup_steps=warmup, final=final)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    rise = factors[: min(warmup, steps)]
    assert rise == sorted(rise)
