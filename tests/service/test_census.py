"""The census: each number is that of the store, and each event is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sampa.service import census
from sampa.service.census import Costs, Numbers, Pace
from sampa.service.states import Kind, State
from sampa.service.store import Store
from sampa.service.tables import events, jobs
from sqlalchemy import event, update

from .samples import begun_trial, submitted


def running(store: Store, **changes: Any) -> str:
    job_id = submitted(store, **changes)
    store.move(job_id, State.STARTING, next_attempt=True)
    store.move(job_id, State.RUNNING)
    return job_id


def elastic(cause: str, seconds: float | None = 0.0, steps: int = 0) -> tuple[str, dict[str, Any]]:
    return "elastic", {"cause": cause, "recovery_seconds": seconds, "steps_lost": steps}


def set_times(store: Store, job_id: str, **times: datetime) -> None:
    with store._write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**times))


def test_an_empty_store_has_none_of_anything(store: Store) -> None:
    numbers = store.census.take()
    assert numbers == Numbers({}, [], 0, 0, [], {})


def test_all_kinds_are_counted_by_state(store: Store) -> None:
    trial = begun_trial(store)
    running(store)
    submitted(store)
    submitted(store)
    assert trial.state is State.RUNNING
    assert store.census.take().states == {
        (Kind.JOB, State.QUEUED): 2,
        (Kind.JOB, State.RUNNING): 1,
        (Kind.SWEEP, State.RUNNING): 1,
        (Kind.TRIAL, State.RUNNING): 1,
    }


def test_the_wait_is_from_the_submission_to_the_first_start(store: Store) -> None:
    begun_trial(store)
    began = datetime(2026, 11, 24, tzinfo=UTC)
    job_id = running(store)
    for some_id, wait_s in ((job_id, 90.0), (store.sweeps.list()[0].id, 3.0)):
        set_times(store, some_id, created_at=began, started_at=began + timedelta(seconds=wait_s))
    assert sorted(store.census.take().waits_s) == [3.0, 90.0], "the trial waits in its sweep"
    store.move(job_id, State.STARTING, next_attempt=True)
    store.move(job_id, State.RUNNING)
    assert sorted(store.census.take().waits_s) == [3.0, 90.0]


def test_the_oldest_is_the_one_that_was_queued_first_or_queued_again(store: Store) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    job_id = submitted(store)
    set_times(store, job_id, created_at=hour_ago)
    assert 3600 <= store.census.take().oldest_s < 3660
    store.resize(job_id, 1)
    assert store.census.take().oldest_s < 60, "its state event is of just now"
    store.pause(job_id)
    assert store.census.take().oldest_s == 0
    store.resume(job_id)
    assert 0 < store.census.take().oldest_s < 60


def test_the_oldest_that_is_starting_is_the_one_that_entered_that_state_first(store: Store) -> None:
    first, second = submitted(store), submitted(store)
    begun_trial(store)
    assert store.census.take().starting_s == 0, "a trial waits in its sweep"
    for job_id in (first, second):
        store.move(job_id, State.STARTING, next_attempt=True)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with store._write() as connection:
        connection.execute(update(events).where(events.c.job_id == second).values(time=hour_ago))
    numbers = store.census.take()
    assert 3600 <= numbers.starting_s < 3660
    assert numbers.oldest_s == 0
    store.move(second, State.RUNNING)
    assert 0 < store.census.take().starting_s < 60


def test_only_what_runs_has_a_pace(store: Store) -> None:
    first, second = running(store), running(store)
    trial = begun_trial(store)
    progress = {"step": 7, "seconds_per_step": 0.25, "exchange_seconds": 0.1}
    store.append(first, [], attempt=1, progress=progress)
    expected = {
        first: Pace(first, 7, 4.0, 256.0, 0.1),
        second: Pace(second, None, None, None, None),
        trial.id: Pace(trial.id, None, None, None, None),
    }
    assert {pace.id: pace for pace in store.census.take().running} == expected
    store.move(first, State.SUCCEEDED)
    assert first not in {pace.id for pace in store.census.take().running}


def test_changes_of_workers_add_up_by_cause(store: Store, store_url: str) -> None:
    first, second = running(store), begun_trial(store).id
    store.append(first, [elastic("start"), elastic("loss", 0.5, 1), elastic("loss", 0.25, 1)], attempt=1)
    assert store.census.take().elastic == {"start": Costs(1, 0.0, 0), "loss": Costs(2, 0.75, 2)}
    store.append(second, [elastic("loss", 1.0), elastic("join", None)], attempt=1)
    store.append(first, [("log", {"line": "x"})], attempt=1)
    assert store.census.take().elastic == {
        "start": Costs(1, 0.0, 0),
        "loss": Costs(3, 1.75, 2),
        "join": Costs(1, 0.0, 0),
    }
    other = Store(store_url)
    assert other.census.take() == replace(store.census.take(), oldest_s=0.0), "every process says the same"
    other.close()


@pytest.fixture
def reads(store: Store) -> Iterator[list[str]]:
    """Give the statements that are made."""
    made: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        made.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    yield made
    event.remove(store._engine, "before_cursor_execute", note)


def test_events_are_read_only_of_what_has_changed(store: Store, reads: list[str]) -> None:
    for _ in range(3):
        store.append(running(store), [elastic("start")], attempt=1)
    store.census.take()
    reads.clear()
    store.census.take()
    assert not [statement for statement in reads if "events.data" in statement]
    assert len([statement for statement in reads if statement.startswith("SELECT")]) == 4


def test_of_a_job_only_the_new_events_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    changes = census._changes

    def noted(*arguments: Any) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for job_id, seq, data in changes(*arguments):
            read.append((job_id, seq))
            yield job_id, seq, data

    monkeypatch.setattr(census, "_changes", noted)
    first, second = running(store), running(store)
    for job_id in (first, second):
        store.append(job_id, [elastic("start"), elastic("loss")], attempt=1)
    store.census.take()
    assert sorted(read) == sorted((job_id, seq) for job_id in (first, second) for seq in (4, 5))
    read.clear()
    store.append(first, [("log", {"line": "x"}), elastic("loss")], attempt=1)
    third = running(store)
    store.append(third, [elastic("start")], attempt=1)
    assert store.census.take().elastic == {"start": Costs(3), "loss": Costs(3)}
    assert sorted(read) == sorted([(first, 7), (third, 4)])
