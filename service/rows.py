"""What the store's transactions are made of: one conditional UPDATE of a row, and the events that go with it.

Jobs, sweeps and trials lie in one table, since they have the same life. Every function takes part in a transaction that
its caller has begun.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, RowMapping, Select, and_, case, func, insert, literal, null, or_, select, update
from sqlalchemy.exc import IntegrityError

from .bundle_table import is_there
from .records import (
    Changed,
    CodeMissing,
    Event,
    Job,
    KeyReused,
    MoveRefused,
    NoSuchJob,
    NotNow,
    StoreError,
    Superseded,
    Sweep,
)
from .specs import JobSpec
from .states import REOPENED, Kind, State, is_final, sources
from .sweeps.spec import Part, SweepSpec
from .tables import UtcTime, events, jobs, to_json

Transaction = Callable[[], AbstractContextManager[Connection]]
Row = RowMapping
Batch = Sequence[tuple[str, dict[str, Any]]]
Position = tuple[datetime, str]  # creation time and id of the last one of a page

UNFINISHED = frozenset(state for state in State if not is_final(state))
RESTARTED_FROM = (State.STARTING, State.RUNNING)


def find(connection: Connection, some_id: str, *, lock: bool = False) -> Row | None:
    """Return the row of a job, a sweep or a trial; ``lock``: nobody else changes it before this transaction ends."""
    query = select(jobs).where(jobs.c.id == some_id)
    return connection.execute(query.with_for_update() if lock else query).mappings().first()


def there(connection: Connection, some_id: str) -> Row:
    """Return the row of a job, a sweep or a trial; raises NoSuchJob."""
    row = find(connection, some_id)
    if row is None:
        raise NoSuchJob(some_id)
    return row


def submit(write: Transaction, kind: Kind, spec: JobSpec | SweepSpec, key: str | None) -> tuple[Row, bool]:
    """Store a job or a sweep as QUEUED; return it, and whether it is new.

    Raises:
        KeyReused: If the key belongs to another kind, or another spec.
        CodeMissing: If the spec refers to a bundle that isn't there.
    """
    try:
        return _submit(write, kind, spec, key)
    except IntegrityError:  # on PostgreSQL, someone else was faster with the same key; now it is there to be found
        return _submit(write, kind, spec, key)


def _submit(write: Transaction, kind: Kind, spec: JobSpec | SweepSpec, key: str | None) -> tuple[Row, bool]:
    with write() as connection:
        if key is not None:
            row = connection.execute(select(jobs).where(jobs.c.key == key)).mappings().first()
            if row is not None:
                if row["kind"] != kind or type(spec).model_validate(row["asked"] or row["spec"]) != spec:
                    raise KeyReused(key, row["id"], row["kind"])
                return row, False
        if spec.bundle is not None and not is_there(connection, spec.bundle):
            raise CodeMissing(spec.bundle)
        return add(connection, kind, spec, key=key), True


def add(connection: Connection, kind: Kind, spec: JobSpec | SweepSpec, **more: Any) -> Row:
    """Insert a new row, as QUEUED unless ``more`` says another state, with its first event."""
    now = _now()
    values = {
        "id": secrets.token_hex(6),
        "kind": kind,
        "name": spec.name,
        "state": State.QUEUED,
        "reason": "",
        "spec": as_json(spec),
        "bundle": spec.bundle,
        **dict.fromkeys(("attempt", "restarts", "losses"), 0),
        "launched": False,
        **dict.fromkeys(("created_at", "updated_at"), now),
        "progress": {},
        **dict.fromkeys(("last_event", "version"), 1),
        **more,
    }
    row = connection.execute(insert(jobs).values(**values).returning(*jobs.c)).mappings().one()
    _add_events(connection, row, [_state_event(row)])
    return row


def move(
    connection: Connection,
    some_id: str,
    to: State,
    *,
    reason: str = "",
    attempt: int | None = None,
    version: int | None = None,
    next_attempt: bool = False,
    cluster_lost: bool = False,
    result: dict[str, Any] | None = None,
    only_from: State | None = None,
) -> Row | None:
    """Make the move and write its event, or return None and change nothing; what a sweep's trials do then, they do."""
    within = State if only_from is None else (only_from,)
    matching = [jobs.c.id == some_id, _may_enter(to, within)]
    matching += [] if attempt is None else [jobs.c.attempt == attempt]
    matching += [] if version is None else [jobs.c.version == version]
    values: dict[str, Any] = {"state": to, "reason": reason}
    if to is State.RUNNING:
        values["started_at"] = func.coalesce(jobs.c.started_at, literal(_now(), UtcTime))
    if is_final(to):
        values["ended_at"] = _now()
    if result is not None:
        values["result"] = result
    if next_attempt:
        counter = jobs.c.losses if cluster_lost else jobs.c.restarts
        again = case((jobs.c.state.in_(RESTARTED_FROM), 1), else_=0)
        values |= {"attempt": jobs.c.attempt + 1, "launched": False, counter.name: counter + again}
    for row in _change_state(connection, matching, values):
        if row["kind"] == Kind.SWEEP:
            _take_trials_along(connection, row, next_attempt)
        return row
    return None


