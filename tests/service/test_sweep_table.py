"""What every store does with sweeps and their trials, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sampa.service.states import State
from sampa.service.store import (
    Changed,
    CodeMissing,
    Job,
    KeyReused,
    MoveRefused,
    NoSuchJob,
    NoSuchSweep,
    NoSuchTrial,
    NotExtended,
    NotNow,
    PartOfSweep,
    Store,
    Superseded,
    Sweep,
)

from .samples import added_trial, begun_trial, running_sweep, spec_of, sweep_spec_of

NOBODY = "0123456789ab"
QUEUED, STARTING, RUNNING = State.QUEUED, State.STARTING, State.RUNNING
GRID = {"method.rho": {"grid": [0.05, 0.1, 0.2]}}


def submitted(store: Store, **changes: Any) -> Sweep:
    return store.sweeps.submit(sweep_spec_of(**changes))[0]


def states(store: Store, sweep_id: str) -> list[State]:
    return [trial.state for trial in store.sweeps.trials(sweep_id)]


def ended(store: Store, to: State = State.SUCCEEDED) -> Sweep:
    """Return a sweep that has ended, with one trial that succeeded, one that failed and one that had not ended."""
    sweep = running_sweep(store)
    done, failed, _ = (begun_trial(store, sweep, number) for number in range(3))
    store.move(done.id, State.SUCCEEDED, attempt=1, result={"steps": 3})
    store.move(failed.id, State.FAILED, attempt=1, reason="the loss became NaN at step 3")
    if to is State.CANCELLED:
        store.sweeps.cancel(sweep.id)
    store.move(sweep.id, to, attempt=1, result={"best": 0.1})
    return store.sweeps.get(sweep.id)


class TestSubmit:
    def test_a_submitted_sweep_is_queued_and_has_one_event(self, store: Store) -> None:
        sweep, created = store.sweeps.submit(sweep_spec_of("first"))
        assert created
        assert store.sweeps.get(sweep.id) == store.record(sweep.id) == sweep
        assert (sweep.name, sweep.state, sweep.spec) == ("first", QUEUED, sweep_spec_of("first"))
        assert (sweep.attempt, sweep.progress, sweep.result) == (0, {}, None)
        [event] = store.events(sweep.id)
        assert (event.seq, event.kind, event.data["state"]) == (1, "state", "QUEUED")

    def test_a_repeated_key_gives_the_same_sweep_also_once_it_was_extended(self, store: Store) -> None:
        first, _ = store.sweeps.submit(sweep_spec_of(), key="k")
        extended = store.sweeps.extend(first.id, trials=8)
        assert store.sweeps.submit(sweep_spec_of(), key="k") == (extended, False)
        with pytest.raises(KeyReused, match=f"sweep {first.id}"):
            store.sweeps.submit(sweep_spec_of(trials=8), key="k")

    def test_a_key_belongs_to_a_job_or_to_a_sweep(self, store: Store) -> None:
        job, _ = store.submit(spec_of(), key="k")
        with pytest.raises(KeyReused, match=f"job {job.id}"):
            store.sweeps.submit(sweep_spec_of(), key="k")
        sweep, _ = store.sweeps.submit(sweep_spec_of(), key="s")
        with pytest.raises(KeyReused, match=f"sweep {sweep.id}"):
            store.submit(spec_of(), key="s")

    def test_code_that_is_not_there_is_refused(self, store: Store) -> None:
        base = {**sweep_spec_of().base, "code": {"bundle": "0" * 64}}
        with pytest.raises(CodeMissing):
            submitted(store, base=base)


class TestReading:
    def test_jobs_sweeps_and_trials_are_told_apart(self, store: Store) -> None:
        job, _ = store.submit(spec_of())
        trial = begun_trial(store)
        assert trial.sweep_id is not None
        assert [one.id for one in store.jobs()] == [job.id]
        assert [one.id for one in store.sweeps.list()] == [trial.sweep_id]
        assert [one.id for one in store.occupying()] == [trial.sweep_id], "a trial has no runner of its own"
        assert store.job(trial.id) == store.record(trial.id) == trial
        with pytest.raises(NoSuchJob):
            store.job(trial.sweep_id)
        for other in (job.id, trial.id, NOBODY):
            with pytest.raises(NoSuchSweep, match=other):
                store.sweeps.get(other)

    def test_sweeps_come_newest_first_in_pages_and_are_filtered(self, store: Store) -> None:
        ids = [submitted(store, name=name).id for name in "aba"]
        [first] = store.sweeps.list(limit=1)
        rest = store.sweeps.list(before=(first.created_at, first.id))
        assert [one.id for one in (first, *rest)] == ids[::-1]
        store.sweeps.cancel(ids[0])
        assert [one.id for one in store.sweeps.list([State.CANCELLED], "a")] == [ids[0]]
        assert [one.id for one in store.sweeps.list(name="b")] == [ids[1]]

    def test_trials_come_by_number_in_parts_and_are_filtered(self, store: Store) -> None:
        sweep = running_sweep(store)
        for number in (2, 0, 3, 1):
            added_trial(store, sweep, number)
        begun_trial(store, sweep, 2)

        def numbers(**which: Any) -> list[int]:
            return [trial.part.number for trial in store.sweeps.trials(sweep.id, **which) if trial.part]

        assert numbers() == [0, 1, 2, 3]
        assert numbers(after=0, limit=2) == [1, 2]
        assert numbers(states=[RUNNING]) == [2]
        assert numbers(after=3) == []

    def test_a_trial_is_found_by_its_number_and_knows_its_part(self, store: Store) -> None:
        sweep = running_sweep(store)
        trial = added_trial(store, sweep, 1, rho=0.25)
        assert store.sweeps.trial(sweep.id, 1) == trial
        assert trial.part == sweep.spec.part(1, {"method.rho": 0.25})
        assert (trial.name, trial.sweep_id, trial.spec.method.rho) == ("rho-1", sweep.id, 0.25)
        with pytest.raises(NoSuchTrial, match=f"sweep {sweep.id} has no trial 7 yet"):
            store.sweeps.trial(sweep.id, 7)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda sweeps: sweeps.get(NOBODY),
            lambda sweeps: sweeps.cancel(NOBODY),
            lambda sweeps: sweeps.pause(NOBODY),
            lambda sweeps: sweeps.resume(NOBODY),
            lambda sweeps: sweeps.extend(NOBODY, trials=8),
            lambda sweeps: sweeps.retry(NOBODY),
            lambda sweeps: sweeps.trials(NOBODY),
            lambda sweeps: sweeps.trial(NOBODY, 0),
        ],
    )
    def test_an_unknown_sweep_is_named(self, store: Store, ask: Callable[[Any], object]) -> None:
        with pytest.raises(NoSuchSweep, match=NOBODY):
            ask(store.sweeps)


class TestClaim:
    def test_jobs_and_sweeps_are_claimed_in_order_and_trials_never(self, store: Store) -> None:
        sweep, (job, _) = submitted(store), store.submit(spec_of())
        first = store.claim(max_running=2)
        assert isinstance(first, Sweep)
        assert (first.id, first.state, first.attempt) == (sweep.id, STARTING, 1)
        added_trial(store, first)
        second = store.claim(max_running=2)
        assert second is not None
        assert second.id == job.id
        store.move(job.id, State.FAILED)
        assert store.claim(max_running=2) is None

    def test_trials_do_not_count_against_what_runs_at_once(self, store: Store) -> None:
        begun_trial(store)
        store.submit(spec_of())
        assert store.claim(max_running=1) is None
        assert store.claim(max_running=2) is not None


class TestTrials:
    def test_a_trial_that_is_added_again_is_the_one_that_is_there(self, store: Store) -> None:
        sweep = running_sweep(store)
        first = begun_trial(store, sweep)
        assert added_trial(store, sweep, rho=0.3) == first

    def test_a_trial_begins_as_its_next_attempt_and_only_what_was_cut_off_counts_as_a_restart(
        self, store: Store
    ) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        store.move(trial.id, QUEUED, attempt=1, reason="it made room")
        again = store.sweeps.begin_trial(trial.id, 1)
        assert (again.state, again.attempt, again.restarts) == (STARTING, 2, 0)
        assert store.sweeps.begin_trial(trial.id, 1).restarts == 1

    def test_the_moves_of_a_trial_are_not_those_of_a_job(self, store: Store) -> None:
        trial = begun_trial(store)
        with pytest.raises(MoveRefused, match="can't become PAUSING"):
            store.move(trial.id, State.PAUSING)
        assert store.move(trial.id, State.STOPPED, attempt=1, reason="no longer among the best").ended_at is not None
        job, _ = store.submit(spec_of())
        store.move(job.id, STARTING, next_attempt=True)
        for to in (QUEUED, State.STOPPED, State.CANCELLED):
            with pytest.raises(MoveRefused):
                store.move(job.id, to)

    def test_a_trial_that_has_ended_does_not_begin_again(self, store: Store) -> None:
        trial = begun_trial(store)
        store.move(trial.id, State.SUCCEEDED, attempt=1)
        with pytest.raises(MoveRefused, match=f"trial {trial.id} is SUCCEEDED"):
            store.sweeps.begin_trial(trial.id, 1)

    def test_a_trial_goes_on_with_another_spec_and_the_events_that_tell_why(self, store: Store) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        spec = sweep.spec.trial(1, {"method.rho": 0.4})
        changed = store.sweeps.replace_spec(trial.id, 1, spec, [("exploit", {"source": 3}), ("log", {"line": "x"})])
        assert (changed.spec, changed.version) == (spec, trial.version + 1)
        assert [event.kind for event in store.events(trial.id, after=trial.last_event)] == ["exploit", "log"]

    def test_a_trial_is_added_with_the_event_that_tells_of_it_and_once(self, store: Store) -> None:
        sweep = running_sweep(store)
        part = sweep.spec.part(1, {"method.rho": 0.1})
        for _ in range(2):
            store.sweeps.add_trial(sweep.id, part, sweep.spec.job_of(part), 1, told=[("trial", {"number": 1})])
        assert [event.data for event in store.events(sweep.id, kinds=("trial",))] == [{"number": 1}]

    def test_a_trial_that_can_not_be_trained_is_stored_as_failed(self, store: Store) -> None:
        sweep = running_sweep(store)
        part = sweep.spec.part(1, {"method.rho": 0.1})
        store.sweeps.add_trial(sweep.id, part, sweep.spec.job_of(part), 1, refused_as="these contradict each other")
        trial = store.sweeps.trial(sweep.id, 1)
        assert (trial.state, trial.reason) == (State.FAILED, "these contradict each other")
        assert trial.ended_at is not None
        assert [event.data["state"] for event in store.events(trial.id)] == ["FAILED"]

    def test_a_trial_ends_with_the_event_that_tells_of_it_or_not_at_all(self, store: Store) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        how: dict[str, Any] = {"attempt": 1, "told": [("trial", {"number": 1})], "progress": {"ended": 1}}
        with pytest.raises(Superseded):
            store.sweeps.end_trial(trial.id, State.SUCCEEDED, sweep_attempt=7, **how)
        with pytest.raises(Superseded):
            store.sweeps.end_trial(trial.id, State.SUCCEEDED, sweep_attempt=1, **{**how, "attempt": 7})
        assert store.job(trial.id) == trial
        ended = store.sweeps.end_trial(trial.id, State.SUCCEEDED, sweep_attempt=1, result={"steps": 3}, **how)
        assert (ended.state, ended.result) == (State.SUCCEEDED, {"steps": 3})
        with pytest.raises(MoveRefused):
            store.sweeps.end_trial(trial.id, State.FAILED, sweep_attempt=1, **how)
        assert [event.data for event in store.events(sweep.id, kinds=("trial",))] == [{"number": 1}]
        assert store.sweeps.get(sweep.id).progress == {"ended": 1}

    def test_the_histories_of_several_trials_are_read_at_once(self, store: Store) -> None:
        sweep = running_sweep(store)
        trials = [begun_trial(store, sweep, number) for number in range(3)]
        for trial in trials:
            store.append(trial.id, [("log", {}), ("evaluation", {"of": trial.name}), ("finished", {})], attempt=1)
        found = store.sweeps.history(sweep.id, range(1, 3), ("evaluation", "finished"))
        assert found.keys() == {trials[1].id, trials[2].id}
        for trial in trials[1:]:
            assert found[trial.id] == store.events(trial.id, kinds=("evaluation", "finished"))

    @pytest.mark.parametrize("act", ["cancel", "pause", "resume"])
    def test_a_trial_is_steered_by_its_sweep_only(self, store: Store, act: str) -> None:
        trial = begun_trial(store)
        with pytest.raises(PartOfSweep, match=f"trial of sweep {trial.sweep_id}"):
            getattr(store, act)(trial.id)
        with pytest.raises(PartOfSweep, match="can't be resized by itself"):
            store.resize(trial.id, 1)
        assert store.job(trial.id) == trial


def restart(store: Store, sweep: Sweep) -> None:
    store.move(sweep.id, STARTING, attempt=sweep.attempt, next_attempt=True, reason="its runner vanished")


class TestFencing:
    @pytest.mark.parametrize(
        "write",
        [
            lambda store, sweep, trial: added_trial(store, sweep, 3),
            lambda store, sweep, trial: store.sweeps.begin_trial(trial.id, sweep.attempt),
            lambda store, sweep, trial: store.move(trial.id, State.SUCCEEDED, attempt=trial.attempt),
            lambda store, sweep, trial: store.move(trial.id, State.STOPPED, attempt=trial.attempt),
            lambda store, sweep, trial: store.append(trial.id, [("log", {})], attempt=trial.attempt),
            lambda store, sweep, trial: store.sweeps.replace_spec(trial.id, trial.attempt, trial.spec, []),
            lambda store, sweep, trial: store.append(sweep.id, [("log", {})], attempt=sweep.attempt),
            lambda store, sweep, trial: store.move(sweep.id, State.SUCCEEDED, attempt=sweep.attempt),
        ],
    )
    @pytest.mark.parametrize("waits", [False, True])
    def test_nothing_of_an_old_runner_is_written(
        self, store: Store, write: Callable[[Store, Sweep, Job], object], waits: bool
    ) -> None:
        sweep = running_sweep(store)
        trial = added_trial(store, sweep) if waits else begun_trial(store, sweep)
        restart(store, sweep)
        before = (store.sweeps.get(sweep.id), store.job(trial.id))
        with pytest.raises(Superseded, match="has been replaced"):
            write(store, sweep, trial)
        assert (store.sweeps.get(sweep.id), store.job(trial.id)) == before

    def test_the_next_runner_finds_its_trials_waiting_and_begins_them(self, store: Store) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        restart(store, sweep)
        waiting = store.job(trial.id)
        assert (waiting.state, waiting.reason, waiting.restarts) == (QUEUED, "its runner vanished", 0)
        assert store.sweeps.begin_trial(trial.id, sweep_attempt=2).attempt > waiting.attempt > trial.attempt

    @pytest.mark.parametrize("state", [State.PAUSED, State.SUCCEEDED])
    def test_without_a_runner_no_trial_is_added_or_begun(self, store: Store, state: State) -> None:
        sweep = running_sweep(store)
        trial = added_trial(store, sweep)
        store.move(sweep.id, State.PAUSING)
        store.move(sweep.id, state)
        with pytest.raises(Superseded, match=f"sweep is {state}"):
            store.sweeps.begin_trial(trial.id, 1)
        with pytest.raises(Superseded):
            added_trial(store, sweep, 2)

    def test_a_move_that_wants_nothing_to_have_changed_is_refused_after_a_change(self, store: Store) -> None:
        sweep = running_sweep(store)
        store.sweeps.extend(sweep.id, trials=8)
        with pytest.raises(Changed, match="read it again"):
            store.move(sweep.id, State.SUCCEEDED, attempt=1, version=sweep.version)
        seen = store.sweeps.get(sweep.id)
        assert store.move(sweep.id, State.SUCCEEDED, attempt=1, version=seen.version).state is State.SUCCEEDED


class TestSteering:
    def test_a_pause_lets_the_trials_wait(self, store: Store) -> None:
        sweep = running_sweep(store)
        trial = begun_trial(store, sweep)
        assert store.sweeps.pause(sweep.id).state is State.PAUSING
        assert store.job(trial.id).state is RUNNING, "its runner has a checkpoint written first"
        store.move(sweep.id, State.PAUSED, attempt=1, reason="paused by request")
        assert (store.job(trial.id).state, store.job(trial.id).reason) == (QUEUED, "paused by request")
        assert store.sweeps.resume(sweep.id).state is QUEUED
        claimed = store.claim(max_running=1)
        assert claimed is not None
        assert (claimed.id, claimed.attempt) == (sweep.id, 2)

    @pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_trials_that_have_not_ended_end_with_their_sweep(self, store: Store, to: State) -> None:
        sweep = ended(store, to)
        assert states(store, sweep.id) == [State.SUCCEEDED, State.FAILED, State.CANCELLED]
        last = store.sweeps.trial(sweep.id, 2)
        assert (last.reason, last.ended_at is not None) == (f"its sweep has ended: {to}", True)
        assert store.events(last.id)[-1].data["state"] == "CANCELLED"

    def test_a_queued_sweep_is_cancelled_at_once_and_repeating_it_changes_nothing(self, store: Store) -> None:
        sweep = submitted(store)
        cancelled = store.sweeps.cancel(sweep.id)
        assert cancelled.state is State.CANCELLED
        assert store.sweeps.cancel(sweep.id) == cancelled
        with pytest.raises(NotNow, match=f"sweep {sweep.id} is CANCELLED and can't be paused; it has ended; extend it"):
            store.sweeps.pause(sweep.id)


class TestExtend:
    def test_a_running_sweep_gets_new_totals_and_an_event(self, store: Store) -> None:
        sweep = running_sweep(store, budget={"wall_s": 60})
        extended = store.sweeps.extend(sweep.id, trials=8, wall_s=90)
        assert (extended.state, extended.spec.trials, extended.spec.budget.wall_s) == (RUNNING, 8, 90)
        event = store.events(sweep.id)[-1]
        assert (event.kind, event.data) == ("extend", {"trials": 8, "wall_s": 90.0, "gradients": None})
        assert store.sweeps.extend(sweep.id, trials=8, wall_s=90) == extended, "asking again changes nothing"

    @pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_a_sweep_that_has_ended_goes_on_with_what_it_had_not_finished(self, store: Store, to: State) -> None:
        sweep = ended(store, to)
        again = store.sweeps.extend(sweep.id, trials=8)
        assert (again.state, again.reason, again.ended_at, again.result) == (QUEUED, "extended by request", None, None)
        assert states(store, sweep.id) == [State.SUCCEEDED, State.FAILED, QUEUED]
        assert [event.seq for event in store.events(sweep.id)] == list(range(1, again.last_event + 1))
        assert store.claim(max_running=1) is not None

    def test_the_same_totals_let_only_what_was_cut_short_go_on(self, store: Store) -> None:
        done = ended(store)
        assert store.sweeps.extend(done.id, trials=4) == done
        assert store.sweeps.extend(ended(store, State.CANCELLED).id, trials=4).state is QUEUED

    @pytest.mark.parametrize(
        ("changes", "asked", "words"),
        [
            ({}, {"trials": 3}, "trials must be at least 4, which it has already, but is 3"),
            ({}, {"wall_s": 10.0}, "budget.wall_s has no limit that could be raised"),
            ({"budget": {"gradients": 10}}, {"gradients": 9}, "budget.gradients must be at least 10"),
            ({"space": GRID, "trials": None}, {"trials": 4}, "trials is given by its grid"),
            (
                {"scheduler": "pbt", "base": {**sweep_spec_of().base, "epochs": 10}},
                {"trials": 8},
                "trials is given by its population",
            ),
        ],
    )
    def test_what_can_not_be_is_refused_with_its_field(
        self, store: Store, changes: dict[str, Any], asked: dict[str, Any], words: str
    ) -> None:
        sweep = submitted(store, **changes)
        with pytest.raises(NotExtended, match=words):
            store.sweeps.extend(sweep.id, **asked)
        assert store.sweeps.get(sweep.id) == sweep

    def test_the_budget_of_a_grid_is_extended(self, store: Store) -> None:
        sweep = submitted(store, space=GRID, trials=None, budget={"gradients": 10})
        assert store.sweeps.extend(sweep.id, trials=3, gradients=20).spec.budget.gradients == 20

    def test_a_sweep_that_is_being_cancelled_is_neither_extended_nor_retried(self, store: Store) -> None:
        sweep = store.sweeps.cancel(running_sweep(store).id)
        for act in (lambda: store.sweeps.extend(sweep.id, trials=8), lambda: store.sweeps.retry(sweep.id)):
            with pytest.raises(NotNow, match="it ends as CANCELLED"):
                act()


class TestRetry:
    def test_only_failed_trials_wait_again_and_the_sweep_goes_on(self, store: Store) -> None:
        sweep = running_sweep(store)
        done, failed = begun_trial(store, sweep, 0), begun_trial(store, sweep, 1)
        store.move(done.id, State.SUCCEEDED, attempt=1)
        store.move(failed.id, State.FAILED, attempt=1)
        again = store.sweeps.retry(sweep.id)
        assert again.state is RUNNING
        assert (store.job(done.id).state, store.job(failed.id).state) == (State.SUCCEEDED, QUEUED)
        assert (store.job(failed.id).reason, store.job(failed.id).ended_at) == ("retried by request", None)
        event = store.events(sweep.id)[-1]
        assert (event.kind, event.data) == ("retry", {"trials": [1]})
        assert store.sweeps.retry(sweep.id) == again

    @pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_a_sweep_that_has_ended_is_queued_again(self, store: Store, to: State) -> None:
        sweep = ended(store, to)
        assert store.sweeps.retry(sweep.id).state is QUEUED
        assert states(store, sweep.id) == [State.SUCCEEDED, QUEUED, QUEUED]

    def test_without_failed_trials_nothing_changes(self, store: Store) -> None:
        sweep = running_sweep(store)
        store.move(sweep.id, State.SUCCEEDED)
        same = store.sweeps.get(sweep.id)
        assert store.sweeps.retry(sweep.id) == same

    def test_one_that_failed_with_a_result_would_come_to_the_same_and_is_left_alone(self, store: Store) -> None:
        sweep = running_sweep(store)
        diverged, failed = begun_trial(store, sweep, 0), begun_trial(store, sweep, 1)
        store.move(diverged.id, State.FAILED, attempt=1, result={"diverged": True})
        same = store.sweeps.get(sweep.id)
        assert store.sweeps.retry(sweep.id) == same
        store.move(failed.id, State.FAILED, attempt=1)
        store.sweeps.retry(sweep.id)
        assert (store.job(diverged.id).state, store.job(failed.id).state) == (State.FAILED, QUEUED)

    def test_a_late_word_of_the_failed_run_is_refused(self, store: Store) -> None:
        sweep = ended(store)
        failed = store.sweeps.trial(sweep.id, 1)
        store.sweeps.retry(sweep.id)
        with pytest.raises(Superseded):
            store.append(failed.id, [("log", {})], attempt=failed.attempt)
