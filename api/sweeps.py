"""The routes of sweeps: submit, list, show, steer, their trials, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ValidationError

from ..service.specs import JobSpec
from ..service.store import Job, Store, Sweep
from ..service.sweeps.answer import PLOT_FILE, REPORT_FILE
from ..service.sweeps.promotion import promoted
from ..service.sweeps.spec import SweepSpec
from .downloads import file_reply
from .faults import faults_of
from .models import Data, EventPage, job_answer
from .problems import Problem, documented, invalid_body
from .replies import (
    BODY,
    EVENTS,
    EVERYWHERE,
    UNCHANGED,
    Accept,
    Events,
    Key,
    Known,
    LastEvent,
    answer,
    check_room,
    check_storage,
    heard,
    listed,
    past_of,
    settings_of,
    shown,
    steered,
    store_of,
    submitted,
)
from .sweep_models import (
    Extend,
    Promote,
    PromotedJobs,
    SweepAnswer,
    SweepPage,
    SweepQuery,
    TrialPage,
    TrialQuery,
    WholeSweepAnswer,
    WholeTrialAnswer,
    sweep_answer,
    trial_answer,
    trial_page,
)

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], responses=EVERYWHERE)
Number = Annotated[int, Path(ge=0, lt=2**31, description="of the trial in its sweep")]
NO_SWEEP = documented("no-such-sweep")
NO_TRIAL = documented("no-such-sweep", "no-such-trial")
NO_REPORT = documented("no-such-sweep", "no-report-yet", "no-storage")
STEERED = documented("no-such-sweep", "wrong-state")
EXAMPLE = {
    "name": "rho",
    "base": {
        "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
        "method": {"name": "sampa", "lambda": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005},
        "schedule": {"name": "cosine"},
        "epochs": 30,
        "batch_size": 64,
    },
    "space": {"method.rho": {"loguniform": [0.01, 0.5]}},
    "baselines": ["sgd", {"name": "sam", "rho": 0.1}],
    "trials": 16,
    "seeds": 3,
    "metric": "accuracy",
    "mode": "max",
}
EXAMPLES = {"rho": {"summary": "Which rho suits digits, and whether SAMPa is worth it there", "value": EXAMPLE}}
EXTENSIONS = {"more": {"summary": "Eight more configurations", "value": {"trials": 24}}}
PROMOTIONS = {"longer": {"summary": "Three jobs of 100 epochs", "value": {"epochs": 100, "seeds": 3}}}
AS_SEARCHED = Promote()
REPORT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer so far", "content": {"application/json": {"schema": {"type": "object"}}}}
}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The plot of the report",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    status_code=201,
    response_model=SweepAnswer,
    summary="Submit a sweep",
    responses={
        200: {"model": SweepAnswer, "description": "The key was used before: the sweep of then"},
        **documented(
            "malformed-body", "body-too-large", "unsupported-media-type", "invalid-sweep", "storage-not-shared"
        ),
    },
)
def submit(request: Request, spec: Annotated[SweepSpec, Body(openapi_examples=EXAMPLES)], key: Key = None) -> Response:
    """Store a sweep; it starts as soon as there is room. With an Idempotency-Key, repeating the request is safe."""
    check_storage(request)
    check_room(request, spec.example.workers, "base.workers")
    sweep, created = store_of(request).sweeps.submit(spec, key)
    return submitted(request, sweep, sweep_answer(sweep), created)


@router.get("", response_model=SweepPage, summary="List sweeps", responses=documented("wrong-cursor"))
def list_sweeps(request: Request, query: Annotated[SweepQuery, Query()]) -> Response:
    """Return sweeps, newest first."""
    sweeps = store_of(request).sweeps
    return listed(
        "/v1/sweeps",
        query,
        lambda before, limit: sweeps.list(query.state, query.name, before, limit),
        lambda found, cursor: SweepPage(items=[sweep_answer(sweep) for sweep in found], next=cursor),
    )


@router.get("/{sweep_id}", response_model=WholeSweepAnswer, summary="Show a sweep", responses={**UNCHANGED, **NO_SWEEP})
def show(request: Request, sweep_id: str, known: Known = None) -> Response:
    """Return a sweep with its past."""
    store = store_of(request)
    sweep = store.sweeps.get(sweep_id)
    return shown(known, sweep, lambda: _whole_sweep(store, sweep))


def _whole_sweep(store: Store, sweep: Sweep) -> WholeSweepAnswer:
    return WholeSweepAnswer(**dict(sweep_answer(sweep)), transitions=store.transitions(sweep.id))


@router.post(
    "/{sweep_id}/cancel", status_code=202, response_model=SweepAnswer, summary="Cancel a sweep", responses=NO_SWEEP
)
def cancel(request: Request, sweep_id: str) -> Response:
    """End a sweep and its trials. Repeating it, or cancelling one that has ended, changes nothing."""
    return _steered(request, lambda store: store.sweeps.cancel(sweep_id))


@router.post(
    "/{sweep_id}/pause", status_code=202, response_model=SweepAnswer, summary="Pause a sweep", responses=STEERED
)
def pause(request: Request, sweep_id: str) -> Response:
    """Stop its trials, each with a checkpoint from which resume goes on. Repeating it changes nothing."""
    return _steered(request, lambda store: store.sweeps.pause(sweep_id))


@router.post(
    "/{sweep_id}/resume", status_code=202, response_model=SweepAnswer, summary="Resume a sweep", responses=STEERED
)
def resume(request: Request, sweep_id: str) -> Response:
    """Queue a paused sweep again, with the same suggestions and numbers to come. Repeating it changes nothing."""
    return _steered(request, lambda store: store.sweeps.resume(sweep_id))


@router.post(
    "/{sweep_id}/extend",
    status_code=202,
    response_model=SweepAnswer,
    summary="Extend a sweep",
    responses={**STEERED, **BODY},
)
def extend(request: Request, sweep_id: str, asked: Annotated[Extend, Body(openapi_examples=EXTENSIONS)]) -> Response:
    """Give a sweep more trials or a longer budget; one that has ended goes on. Repeating it changes nothing."""
    budget = asked.budget
    return _steered(request, lambda store: store.sweeps.extend(sweep_id, asked.trials, budget.wall_s, budget.gradients))


@router.post(
    "/{sweep_id}/retry", status_code=202, response_model=SweepAnswer, summary="Retry a sweep", responses=STEERED
)
def retry(request: Request, sweep_id: str) -> Response:
    """Train its failed trials again, from their checkpoints; without failed trials nothing changes."""
    return _steered(request, lambda store: store.sweeps.retry(sweep_id))


def _steered(request: Request, act: Callable[[Store], Sweep]) -> Response:
    sweep = act(store_of(request))
    return steered(request, sweep, sweep_answer(sweep))


@router.post(
    "/{sweep_id}/promote",
    status_code=201,
    response_model=PromotedJobs,
    summary="Make jobs of the recommended configuration",
    responses={
        200: {"model": PromotedJobs, "description": "The key was used before: the jobs of then"},
        **documented("no-such-sweep", "no-report-yet", "no-recommendation", "no-storage", "storage-not-shared"),
        **BODY,
    },
)
def promote(
    request: Request,
    sweep_id: str,
    asked: Annotated[Promote, Body(openapi_examples=PROMOTIONS)] = AS_SEARCHED,
    key: Key = None,
) -> Response:
    """Submit one job for each of some fresh seeds. With an Idempotency-Key, repeating the request is safe."""
    check_storage(request)
    store = store_of(request)
    sweep = store.sweeps.get(sweep_id)
    specs = _promoted(sweep, _recommended_values(request, sweep), asked)
    check_room(request, specs[0].workers)
    keys = [key and f"{sweep_id}/promote/{spec.seed}/{key}" for spec in specs]
    made = [store.submit(spec, own_key) for spec, own_key in zip(specs, keys, strict=True)]
    created = any(new for _, new in made)
    request.app.state.reconciler.wake()
    headers = {} if created else {"Idempotency-Replayed": "true"}
    return answer(PromotedJobs(items=[job_answer(job) for job, _ in made]), 201 if created else 200, headers)


def _promoted(sweep: Sweep, values: Data, asked: Promote) -> list[JobSpec]:
    try:
        return promoted(sweep.spec, values, **dict(asked))
    except ValidationError as error:
        raise invalid_body("invalid-request", faults_of(JobSpec, error)) from error


def _recommended_values(request: Request, sweep: Sweep) -> Data:
    with _known_report(sweep):
        report = json.loads(settings_of(request).job_storage(sweep.id).read(REPORT_FILE))
    recommended = report.get("recommended")
    if not recommended:
        why = report.get("why_not") or "it has too few trials"
        detail = f"The report of sweep {sweep.id} recommends nothing: {why}; extend the sweep, or search elsewhere."
        raise Problem("no-recommendation", detail, state=sweep.state)
    values: Data = recommended["values"]
    return values


@router.get(
    "/{sweep_id}/events",
    response_model=EventPage,
    summary="Read what happened, in pages or as a stream",
    responses={**EVENTS, **NO_SWEEP},
)
def events(
    request: Request, sweep_id: str, query: Events, accept: Accept = "*/*", last_event_id: LastEvent = None
) -> Response:
    """Return the sweep's own events after a number. A stream takes it from Last-Event-ID, else from ``after``."""
    return heard(request, store_of(request).sweeps.get(sweep_id), query, accept, last_event_id)


