"""Sweeps and their trials in the store.

Both are rows like a job's, with events of their own: ``Store`` moves them, appends to them and reads their events by
id. What is here is about a sweep, or about a sweep and its trials at once: that holds the sweep's row first, so an
extension, a retry and an end come one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, null, select

from .records import Event, Job, MoveRefused, NoSuchSweep, NoSuchTrial, NotExtended, NotNow, Sweep
from .rows import (
    UNFINISHED,
    Batch,
    Position,
    Row,
    Transaction,
    add,
    as_json,
    change,
    find,
    lead,
    listed,
    move,
    of_part,
    refused,
    reopen,
    submit,
    superseded,
    there,
    to_event,
    to_job,
    to_sweep,
    why_not_moved,
)
from .specs import JobSpec
from .states import OCCUPYING, Kind, State, cancelled_as, goes_on, is_final, paused_as, resumed_as
from .sweeps.spec import Part, SweepSpec
from .tables import events, jobs

Jobs = list[Job]  # under names of their own, since the table has a function called list
Sweeps = list[Sweep]
Histories = dict[str, list[Event]]


class SweepTable:
    """The sweeps of a store.

    Args:
        read: Begins a transaction that only reads.
        write: Begins one that writes.
    """

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read, self._write = read, write

    # Sweeps

    def submit(self, spec: SweepSpec, key: str | None = None) -> tuple[Sweep, bool]:
        """Store a new sweep as QUEUED; return it, and whether it is new: a repeated key returns that of its first use.

        Raises:
            KeyReused: If the key belongs to a job, or to a sweep with another spec.
            CodeMissing: If the spec refers to a bundle that isn't there.
        """
        row, created = submit(self._write, Kind.SWEEP, spec, key)
        return to_sweep(row), created

    def get(self, sweep_id: str) -> Sweep:
        """Return one sweep; raises NoSuchSweep."""
        with self._read() as connection:
            return to_sweep(_sweep(connection, sweep_id))

    def list(
        self,
        states: Collection[State] = (),
        name: str | None = None,
        before: Position | None = None,
        limit: int = 100,
    ) -> Sweeps:
        """Return sweeps, newest first; ``before`` is the creation time and id of the last one of the previous page."""
        with self._read() as connection:
            found = connection.execute(listed(Kind.SWEEP, states, name, before, limit)).mappings()
            return [to_sweep(row) for row in found]

    def cancel(self, sweep_id: str, reason: str = "cancelled by request") -> Sweep:
        """End the sweep with its trials: at once when no runner can exist; one that has ended stays as it is.

        Raises:
            NoSuchSweep: If there is no such sweep.
        """
        return self._lead(sweep_id, cancelled_as, "cancelled", reason)

    def pause(self, sweep_id: str, reason: str = "paused by request") -> Sweep:
        """Let the sweep and its trials rest; one that rests stays as it is.

        Raises:
            NoSuchSweep: If there is no such sweep.
            NotNow: If it has ended or is being cancelled.
        """
        return self._lead(sweep_id, paused_as, "paused", reason)

    def resume(self, sweep_id: str) -> Sweep:
        """Queue a sweep that was paused; one that is queued or goes already stays as it is.

        Raises:
            NoSuchSweep: If there is no such sweep.
            NotNow: If it has ended, is being cancelled, or is not yet PAUSED.
        """
        return self._lead(sweep_id, resumed_as, "resumed", "resumed by request")

    def _lead(self, sweep_id: str, leads_to: Callable[[State], State | None], asked: str, reason: str) -> Sweep:
        return to_sweep(lead(self._write, lambda c: _sweep(c, sweep_id), leads_to, asked, reason))

    def extend(
        self, sweep_id: str, trials: int | None = None, wall_s: float | None = None, gradients: int | None = None
    ) -> Sweep:
        """Give the sweep more to do; one that has ended goes on, with the trials that were cancelled as it ended.

        What is asked for are new totals, each at least what it has; so asking again changes nothing, but that a sweep
        which failed or was cancelled goes on.

        Args:
            sweep_id: Which sweep.
            trials: Number of configurations.
            wall_s: Its budget of seconds.
            gradients: Its budget of gradients.

        Raises:
            NoSuchSweep: If there is no such sweep.
            NotNow: If it is being cancelled.
            NotExtended: If it has more already, or its configurations are given by its grid or its population.
        """
        with self._write() as connection:
            row = _steerable(connection, sweep_id, "extended")
            spec = _extended(to_sweep(row), trials, wall_s, gradients)
            totals = {"trials": spec.trials, **spec.budget.model_dump(mode="json")}
            if as_json(spec) != row["spec"]:
                values = {"spec": as_json(spec), "asked": row["asked"] or row["spec"]}
                row = change(connection, [jobs.c.id == sweep_id], values, [("extend", totals)]) or row
            elif row["state"] == State.SUCCEEDED:
                return to_sweep(row)
            return to_sweep(_go_on(connection, row, "extended by request"))

    def retry(self, sweep_id: str) -> Sweep:
        """Queue the failed trials again, and the sweep if it has ended; without failed trials nothing changes.

        Those that failed with a result stay as they are: it says that they would come to the same again.

        Raises:
            NoSuchSweep: If there is no such sweep.
            NotNow: If it is being cancelled.
        """
        with self._write() as connection:
            row = _steerable(connection, sweep_id, "retried")
            failed = (jobs.c.sweep_id == sweep_id, jobs.c.state == State.FAILED, jobs.c.result.is_(null()))
            again = reopen(connection, Kind.TRIAL, failed, "retried by request")
            if not again:
                return to_sweep(row)
            told = [("retry", {"trials": [trial["number"] for trial in again]})]
            row = change(connection, [jobs.c.id == sweep_id], {}, told) or row
            return to_sweep(_go_on(connection, row, "retried by request"))

    # Trials

    def trials(self, sweep_id: str, after: int = -1, limit: int = 1000, states: Collection[State] = ()) -> Jobs:
        """Return the trials with a higher number than ``after``, by number; raises NoSuchSweep."""
        query = select(jobs).where(jobs.c.sweep_id == sweep_id, jobs.c.number > after)
        if states:
            query = query.where(jobs.c.state.in_(states))
        with self._read() as connection:
            found = connection.execute(query.order_by(jobs.c.number).limit(limit)).mappings().all()
            if not found:
                _sweep(connection, sweep_id)
            return [to_job(row) for row in found]

    def trial(self, sweep_id: str, number: int) -> Job:
        """Return one trial; raises NoSuchSweep or NoSuchTrial."""
        with self._read() as connection:
            row = _trial(connection, sweep_id, number)
            if row is None:
                _sweep(connection, sweep_id)
                raise NoSuchTrial(sweep_id, number)
            return to_job(row)

    def add_trial(
        self, sweep_id: str, part: Part, spec: JobSpec, attempt: int, *, told: Batch = (), refused_as: str = ""
    ) -> Job:
        """Store a new trial as QUEUED, or return the one that has this number.

        Args:
            sweep_id: Whose trial.
            part: Its place.
            spec: What it trains.
            attempt: Of the sweep's runner.
            told: Events that go into the sweep's own sequence, if the trial is new.
            refused_as: Why it can't be trained at all: it is stored as FAILED.

        Raises:
            NoSuchSweep: If there is no such sweep.
            Superseded: If the sweep is at another attempt, or no runner can be at work on it.
        """
        with self._write() as connection:
            _held(connection, sweep_id, attempt)
            row = _trial(connection, sweep_id, part.number)
            if row is None:
                more = refused(refused_as) if refused_as else {}
                row = add(connection, Kind.TRIAL, spec, sweep_id=sweep_id, **of_part(part), **more)
                change(connection, [jobs.c.id == sweep_id], {}, told)
            return to_job(row)

    def begin_trial(self, trial_id: str, sweep_attempt: int) -> Job:
        """Bring a trial into STARTING as its next attempt, by the number of which its runner writes.

        One that waited begins; one that was STARTING or RUNNING is begun again, which is one of its ``restarts``.

        Raises:
            NoSuchJob: If there is no such trial.
            Superseded: If the sweep is at another attempt, or no runner can be at work on it.
            MoveRefused: If the trial has ended.
        """
        with self._write() as connection:
            trial = there(connection, trial_id)
            _held(connection, trial["sweep_id"], sweep_attempt)
            row = move(connection, trial_id, State.STARTING, next_attempt=True)
            if row is None:
                raise MoveRefused(trial_id, there(connection, trial_id)["state"], State.STARTING, Kind.TRIAL)
            return to_job(row)

    def end_trial(
        self,
        trial_id: str,
        to: State,
        *,
        attempt: int,
        sweep_attempt: int,
        told: Batch,
        progress: dict[str, Any],
        reason: str = "",
        result: dict[str, Any] | None = None,
    ) -> Job:
        """End a trial, and in the same transaction tell of it in the sweep's own sequence.

        Args:
            trial_id: Which one.
            to: SUCCEEDED, FAILED or STOPPED.
            attempt: Of the trial.
            sweep_attempt: Of the sweep's runner.
            told: Events of the sweep.
            progress: Of the sweep, with this end counted.
            reason: Why it has ended so; empty where the state says it all.
            result: What it came to; of one that failed, only if it would come to the same again.

        Raises:
            NoSuchJob: If there is no such trial.
            Superseded: If it is at another attempt, the sweep is, or no runner can be at work on it.
            MoveRefused: If its state doesn't allow the end.
        """
        with self._write() as connection:
            trial = there(connection, trial_id)
            _held(connection, trial["sweep_id"], sweep_attempt)
            row = move(connection, trial_id, to, reason=reason, attempt=attempt, result=result)
            if row is None:
                raise why_not_moved(there(connection, trial_id), to, attempt)
            change(connection, [jobs.c.id == trial["sweep_id"]], {"progress": progress}, told)
            return to_job(row)

    def history(self, sweep_id: str, numbers: range, kinds: Collection[str]) -> Histories:
        """Return the events of these kinds of the trials with these numbers, in order, by the trial's id."""
        mine = (jobs.c.sweep_id == sweep_id, jobs.c.number >= numbers.start, jobs.c.number < numbers.stop)
        query = select(events).join(jobs, events.c.job_id == jobs.c.id).where(*mine, events.c.kind.in_(kinds))
        found: Histories = {}
        with self._read() as connection:
            for row in connection.execute(query.order_by(events.c.job_id, events.c.seq)).mappings():
                found.setdefault(row["job_id"], []).append(to_event(row))
        return found

    def replace_spec(self, trial_id: str, attempt: int, spec: JobSpec, events: Batch, told: Batch = ()) -> Job:
        """Have a trial go on with another spec, from its next step on, and add the events that tell why; in the same
        transaction, tell of it in the sweep's own sequence.

        Raises:
            NoSuchJob: If there is no such trial.
            Superseded: If the trial is at another attempt or has ended.
        """
        with self._write() as connection:
            mine = [jobs.c.id == trial_id, jobs.c.attempt == attempt, jobs.c.state.in_(UNFINISHED)]
            row = change(connection, mine, {"spec": as_json(spec)}, events)
            if row is None:
                raise superseded(there(connection, trial_id), attempt)
            change(connection, [jobs.c.id == row["sweep_id"]], {}, told)
            return to_job(row)