def _may_enter(to: State, within: Sequence[State] | type[State]) -> Any:
    """Return the condition that a row may enter this state, by the table of its kind."""
    of_trials = and_(jobs.c.kind == Kind.TRIAL, jobs.c.state.in_(sources(to, within, Kind.TRIAL)))
    return or_(and_(jobs.c.kind != Kind.TRIAL, jobs.c.state.in_(sources(to, within))), of_trials)


def _take_trials_along(connection: Connection, sweep: Row, next_attempt: bool) -> None:
    """Have the trials do what follows from a move of their sweep.

    Where it has ended, so have they. Where the runner that worked on them is gone, they wait, and it may write no more.
    """
    mine = jobs.c.sweep_id == sweep["id"]
    if is_final(State(sweep["state"])):
        gone = {"state": State.CANCELLED, "reason": f"its sweep has ended: {sweep['state']}", "ended_at": _now()}
        _change_state(connection, [mine, jobs.c.state.in_(UNFINISHED)], gone)
    elif next_attempt or sweep["state"] == State.PAUSED:
        waits = {"state": State.QUEUED, "reason": sweep["reason"], "attempt": jobs.c.attempt + 1}
        # those that wait already are only kept from their old runner
        fence = update(jobs).where(mine, jobs.c.state == State.QUEUED)
        connection.execute(fence.values(attempt=jobs.c.attempt + 1, version=jobs.c.version + 1))
        _change_state(connection, [mine, jobs.c.state.in_(RESTARTED_FROM)], waits)


def reopen(connection: Connection, kind: Kind, matching: Sequence[Any], reason: str) -> list[Row]:
    """Bring what has ended back to QUEUED, with a clean slate; return what that was."""
    slate = {"ended_at": None, "result": null(), "restarts": 0, "losses": 0, "attempt": jobs.c.attempt + 1}
    values = {"state": State.QUEUED, "reason": reason, **slate}
    return _change_state(connection, [jobs.c.kind == kind, jobs.c.state.in_(REOPENED[kind]), *matching], values)


def _change_state(connection: Connection, matching: Sequence[Any], values: dict[str, Any]) -> list[Row]:
    """Change the state of all that match, each with its event; return them by number."""
    changed = update(jobs).where(*matching).values(**values, interrupted_at=None, **_touch(1)).returning(*jobs.c)
    found = connection.execute(changed).mappings().all()
    for row in found:
        _add_events(connection, row, [_state_event(row)])
    return sorted(found, key=lambda row: (row["number"] is not None, row["number"]))


def change(connection: Connection, matching: Sequence[Any], values: dict[str, Any], batch: Batch) -> Row | None:
    """Write values and events, or return None and change nothing where no row matches."""
    changed = update(jobs).where(*matching).values(**values, **_touch(len(batch))).returning(*jobs.c)
    row = connection.execute(changed).mappings().first()
    if row is not None:
        _add_events(connection, row, batch)
    return row


def lead(
    write: Transaction,
    found: Callable[[Connection], Row],
    leads_to: Callable[[State], State | None],
    asked: str,
    reason: str,
) -> Row:
    """Move a row to where a request leads from its present state; it stays where that is the same; raises NotNow."""
    while True:
        with write() as connection:
            row = found(connection)
            state, to = State(row["state"]), leads_to(State(row["state"]))
            if to is None:
                raise NotNow(row["id"], state, asked, row["kind"])
            if to is state:
                return row
            moved = move(connection, row["id"], to, reason=reason, attempt=row["attempt"], only_from=state)
            if moved is not None:  # else, on PostgreSQL, another transaction has just moved it
                return moved