@router.get("/{sweep_id}/trials", response_model=TrialPage, summary="List the trials", responses=NO_SWEEP)
def trials(request: Request, sweep_id: str, query: Annotated[TrialQuery, Query()]) -> Response:
    """Return trials, by number."""
    found = store_of(request).sweeps.trials(sweep_id, query.after, query.limit + 1, query.state)
    return answer(trial_page(found, query.limit))


@router.get(
    "/{sweep_id}/trials/{number}",
    response_model=WholeTrialAnswer,
    summary="Show a trial",
    responses={**UNCHANGED, **NO_TRIAL},
)
def trial(request: Request, sweep_id: str, number: Number, known: Known = None) -> Response:
    """Return a trial with its past. By its id, it also has all that a job has to be read, under ``/v1/jobs``."""
    store = store_of(request)
    found = store.sweeps.trial(sweep_id, number)
    return shown(known, found, lambda: _whole_trial(store, found))


def _whole_trial(store: Store, found: Job) -> WholeTrialAnswer:
    return WholeTrialAnswer(**dict(trial_answer(found)), **past_of(store, found), spec=found.spec)


@router.get(
    "/{sweep_id}/trials/{number}/events",
    response_model=EventPage,
    summary="Read what happened to a trial, in pages or as a stream",
    responses={**EVENTS, **NO_TRIAL},
)
def trial_events(
    request: Request,
    sweep_id: str,
    number: Number,
    query: Events,
    accept: Accept = "*/*",
    last_event_id: LastEvent = None,
) -> Response:
    """Return the trial's events after a number. A stream takes it from Last-Event-ID, else from ``after``."""
    return heard(request, store_of(request).sweeps.trial(sweep_id, number), query, accept, last_event_id)


