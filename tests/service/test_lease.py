"""The lease: one holder at a time, another one soon after it is gone, and none that acts too long."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sampa.service import lease as lease_module
from sampa.service.lease import RECONCILER, Lease
from sampa.service.store import Store, StoreUnavailable

from .samples import wait_until

HOLDER = """
import sys, time
from sampa.service.lease import Lease
from sampa.service.store import Store
lease = Lease(Store(sys.argv[1]).leases, float(sys.argv[2]))
lease.look()
print(lease.leader == lease.holder, flush=True)
time.sleep(60)
"""


def lease_of(store: Store, within_s: float = 60.0) -> Lease:
    return Lease(store.leases, within_s)


def always() -> bool:
    return True


class TestTaking:
    def test_the_first_one_has_it_and_others_see_who_that_is(self, store: Store) -> None:
        first, second = lease_of(store), lease_of(store)
        assert not first.held
        first.look()
        second.look()
        assert (first.held, second.held) == (True, False)
        assert first.leader == second.leader == first.holder != second.holder

    def test_of_many_at_once_one_has_it(self, store: Store) -> None:
        leases = [lease_of(store) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Lease.look, leases))
        assert sum(lease.held for lease in leases) == 1
        assert {lease.leader for lease in leases} == {lease.holder for lease in leases if lease.held}

    def test_one_that_is_given_up_is_free_at_once(self, store: Store) -> None:
        first, second = lease_of(store), lease_of(store)
        first.look()
        first.give_up()
        assert not first.held
        assert first.lost
        second.look()
        assert second.held
        first.give_up()  # which is too late
        second._ends_at = time.monotonic()
        second.look()
        assert second.held

    def test_one_that_ran_out_is_taken_and_its_holder_knows_before_the_others(self, store: Store) -> None:
        first, second = lease_of(store, 0.5), lease_of(store, 0.5)
        first.look()

        def taken() -> bool:
            second.look()
            assert not (first.held and second.held)
            return second.held

        wait_until(taken)
        assert first.lost
        first.look()
        assert (first.held, first.leader) == (False, second.holder)

    @pytest.mark.parametrize(("ahead", "free"), [(3600.0, True), (61.0, True), (50.0, False)])
    def test_one_that_a_clock_set_back_would_make_last_is_free(self, store: Store, ahead: float, free: bool) -> None:
        """Its holder has died before the database's clock was set back."""
        store.leases.take(RECONCILER, "dead", ahead)
        lease = lease_of(store, within_s=37.5)  # so for 30 s
        lease.look()
        assert (lease.held, lease.leader) == (free, lease.holder if free else "dead")

    def test_it_is_renewed_when_half_of_it_is_over_and_not_written_before(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, taken = [1000.0], []
        monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
        lease, take = lease_of(store, 10.0), store.leases.take
        monkeypatch.setattr(store.leases, "take", lambda *what: taken.append(now[0]) or take(*what))
        for now[0] in (1000.0, 1001.0, 1003.9, 1004.1, 1005.0):
            lease.look()
            assert lease.held
        assert taken == [1000.0, 1004.1]
        now[0] = 1012.2
        assert not lease.held

    def test_its_time_is_reckoned_from_before_it_was_asked_for(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, take = [1000.0], store.leases.take
        monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])

        def slowly(*what: object) -> str:
            now[0] += 9.0
            return take(*what)  # type: ignore[arg-type]

        monkeypatch.setattr(store.leases, "take", slowly)
        lease = lease_of(store, 10.0)
        lease.look()
        assert not lease.held, "whoever asks next may have it by now"

    def test_a_killed_process_is_followed_by_another_within_its_time(self, store: Store, store_url: str) -> None:
        command = [sys.executable, "-c", HOLDER, store_url, "2.0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            process.send_signal(signal.SIGKILL)
        killed_at, lease = time.monotonic(), lease_of(store, 2.0)
        wait_until(lambda: lease.look() or lease.held)
        assert time.monotonic() - killed_at < 10.0


class TestKeeping:
    @pytest.fixture
    def over(self) -> Iterator[threading.Event]:
        over = threading.Event()
        yield over
        over.set()

    def test_it_stays_while_it_is_kept_and_goes_at_once_after_it(self, store: Store) -> None:
        first, second, taken = lease_of(store, 0.5), lease_of(store, 60.0), threading.Event()
        with first.kept(taken.set, always):
            assert taken.wait(30)
            renewed_until = first._ends_at + 0.8
            wait_until(lambda: first._ends_at > renewed_until)
            second.look()
            assert (first.held, second.held) == (True, False)
        second.look()
        assert (first.held, second.held) == (False, True)

    def test_another_one_has_it_as_soon_as_it_is_free(self, store: Store) -> None:
        first, second, taken = lease_of(store, 0.5), lease_of(store, 0.5), threading.Event()
        first.look()
        with second.kept(taken.set, always):
            assert taken.wait(30)
            assert first.lost

    def test_it_runs_out_when_the_store_is_away_and_comes_back_with_it(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease = lease_of(store, 0.5)
        with lease.kept(lambda: None, always):
            wait_until(lambda: lease.held)

            def away(*_: object) -> str:
                raise StoreUnavailable("postgresql://x", "gone")

            monkeypatch.setattr(store.leases, "take", away)
            wait_until(lambda: lease.lost)
            monkeypatch.undo()
            wait_until(lambda: lease.held)

    def test_one_who_may_not_lead_lets_it_run_out(self, store: Store) -> None:
        lease, other, may = lease_of(store, 0.5), lease_of(store, 0.5), [True]
        with lease.kept(lambda: None, lambda: may[0]):
            wait_until(lambda: lease.held)
            may[0] = False
            wait_until(lambda: other.look() or other.held)
            assert lease.lost

    def test_the_end_of_one_without_it_takes_it_from_nobody(self, store: Store) -> None:
        first, second = lease_of(store), lease_of(store)
        first.look()
        with second.kept(lambda: None, always):
            wait_until(lambda: bool(second.leader))
        assert store.leases.take(RECONCILER, second.holder, 60.0) == first.holder