def _sweep(connection: Connection, sweep_id: str, *, lock: bool = False) -> Row:
    row = find(connection, sweep_id, lock=lock)
    if row is None or row["kind"] != Kind.SWEEP:
        raise NoSuchSweep(sweep_id)
    return row


def _trial(connection: Connection, sweep_id: str, number: int) -> Row | None:
    query = select(jobs).where(jobs.c.sweep_id == sweep_id, jobs.c.number == number)
    return connection.execute(query).mappings().first()


def _held(connection: Connection, sweep_id: str, attempt: int) -> None:
    """Hold the sweep's row to the end of the transaction; raises Superseded if this attempt has no more say in it."""
    row = _sweep(connection, sweep_id, lock=True)
    if row["attempt"] != attempt or row["state"] not in OCCUPYING:
        raise superseded(row, attempt)


def _steerable(connection: Connection, sweep_id: str, asked: str) -> Row:
    """Hold a sweep's row, unless it is being cancelled."""
    row = _sweep(connection, sweep_id, lock=True)
    state = State(row["state"])
    if not goes_on(state) and not is_final(state):
        raise NotNow(sweep_id, state, asked, Kind.SWEEP)
    return row


def _go_on(connection: Connection, row: Row, reason: str) -> Row:
    """Queue a sweep that has ended, with the trials that were cancelled as it ended; others stay as they are."""
    sweep = reopen(connection, Kind.SWEEP, [jobs.c.id == row["id"]], reason)
    if sweep:
        cancelled = (jobs.c.sweep_id == row["id"], jobs.c.state == State.CANCELLED)
        reopen(connection, Kind.TRIAL, cancelled, f"its sweep was {reason}")
    return sweep[0] if sweep else row