@router.get(
    "/{sweep_id}/report",
    response_class=FileResponse,
    summary="Read the report",
    responses={**REPORT, **UNCHANGED, **NO_REPORT},
)
def report(request: Request, sweep_id: str, known: Known = None) -> Response:
    """Return the answer so far: what is recommended, how sure that is, and whether SAMPa is worth it."""
    return _report_file(request, sweep_id, REPORT_FILE, "application/json", known)


@router.get(
    "/{sweep_id}/report.png",
    response_class=FileResponse,
    summary="Download the report's plot",
    responses={**PICTURE, **UNCHANGED, **NO_REPORT},
)
def picture(request: Request, sweep_id: str, known: Known = None) -> Response:
    """Return the plot of the metric over the searched field, with the baselines and the recommended value."""
    return _report_file(request, sweep_id, PLOT_FILE, "image/png", known)


def _report_file(request: Request, sweep_id: str, name: str, media_type: str, known: str | None) -> Response:
    sweep = store_of(request).sweeps.get(sweep_id)
    with _known_report(sweep):
        return file_reply(request, settings_of(request).job_storage(sweep_id), name, media_type, known)


@contextmanager
def _known_report(sweep: Sweep) -> Iterator[None]:
    """Say of a file of the report that is not there why it isn't."""
    try:
        yield
    except FileNotFoundError as error:
        comes = f"ended {sweep.state} without one" if sweep.ended_at else "has one once some of its trials have ended"
        detail = f"Sweep {sweep.id} is {sweep.state}; it {comes}."
        raise Problem("no-report-yet", detail, state=sweep.state) from error
