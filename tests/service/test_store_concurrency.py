"""Many writers at once, and writers that are killed: no event is lost, doubled or out of place."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampa.service.states import OCCUPYING, REOPENED, Kind, State, is_final, moves_of
from sampa.service.store import Changed, Job, MoveRefused, NotNow, Store, StoreError, Superseded, Sweep
from sqlalchemy.exc import StatementError

from .samples import added_trial, begun_trial, running_sweep, spec_of, sweep_spec_of, wait_until

APPENDER = """
import sys
from sampa.service.store import Store
store, job_id, writer = Store(sys.argv[1]), sys.argv[2], sys.argv[3]
for n in range(int(sys.argv[4])):
    store.append(job_id, [("log", {"writer": writer, "n": n, "part": part}) for part in range(3)], attempt=1)
"""

MIGRATOR = """
import sys
from sampa.service.store import Store
sys.stdin.readline()
Store(sys.argv[1]).migrate()
"""


def at_once(*acts: Callable[[], object]) -> list[object]:
    """Do all in threads that start together; return what each returned or which store error it raised."""
    barrier = threading.Barrier(len(acts))

    def one(act: Callable[[], object]) -> object:
        barrier.wait(10)
        try:
            return act()
        except StoreError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(one, acts))


def start(store: Store) -> Job:
    store.submit(spec_of())
    job = store.claim(max_running=100)
    assert job is not None
    return job


def assert_whole(store: Store, some_id: str) -> None:
    """Events are 1, 2, 3 ... to the last one, and each state follows from the one before by the tables."""
    record, events = store.record(some_id), store.events(some_id, limit=100_000)
    assert [event.seq for event in events] == list(range(1, record.last_event + 1))
    states = [State(event.data["state"]) for event in events if event.kind == "state"]
    assert states[0] is State.QUEUED
    assert states[-1] is record.state
    kind = Kind.SWEEP if isinstance(record, Sweep) else Kind.TRIAL if record.sweep_id else Kind.JOB
    again = {(end, State.QUEUED) for end in REOPENED[kind]}
    assert all(after in moves_of(kind)[before] or (before, after) in again for before, after in pairwise(states))
    assert kind is not Kind.JOB or [state for state in states if is_final(state)] in ([], [record.state])


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, text=True)


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    codes = []
    for process in processes:
        with process:
            codes.append(process.wait(60))
    return codes


def test_threads_that_append_to_one_job_leave_no_gap(store: Store) -> None:
    job = start(store)
    batches = [[("log", {"thread": t, "n": n}) for n in range(5)] for t in range(8)]
    at_once(*[lambda b=batch: [store.append(job.id, [e], attempt=1) for e in b] for batch in batches])
    assert_whole(store, job.id)
    seen = [(event.data["thread"], event.data["n"]) for event in store.events(job.id, kinds=("log",))]
    assert sorted(seen) == [(t, n) for t in range(8) for n in range(5)]
    assert all([n for u, n in seen if u == t] == list(range(5)) for t in range(8))  # each writer's own order is kept


def test_processes_that_append_to_one_job_leave_no_gap(store: Store, store_url: str) -> None:
    job = start(store)
    assert ended([spawn(APPENDER, store_url, job.id, str(w), "20") for w in range(3)]) == [0, 0, 0]
    assert_whole(store, job.id)
    assert len(store.events(job.id, kinds=("log",))) == 3 * 20 * 3


def test_a_writer_that_is_killed_leaves_whole_batches_and_no_gap(store: Store, store_url: str) -> None:
    job = start(store)
    writer = spawn(APPENDER, store_url, job.id, "w", "100000")
    wait_until(lambda: store.job(job.id).last_event > 100)
    writer.send_signal(signal.SIGKILL)
    assert ended([writer]) == [-signal.SIGKILL]
    assert_whole(store, job.id)
    lines = store.events(job.id, kinds=("log",), limit=100_000)
    assert len(lines) % 3 == 0
    assert [(e.data["n"], e.data["part"]) for e in lines] == [(i // 3, i % 3) for i in range(len(lines))]
    store.append(job.id, [("log", {})], attempt=1)  # nothing is locked
    assert_whole(store, job.id)


def test_of_a_cancel_and_a_finish_one_wins(store: Store) -> None:
    ends = set()
    for _ in range(20):
        job = start(store)
        store.move(job.id, State.RUNNING)
        finish, cancel = at_once(
            lambda job=job: store.move(job.id, State.SUCCEEDED, attempt=1), lambda job=job: store.cancel(job.id)
        )
        end = store.job(job.id).state
        assert isinstance(cancel, Job)
        assert cancel.state is end
        assert isinstance(finish, MoveRefused) == (end is State.CANCELLING)
        assert_whole(store, job.id)
        ends.add(end)
    assert ends <= {State.CANCELLING, State.SUCCEEDED}


def test_of_a_pause_and_a_finish_one_wins_and_a_resize_at_once_is_kept(store: Store) -> None:
    for _ in range(10):
        job = start(store)
        store.move(job.id, State.RUNNING)
        finish, pause, resize, again = at_once(
            lambda job=job: store.move(job.id, State.SUCCEEDED, attempt=1),
            lambda job=job: store.pause(job.id),
            lambda job=job: store.resize(job.id, 1),
            lambda job=job: store.resize(job.id, 1),
        )
        assert isinstance(finish, Job), "a run that finishes while it is to pause has finished"
        assert isinstance(pause, Job | NotNow)
        assert store.job(job.id).state is State.SUCCEEDED
        kept = isinstance(resize, Job) or isinstance(again, Job)
        assert len(store.events(job.id, kinds=("resize",))) == int(kept), "two that ask for the same are one change"
        assert_whole(store, job.id)


def test_of_a_pause_and_a_cancel_the_cancel_wins(store: Store) -> None:
    for _ in range(10):
        job = start(store)
        pause, cancel = at_once(lambda job=job: store.pause(job.id), lambda job=job: store.cancel(job.id))
        assert isinstance(pause, Job | NotNow)
        assert isinstance(cancel, Job)
        assert store.job(job.id).state is State.CANCELLING
        assert_whole(store, job.id)


def test_one_key_submitted_many_times_at_once_is_one_job(store: Store) -> None:
    answers = at_once(*[lambda: store.submit(spec_of(), key="k")] * 8)
    assert sum(created for _, created in answers) == 1  # type: ignore[misc]
    assert len(store.jobs()) == 1


def test_two_submits_at_once_are_two_jobs(store: Store) -> None:
    at_once(*[lambda: store.submit(spec_of())] * 2)
    assert len(store.jobs()) == 2


def test_claims_at_once_take_each_job_once_and_no_more_than_allowed(store: Store) -> None:
    for _ in range(6):
        store.submit(spec_of())
    claimed = [job.id for job in at_once(*[lambda: store.claim(max_running=4)] * 8) if isinstance(job, Job)]
    assert len(claimed) == len(set(claimed)) == 4


def test_processes_that_migrate_at_once_do_it_once(store_url: str) -> None:
    processes = [spawn(MIGRATOR, store_url) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert ended(processes) == [0, 0]
    store = Store(store_url)
    assert store.reachable()
    store.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_whatever_is_done_at_once_the_sequence_stays_whole(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    job, _ = store.submit(spec_of())

    def something() -> Callable[[], object]:
        attempt, to = chance.randint(1, 3), chance.choice(list(State))
        again = to is State.STARTING
        return chance.choice([
            lambda: store.append(job.id, [("log", {"line": "x"})] * chance.randint(1, 4), attempt=attempt),
            lambda: store.move(job.id, to, next_attempt=again, attempt=None if again else attempt),
            lambda: store.claim(max_running=100),
            lambda: store.cancel(job.id) if chance.random() < 0.2 else store.job(job.id),
            lambda: store.pause(job.id),
            lambda: store.resume(job.id),
            lambda: store.resize(job.id, chance.randint(1, 3)),
        ])  # fmt: skip

    for _ in range(6):
        at_once(*[something() for _ in range(4)])
    assert_whole(store, job.id)


def test_of_a_trials_begin_and_a_restart_of_its_sweep_the_trial_waits_in_the_end(store: Store) -> None:
    for _ in range(10):
        sweep = running_sweep(store)
        trial = added_trial(store, sweep)
        begun, restarted = at_once(
            lambda sweep=sweep, trial=trial: store.sweeps.begin_trial(trial.id, sweep.attempt),
            lambda sweep=sweep: store.move(sweep.id, State.STARTING, attempt=1, next_attempt=True),
        )
        assert isinstance(restarted, Sweep)
        assert store.job(trial.id).state is State.QUEUED
        if isinstance(begun, Job):
            with pytest.raises(Superseded):
                store.append(trial.id, [("log", {})], attempt=begun.attempt)
        else:
            assert isinstance(begun, Superseded)
        assert_whole(store, trial.id)


def test_one_trial_begun_twice_at_once_belongs_to_one_of_the_two(store: Store) -> None:
    sweep = running_sweep(store)
    trial = added_trial(store, sweep)
    both = at_once(*[lambda: store.sweeps.begin_trial(trial.id, sweep.attempt)] * 2)
    attempts = sorted(one.attempt for one in both if isinstance(one, Job))
    assert attempts == [1, 2]
    written = at_once(*[lambda a=a: store.append(trial.id, [("log", {"a": a})], attempt=a) for a in attempts])
    assert isinstance(written[0], Superseded)
    assert [event.data["a"] for event in store.events(trial.id, kinds=("log",))] == [2]


def test_one_trial_added_many_times_at_once_is_one_trial(store: Store) -> None:
    sweep = running_sweep(store)
    added = at_once(*[lambda: added_trial(store, sweep)] * 8)
    assert {trial.id for trial in added if isinstance(trial, Job)} == {store.sweeps.trial(sweep.id, 1).id}
    assert len(store.sweeps.trials(sweep.id)) == 1


def test_of_an_extension_and_an_end_neither_is_lost(store: Store) -> None:
    for _ in range(10):
        sweep = running_sweep(store)
        end, extended = at_once(
            lambda sweep=sweep: store.move(sweep.id, State.SUCCEEDED, attempt=1, version=sweep.version),
            lambda sweep=sweep: store.sweeps.extend(sweep.id, trials=8),
        )
        assert isinstance(extended, Sweep)
        now = store.sweeps.get(sweep.id)
        assert (now.state, now.spec.trials) == (State.RUNNING if isinstance(end, Changed) else State.QUEUED, 8)
        assert_whole(store, sweep.id)


def test_of_a_trials_end_and_its_sweeps_end_one_wins(store: Store) -> None:
    for _ in range(10):
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        done, _ = at_once(
            lambda trial=trial: store.move(trial.id, State.SUCCEEDED, attempt=1),
            lambda sweep=sweep: store.move(sweep.id, State.FAILED, attempt=1),
        )
        assert store.job(trial.id).state is (State.SUCCEEDED if isinstance(done, Job) else State.CANCELLED)
        assert_whole(store, trial.id)


def test_claims_at_once_take_jobs_and_sweeps_once(store: Store) -> None:
    for _ in range(3):
        store.submit(spec_of())
        store.sweeps.submit(sweep_spec_of())
    claimed = at_once(*[lambda: store.claim(max_running=4)] * 8)
    assert len({one.id for one in claimed if isinstance(one, Job | Sweep)}) == 4
    assert sum(one is not None for one in claimed) == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_whatever_is_done_to_a_sweep_at_once_its_sequences_stay_whole(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    sweep, _ = store.sweeps.submit(sweep_spec_of())
    ids: list[str] = []

    def something() -> Callable[[], object]:
        attempt, to, number = chance.randint(1, 3), chance.choice(list(State)), chance.randint(0, 3)
        some_id, more = chance.choice([sweep.id, *ids]), chance.randint(4, 9)
        return chance.choice([
            lambda: ids.append(added_trial(store, dataclasses.replace(sweep, attempt=attempt), number).id),
            lambda: store.sweeps.begin_trial(some_id, attempt),
            lambda: store.move(some_id, to, attempt=attempt),
            lambda: store.append(some_id, [("log", {"line": "x"})], attempt=attempt),
            lambda: store.claim(max_running=100),
            lambda: store.sweeps.pause(sweep.id),
            lambda: store.sweeps.resume(sweep.id),
            lambda: store.sweeps.extend(sweep.id, trials=more),
            lambda: store.sweeps.retry(sweep.id),
            lambda: store.sweeps.cancel(sweep.id) if number == 0 else store.sweeps.get(sweep.id),
        ])  # fmt: skip

    for _ in range(8):
        at_once(*[something() for _ in range(4)])
    for some_id in {sweep.id, *ids}:
        assert_whole(store, some_id)
    if store.sweeps.get(sweep.id).state not in OCCUPYING:
        assert not store.sweeps.trials(sweep.id, states=[State.STARTING, State.RUNNING]), "nobody could be at work"


def test_a_superseded_writer_adds_nothing_however_it_races(store: Store) -> None:
    job = start(store)
    appended, restarted = at_once(
        lambda: [store.append(job.id, [("log", {"n": n})], attempt=1) for n in range(50)],
        lambda: store.move(job.id, State.STARTING, attempt=1, next_attempt=True),
    )
    assert isinstance(restarted, Job)
    events = store.events(job.id)
    restart = max(event.seq for event in events if event.kind == "state")
    late = [event for event in events if event.seq > restart]
    assert late == []
    assert isinstance(appended, Superseded | list)


def test_a_batch_is_written_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    job = start(store)
    with pytest.raises((StatementError, TypeError), match="not JSON serializable"):
        store.append(job.id, [("log", {"line": "fine"}), ("log", {"line": tmp_path})], attempt=1)
    assert store.job(job.id) == job