def _extended(sweep: Sweep, trials: int | None, wall_s: float | None, gradients: int | None) -> SweepSpec:
    """Return the spec with the new totals; raises NotExtended."""
    old = sweep.spec
    if trials is not None and trials != old.configurations and (old.search == "grid" or old.scheduler.name == "pbt"):
        fixed = "population" if old.scheduler.name == "pbt" else "grid"
        raise NotExtended(sweep.id, "trials", f"is given by its {fixed}; submit another sweep for more")
    had = {"trials": old.configurations, **{f"budget.{name}": total for name, total in as_json(old.budget).items()}}
    asked = {"trials": trials, "budget.wall_s": wall_s, "budget.gradients": gradients}
    new = {field: total for field, total in asked.items() if total is not None and total != had[field]}
    for field, total in new.items():
        _check_total(sweep.id, field, total, had[field])
    budget = {field.removeprefix("budget."): total for field, total in new.items() if field != "trials"}
    document = as_json(old)
    document["budget"] |= budget
    try:
        return SweepSpec.model_validate(document | ({"trials": new["trials"]} if "trials" in new else {}))
    except ValidationError as error:
        raise NotExtended(
            sweep.id, next(iter(new), "trials"), f"leads to a sweep that is refused: {_why(error)}"
        ) from error


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return str(first.get("ctx", {}).get("message", first["msg"]))


def _check_total(sweep_id: str, field: str, total: float, had: float | None) -> None:
    if had is None:
        raise NotExtended(sweep_id, field, "has no limit that could be raised; leave it out")
    if total < had:
        raise NotExtended(sweep_id, field, f"must be at least {had:g}, which it has already, but is {total:g}")
