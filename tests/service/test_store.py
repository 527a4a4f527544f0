"""What every store does, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sampa.service.states import MOVES, State
from sampa.service.store import (
    Job,
    KeyReused,
    MoveRefused,
    NoSuchJob,
    NotNow,
    Store,
    StoreUnavailable,
    Superseded,
    TooManyWorkers,
)

from .samples import spec_of

NOBODY = "0123456789ab"


def running(store: Store) -> Job:
    store.submit(spec_of())
    job = store.claim(max_running=100)
    assert job is not None
    return store.move(job.id, State.RUNNING, attempt=job.attempt)


class TestSubmit:
    def test_a_submitted_job_is_queued_and_has_one_event(self, store: Store) -> None:
        spec = spec_of("first")
        job, created = store.submit(spec)
        assert created
        assert store.job(job.id) == job
        assert (job.name, job.state, job.spec) == ("first", State.QUEUED, spec)
        assert (job.attempt, job.restarts, job.progress, job.result) == (0, 0, {}, None)
        assert job.created_at.tzinfo is not None
        [event] = store.events(job.id)
        assert (event.seq, event.kind, event.data) == (1, "state", {"state": "QUEUED", "reason": "", "attempt": 0})

    def test_a_repeated_key_gives_the_same_job(self, store: Store) -> None:
        first, _ = store.submit(spec_of(), key="k")
        again, created = store.submit(spec_of(), key="k")
        assert not created
        assert again == first
        assert len(store.jobs()) == 1

    def test_a_key_with_another_spec_is_refused(self, store: Store) -> None:
        first, _ = store.submit(spec_of(), key="k")
        with pytest.raises(KeyReused, match=first.id):
            store.submit(spec_of(seed=7), key="k")
        assert len(store.jobs()) == 1

    def test_without_a_key_each_submit_is_a_new_job(self, store: Store) -> None:
        assert store.submit(spec_of())[0].id != store.submit(spec_of())[0].id


class TestReading:
    def test_jobs_come_newest_first_and_in_pages(self, store: Store) -> None:
        ids = [store.submit(spec_of())[0].id for _ in range(5)]
        first = store.jobs(limit=2)
        rest = store.jobs(before=(first[-1].created_at, first[-1].id))
        assert [job.id for job in [*first, *rest]] == ids[::-1]

    def test_jobs_are_filtered_by_state_and_name(self, store: Store) -> None:
        kept, _ = store.submit(spec_of("a"))
        other, _ = store.submit(spec_of("b"))
        store.cancel(other.id)
        assert [job.id for job in store.jobs(states=[State.QUEUED])] == [kept.id]
        assert [job.id for job in store.jobs(name="b")] == [other.id]
        assert store.jobs(states=[State.QUEUED], name="b") == []

    def test_events_are_read_after_a_number_by_kind_and_in_parts(self, store: Store) -> None:
        job = running(store)
        store.append(job.id, [("log", {"line": str(n)}) for n in range(5)], attempt=1)
        assert [event.seq for event in store.events(job.id, after=3)] == [4, 5, 6, 7, 8]
        assert [event.seq for event in store.events(job.id, after=4, limit=2)] == [5, 6]
        assert [event.seq for event in store.events(job.id, kinds=("state",))] == [1, 2, 3]
        assert store.events(job.id, after=8) == []

    def test_transitions_tell_each_state_with_its_reason_and_time(self, store: Store) -> None:
        job, _ = store.submit(spec_of())
        store.cancel(job.id, reason="no longer needed")
        queued, cancelled = store.transitions(job.id)
        assert (queued["state"], queued["reason"]) == ("QUEUED", "")
        assert (cancelled["state"], cancelled["reason"]) == ("CANCELLED", "no longer needed")
        assert queued["time"] <= cancelled["time"]

    @pytest.mark.parametrize(
        "ask",
        [
            lambda store: store.job(NOBODY),
            lambda store: store.events(NOBODY),
            lambda store: store.transitions(NOBODY),
            lambda store: store.move(NOBODY, State.STARTING),
            lambda store: store.cancel(NOBODY),
            lambda store: store.pause(NOBODY),
            lambda store: store.resume(NOBODY),
            lambda store: store.resize(NOBODY, 1),
            lambda store: store.append(NOBODY, [("log", {})], attempt=1),
        ],
    )
    def test_an_unknown_job_is_named(self, store: Store, ask: Callable[[Store], object]) -> None:
        with pytest.raises(NoSuchJob, match=NOBODY):
            ask(store)


class TestMove:
    def test_a_move_changes_the_state_and_writes_its_event(self, store: Store) -> None:
        before = running(store)
        job = store.move(before.id, State.FAILED, reason="the loss became NaN at step 3", attempt=1)
        assert (job.state, job.reason) == (State.FAILED, "the loss became NaN at step 3")
        assert job.version == before.version + 1
        assert job.started_at is not None
        assert job.ended_at is not None
        assert store.events(job.id)[-1].data == {"state": "FAILED", "reason": job.reason, "attempt": 1}

    def test_a_result_comes_back(self, store: Store) -> None:
        job = store.move(running(store).id, State.SUCCEEDED, result={"metrics": {"accuracy": 0.9}})
        assert store.job(job.id).result == {"metrics": {"accuracy": 0.9}}

    @pytest.mark.parametrize("to", [State.RUNNING, State.SUCCEEDED, State.FAILED, State.PAUSING, State.CANCELLING])
    def test_a_move_that_the_table_lacks_is_refused_and_changes_nothing(self, store: Store, to: State) -> None:
        job, _ = store.submit(spec_of())
        assert to not in MOVES[State.QUEUED]
        with pytest.raises(MoveRefused, match=f"is QUEUED and can't become {to}") as refusal:
            store.move(job.id, to)
        assert refusal.value.current is State.QUEUED
        assert store.job(job.id) == job
        assert len(store.events(job.id)) == 1

    def test_a_move_of_an_old_attempt_is_refused(self, store: Store) -> None:
        job = running(store)
        store.move(job.id, State.STARTING, attempt=1, next_attempt=True)
        with pytest.raises(Superseded, match=r"attempt 1 .* at attempt 2"):
            store.move(job.id, State.RUNNING, attempt=1)

    def test_the_first_attempt_is_no_restart_and_a_lost_cluster_is_counted_apart(self, store: Store) -> None:
        job = running(store)
        assert (job.attempt, job.restarts, job.losses) == (1, 0, 0)
        job = store.move(job.id, State.STARTING, next_attempt=True)
        assert (job.attempt, job.restarts, job.losses) == (2, 1, 0)
        job = store.move(job.id, State.STARTING, next_attempt=True, cluster_lost=True)
        assert (job.attempt, job.restarts, job.losses) == (3, 1, 1)

    def test_the_start_time_is_that_of_the_first_runner(self, store: Store) -> None:
        first = running(store)
        store.move(first.id, State.STARTING, next_attempt=True)
        assert store.move(first.id, State.RUNNING).started_at == first.started_at


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, store: Store) -> None:
        job, _ = store.submit(spec_of())
        assert store.cancel(job.id).state is State.CANCELLED

    def test_a_running_job_is_cancelled_by_way_of_its_runner(self, store: Store) -> None:
        assert store.cancel(running(store).id).state is State.CANCELLING

    def test_cancelling_again_changes_nothing(self, store: Store) -> None:
        job = store.cancel(running(store).id)
        assert store.cancel(job.id) == job
        ended = store.move(job.id, State.CANCELLED)
        assert store.cancel(job.id) == ended

    def test_a_finished_job_stays_as_it_is(self, store: Store) -> None:
        job = store.move(running(store).id, State.SUCCEEDED)
        assert store.cancel(job.id) == job

    def test_a_cancelled_job_can_not_succeed(self, store: Store) -> None:
        job = store.cancel(running(store).id)
        with pytest.raises(MoveRefused):
            store.move(job.id, State.SUCCEEDED, attempt=1)


def ended(store: Store) -> Job:
    return store.move(running(store).id, State.SUCCEEDED)


def cancelling(store: Store) -> Job:
    return store.cancel(running(store).id)


def pausing(store: Store) -> Job:
    return store.pause(running(store).id)


class TestPauseAndResume:
    def test_a_queued_job_rests_at_once_and_is_not_claimed(self, store: Store) -> None:
        job, _ = store.submit(spec_of())
        assert store.pause(job.id).state is State.PAUSED
        assert store.claim(max_running=2) is None
        assert store.resume(job.id).state is State.QUEUED
        claimed = store.claim(max_running=2)
        assert claimed is not None
        assert (claimed.id, claimed.attempt) == (job.id, 1)

    def test_a_running_job_is_paused_by_way_of_its_runner_and_goes_on_as_the_next_attempt(self, store: Store) -> None:
        job = pausing(store)
        assert (job.state, job.reason) == (State.PAUSING, "paused by request")
        store.move(job.id, State.PAUSED, attempt=1)
        assert store.resume(job.id).state is State.QUEUED
        claimed = store.claim(max_running=2)
        assert claimed is not None
        assert (claimed.attempt, claimed.restarts, claimed.losses) == (2, 0, 0), "a pause is no restart"

    def test_asking_again_changes_nothing(self, store: Store) -> None:
        job = pausing(store)
        assert store.pause(job.id) == job
        paused = store.move(job.id, State.PAUSED)
        assert store.pause(job.id) == paused
        queued = store.resume(job.id)
        assert store.resume(job.id) == queued
        starting = store.claim(max_running=2)
        assert store.resume(job.id) == starting
        going = store.move(job.id, State.RUNNING)
        assert store.resume(job.id) == going

    def test_a_paused_job_is_cancelled_at_once(self, store: Store) -> None:
        job = store.submit(spec_of())[0]
        store.pause(job.id)
        assert store.cancel(job.id).state is State.CANCELLED

    @pytest.mark.parametrize(
        ("make", "act", "words"),
        [
            (ended, Store.pause, "is SUCCEEDED and can't be paused; it has ended"),
            (ended, Store.resume, "is SUCCEEDED and can't be resumed; it has ended"),
            (cancelling, Store.pause, "is CANCELLING and can't be paused; it ends as CANCELLED"),
            (cancelling, Store.resume, "is CANCELLING and can't be resumed; it ends as CANCELLED"),
            (pausing, Store.resume, "is PAUSING and can't be resumed; wait until it is PAUSED"),
        ],
    )
    def test_what_its_state_does_not_allow_is_refused_and_changes_nothing(
        self, store: Store, make: Callable[[Store], Job], act: Callable[[Store, str], Job], words: str
    ) -> None:
        job = make(store)
        with pytest.raises(NotNow, match=words):
            act(store, job.id)
        assert store.job(job.id) == job


class TestResize:
    def test_a_new_number_is_kept_and_has_one_event(self, store: Store) -> None:
        before = running(store)
        assert (before.workers, before.wanted_workers) == (None, 2)
        job = store.resize(before.id, 1)
        assert (job.workers, job.wanted_workers, job.state) == (1, 1, State.RUNNING)
        assert job.version == before.version + 1
        event = store.events(job.id)[-1]
        assert (event.seq, event.kind, event.data) == (job.last_event, "resize", {"workers": 1})
        assert store.resize(job.id, 1) == job, "the same once more is no change"
        store.resize(job.id, 2)
        assert [event.data["workers"] for event in store.events(job.id, kinds=("resize",))] == [1, 2]

    def test_what_a_job_has_anyway_is_no_change(self, store: Store) -> None:
        job = running(store)
        assert store.resize(job.id, 2) == job

    def test_it_holds_in_every_state_that_goes_on_and_stays(self, store: Store) -> None:
        job = store.submit(spec_of())[0]
        assert store.resize(job.id, 1).state is State.QUEUED
        store.pause(job.id)
        assert store.resize(job.id, 2).state is State.PAUSED
        store.resume(job.id)
        store.claim(max_running=1)
        assert store.resize(job.id, 1).state is State.STARTING
        store.pause(job.id)
        assert store.resize(job.id, 2).state is State.PAUSING
        store.move(job.id, State.PAUSED)
        assert store.job(job.id).workers == 2

    def test_more_than_can_be_of_use_are_refused(self, store: Store) -> None:
        job = store.submit(spec_of(pairs=2, workers={"max": 1}))[0]
        assert store.resize(job.id, 4).workers == 4, "the spec's own max is only where it begins"
        with pytest.raises(TooManyWorkers, match="at most 2 x pairs = 4"):
            store.resize(job.id, 5)
        serial = store.submit(spec_of(method={"name": "sgd"}, shards=4))[0]
        with pytest.raises(TooManyWorkers, match="at most shards = 4"):
            store.resize(serial.id, 5)

    @pytest.mark.parametrize("make", [ended, cancelling])
    def test_a_job_that_ends_is_not_resized(self, store: Store, make: Callable[[Store], Job]) -> None:
        job = make(store)
        with pytest.raises(NotNow, match="can't be resized"):
            store.resize(job.id, 1)
        assert store.job(job.id) == job


class TestClaim:
    def test_the_oldest_is_claimed_first_and_no_more_than_allowed(self, store: Store) -> None:
        ids = [store.submit(spec_of())[0].id for _ in range(3)]
        claimed = [store.claim(max_running=2) for _ in range(3)]
        assert [job and job.id for job in claimed] == [ids[0], ids[1], None]
        store.cancel(ids[0])
        assert store.claim(max_running=2) is None  # its runner may still be there
        store.move(ids[0], State.CANCELLED)
        third = store.claim(max_running=2)
        assert third is not None
        assert (third.id, third.state, third.attempt, third.launched) == (ids[2], State.STARTING, 1, False)

    def test_a_launch_is_noted_for_its_attempt_only(self, store: Store) -> None:
        job = running(store)
        store.mark_launched(job.id, attempt=2)
        assert not store.job(job.id).launched
        store.mark_launched(job.id, attempt=1)
        assert store.job(job.id).launched
        assert not store.move(job.id, State.STARTING, next_attempt=True).launched


class TestAppend:
    def test_numbers_go_on_and_progress_is_replaced(self, store: Store) -> None:
        job = running(store)
        last = store.append(job.id, [("metrics", {"step": 1}), ("log", {"line": "x"})], attempt=1, progress={"step": 1})
        changed = store.job(job.id)
        assert last == changed.last_event == job.last_event + 2
        assert changed.progress == {"step": 1}
        assert changed.version == job.version + 1
        assert store.append(job.id, [("log", {"line": "y"})], attempt=1) == last + 1
        assert store.job(job.id).progress == {"step": 1}

    def test_an_old_attempt_may_not_write(self, store: Store) -> None:
        job = running(store)
        store.move(job.id, State.STARTING, next_attempt=True)
        with pytest.raises(Superseded, match="should exit"):
            store.append(job.id, [("log", {})], attempt=1)

    def test_nothing_is_written_to_a_job_that_has_ended(self, store: Store) -> None:
        job = store.move(running(store).id, State.SUCCEEDED)
        with pytest.raises(Superseded, match="SUCCEEDED"):
            store.append(job.id, [("log", {})], attempt=1)
        assert store.job(job.id) == job

    def test_a_number_that_is_not_finite_becomes_null(self, store: Store) -> None:
        job = running(store)
        store.append(job.id, [("metrics", {"loss": float("nan"), "each": [1.0, float("inf")]})], attempt=1)
        assert store.events(job.id)[-1].data == {"loss": None, "each": [1.0, None]}

    def test_times_are_aware_and_in_utc(self, store: Store) -> None:
        before = datetime.now(UTC)
        [event] = store.events(store.submit(spec_of())[0].id)
        assert before <= event.time <= datetime.now(UTC)


def test_a_store_without_its_tables_is_not_reachable(store_url: str) -> None:
    store = Store(store_url)
    assert not store.reachable()
    store.migrate()
    assert store.reachable()
    store.close()


def test_a_store_that_is_no_database_is_said_to_be_unavailable(tmp_path: Path) -> None:
    (tmp_path / "sampa.db").mkdir()
    store = Store(f"sqlite:///{tmp_path}/sampa.db")
    with pytest.raises(StoreUnavailable, match="nothing was changed"):
        store.job(NOBODY)
    store.close()


class TestInterrupt:
    def test_it_is_noted_once_and_taken_back_once_and_the_state_stays(self, store: Store) -> None:
        job = running(store)
        assert [store.interrupt(job.id, 1, "Ray is away") for _ in range(2)] == [True, False]
        away = store.job(job.id)
        assert (away.state, away.reason, away.version) == (State.RUNNING, "Ray is away", job.version + 1)
        assert away.interrupted_at is not None
        assert [store.reconnect(job.id, 1, "it is back") for _ in range(2)] == [True, False]
        back = store.job(job.id)
        assert (back.state, back.reason, back.interrupted_at) == (State.RUNNING, "", None)
        told = [(event.kind, event.data) for event in store.events(job.id)[-2:]]
        assert told == [
            ("interrupted", {"reason": "Ray is away", "attempt": 1}),
            ("reconnected", {"reason": "it is back", "attempt": 1}),
        ]

    def test_a_move_ends_it(self, store: Store) -> None:
        job = running(store)
        store.interrupt(job.id, 1, "Ray is away")
        assert store.move(job.id, State.STARTING, attempt=1, next_attempt=True).interrupted_at is None

    def test_an_old_attempt_or_one_that_has_ended_is_not_interrupted(self, store: Store) -> None:
        job = running(store)
        assert not store.interrupt(job.id, 2, "Ray is away")
        ended = store.move(job.id, State.SUCCEEDED, attempt=1)
        assert not store.interrupt(job.id, 1, "Ray is away")
        assert store.job(job.id) == ended


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_other_kinds_of_stores_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"neither sqlite.* nor postgresql"):
        Store(url)
