"""How many workers have room, and how a pool's are shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampa.workers.sharing import Need, room_for, share

needs = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 4)).map(lambda pair: Need(pair[0], pair[0] + pair[1])), max_size=6
)


@pytest.mark.parametrize(
    ("worker", "node", "fit"),
    [
        ({"CPU": 1.0}, {"CPU": 2.0}, 2),
        ({"CPU": 0.1}, {"CPU": 1.0}, 10),  # 1.0 // 0.1 is 9
        ({"CPU": 0.1}, {"CPU": 0.3}, 3),  # int(0.3 / 0.1) is 2
        ({"CPU": 0.3}, {"CPU": 0.8999}, 2),
        ({"CPU": 1.0, "GPU": 0.25}, {"CPU": 8.0, "GPU": 1.0}, 4),
        ({"CPU": 1.0, "GPU": 0.0}, {"CPU": 2.0}, 2),
        ({"CPU": 1.0, "GPU": 1.0}, {"CPU": 2.0}, 0),
    ],
)
def test_as_many_workers_have_room_as_ray_would_give_it(worker, node, fit):
    assert room_for(worker, node) == fit


@given(needs, st.integers(0, 20), st.booleans())
def test_no_more_is_given_than_there_is_and_no_run_gets_a_part_of_its_least(runs, workers, spare):
    shares = share(runs, workers, spare)
    assert sum(shares) <= workers
    assert all(number == 0 or need.least <= number <= need.most for need, number in zip(runs, shares, strict=True))


@given(needs, st.integers(0, 20))
def test_nothing_stays_idle_that_a_run_which_has_begun_can_use(runs, workers):
    shares = share(runs, workers, spare=True)
    full = all(number in (0, need.most) for need, number in zip(runs, shares, strict=True))
    assert full or sum(shares) == workers


@given(needs, st.integers(0, 20), st.booleans())
def test_a_run_that_waits_is_not_overtaken(runs, workers, spare):
    shares = share(runs, workers, spare)
    assert 0 not in shares or not any(shares[shares.index(0) :])


def test_what_is_left_is_dealt_out_in_turn():
    assert share([Need(1, 4), Need(1, 2), Need(2, 3)], 7, spare=True) == [2, 2, 3]
    assert share([Need(1, 4), Need(1, 2), Need(2, 3)], 7, spare=False) == [1, 1, 2]