def listed(
    kind: Kind, states: Collection[State], name: str | None, before: Position | None, limit: int
) -> Select[tuple[Any, ...]]:
    """Return the query of a page, newest first."""
    query = select(jobs).where(jobs.c.kind == kind)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if name is not None:
        query = query.where(jobs.c.name == name)
    if before is not None:
        created_at, some_id = before
        same_time = and_(jobs.c.created_at == created_at, jobs.c.id < some_id)
        query = query.where(or_(jobs.c.created_at < created_at, same_time))
    return query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)


def _touch(added: int) -> dict[str, Any]:
    """Return the values of every change: the numbers of its events, its time, its version."""
    return {"last_event": jobs.c.last_event + added, "updated_at": _now(), "version": jobs.c.version + 1}


def _add_events(connection: Connection, row: Row, batch: Batch) -> None:
    """Write the events whose numbers end at the row's ``last_event``; the row's own lock keeps others from these."""
    first = row["last_event"] - len(batch) + 1
    same = {"job_id": row["id"], "time": row["updated_at"]}
    rows = [{**same, "seq": first + offset, "kind": kind, "data": data} for offset, (kind, data) in enumerate(batch)]
    if rows:
        connection.execute(insert(events), rows)


def _state_event(row: Row) -> tuple[str, dict[str, Any]]:
    return "state", {"state": row["state"], "reason": row["reason"], "attempt": row["attempt"]}


LIFE = tuple(name for name in Sweep.__dataclass_fields__ if name not in {"spec", "state"})


def to_job(row: Row) -> Job:
    """Return the record of a job or a trial."""
    part = None if row["part"] is None else Part(**row["part"])
    spec = JobSpec.model_validate(row["spec"])
    return Job(**_life(row), spec=spec, workers=row["workers"], sweep_id=row["sweep_id"], part=part)


def to_sweep(row: Row) -> Sweep:
    """Return the record of a sweep."""
    return Sweep(**_life(row), spec=_sweep_spec(to_json(row["spec"])))


@lru_cache(maxsize=256)
def _sweep_spec(text: str) -> SweepSpec:
    """Return a spec, which is frozen, once for all its readers: checking a large space takes half a second."""
    return SweepSpec.model_validate(json.loads(text))


def to_event(row: Row) -> Event:
    """Return one entry of a sequence."""
    return Event(row["seq"], row["time"], row["kind"], row["data"])


def to_record(row: Row) -> Job | Sweep:
    """Return the record of whatever the row is."""
    return to_sweep(row) if row["kind"] == Kind.SWEEP else to_job(row)


def _life(row: Row) -> dict[str, Any]:
    return {**{name: row[name] for name in LIFE}, "state": State(row["state"])}


def superseded(row: Row, attempt: int) -> Superseded:
    """Return the error of a writer whose attempt has no more say."""
    return Superseded(row["id"], attempt, row["attempt"], State(row["state"]), row["kind"])


def why_not_moved(row: Row, to: State, attempt: int | None, version: int | None = None) -> StoreError:
    """Return the error of a move that was not made, from the row as it is now."""
    if attempt is not None and row["attempt"] != attempt:
        return superseded(row, attempt)
    if version is not None and row["state"] in sources(to, kind=Kind(row["kind"])):
        return Changed(row["id"], version, row["version"], row["kind"])
    return MoveRefused(row["id"], State(row["state"]), to, row["kind"])


def as_json(spec: BaseModel) -> dict[str, Any]:
    """Return a spec, or a part of it, as it is stored."""
    return spec.model_dump(mode="json", by_alias=True)


def of_part(part: Part) -> dict[str, Any]:
    """Return the columns of a trial's place in its sweep."""
    return {"number": part.number, "part": asdict(part)}


def refused(reason: str) -> dict[str, Any]:
    """Return the columns of a trial that has failed before it could begin."""
    return {"state": State.FAILED, "reason": reason, "ended_at": _now(), "result": {"refused": True}}


def _now() -> datetime:
    return datetime.now(UTC)
