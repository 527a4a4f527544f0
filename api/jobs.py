"""The routes of jobs: submit, list, show, steer, and what a job has said and left behind."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import FileResponse

from ..service.specs import JobSpec
from ..service.states import State
from ..service.store import Event, Job, Store
from .downloads import file_reply
from .models import (
    Checkpoint,
    CheckpointList,
    EventPage,
    JobAnswer,
    JobPage,
    ListQuery,
    Measurement,
    MetricPage,
    MetricQuery,
    Resize,
    WholeJobAnswer,
    job_answer,
)
from .problems import Problem, documented
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
    all_events,
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

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=EVERYWHERE)
NO_JOB = documented("no-such-job")
CANCELLED = documented("no-such-job", "part-of-sweep")
NO_STORAGE = documented("no-storage")
STEERED = documented("no-such-job", "wrong-state", "part-of-sweep")
EXAMPLE = {
    "name": "digits-sampa",
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "method": {"name": "sampa", "rho": 0.1, "lambda": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005},
    "schedule": {"name": "cosine"},
    "epochs": 30,
    "batch_size": 64,
    "pairs": 1,
}
MODEL_FILE = "model.safetensors"
CHECKPOINTS = "checkpoints"


@router.post(
    "",
    status_code=201,
    response_model=JobAnswer,
    summary="Submit a job",
    responses={
        200: {"model": JobAnswer, "description": "The key was used before: the job of then"},
        **documented("malformed-body", "body-too-large", "unsupported-media-type", "invalid-job", "storage-not-shared"),
    },
)
def submit(
    request: Request,
    spec: Annotated[JobSpec, Body(openapi_examples={"digits": {"summary": "SAMPa on digits", "value": EXAMPLE}})],
    key: Key = None,
) -> Response:
    """Store a job; it starts as soon as there is room. With an Idempotency-Key, repeating the request is safe."""
    check_storage(request)
    check_room(request, spec.workers)
    job, created = store_of(request).submit(spec, key)
    return submitted(request, job, job_answer(job), created)


@router.get("", response_model=JobPage, summary="List jobs", responses=documented("wrong-cursor"))
def list_jobs(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
    """Return jobs, newest first. The trials of sweeps are not among them."""
    store = store_of(request)
    return listed(
        "/v1/jobs",
        query,
        lambda before, limit: store.jobs(query.state, query.name, before, limit),
        lambda found, cursor: JobPage(items=[job_answer(job) for job in found], next=cursor),
    )


@router.get("/{job_id}", response_model=WholeJobAnswer, summary="Show a job", responses={**UNCHANGED, **NO_JOB})
def show(request: Request, job_id: str, known: Known = None) -> Response:
    """Return a job with its past; a trial of a sweep too, by its id."""
    store = store_of(request)
    job = store.job(job_id)
    return shown(known, job, lambda: WholeJobAnswer(**dict(job_answer(job)), **past_of(store, job)))


@router.post("/{job_id}/cancel", status_code=202, response_model=JobAnswer, summary="Cancel a job", responses=CANCELLED)
def cancel(request: Request, job_id: str) -> Response:
    """End a job. Repeating it, or cancelling a job that has ended, changes nothing and returns the job as it is."""
    return _steered(request, lambda store: store.cancel(job_id))


@router.post("/{job_id}/pause", status_code=202, response_model=JobAnswer, summary="Pause a job", responses=STEERED)
def pause(request: Request, job_id: str) -> Response:
    """Stop a job at its next step, with a checkpoint from which resume goes on. Repeating it changes nothing."""
    return _steered(request, lambda store: store.pause(job_id))


@router.post("/{job_id}/resume", status_code=202, response_model=JobAnswer, summary="Resume a job", responses=STEERED)
def resume(request: Request, job_id: str) -> Response:
    """Queue a paused job again, with the same numbers to come. Repeating it changes nothing."""
    return _steered(request, lambda store: store.resume(job_id))


@router.post(
    "/{job_id}/resize",
    status_code=202,
    response_model=JobAnswer,
    summary="Resize a job",
    responses={**STEERED, **BODY},
)
def resize(request: Request, job_id: str, asked: Resize) -> Response:
    """Let a job have at most so many workers from its next step on, or when it starts; its numbers don't change."""
    return _steered(request, lambda store: store.resize(job_id, asked.workers))


def _steered(request: Request, act: Callable[[Store], Job]) -> Response:
    job = act(store_of(request))
    return steered(request, job, job_answer(job))


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    summary="Read what happened, in pages or as a stream",
    responses={**EVENTS, **NO_JOB},
)
def events(
    request: Request, job_id: str, query: Events, accept: Accept = "*/*", last_event_id: LastEvent = None
) -> Response:
    """Return the events after a number. A stream takes it from Last-Event-ID, else from ``after``."""
    return heard(request, store_of(request).job(job_id), query, accept, last_event_id)


@router.get("/{job_id}/metrics", response_model=MetricPage, summary="Read the measurements", responses=NO_JOB)
def metrics(request: Request, job_id: str, query: Annotated[MetricQuery, Query()]) -> Response:
    """Return running losses and evaluations, in order."""
    found = store_of(request).events(job_id, query.after, query.limit + 1, ("metrics", "evaluation"))
    shown, more = found[: query.limit], len(found) > query.limit
    items = [Measurement.model_validate({**one.data, "seq": one.seq, "kind": one.kind}) for one in shown]
    return answer(MetricPage(items=items, next=shown[-1].seq if more else None))


@router.get(
    "/{job_id}/checkpoints",
    response_model=CheckpointList,
    summary="List the checkpoints",
    responses={**NO_JOB, **NO_STORAGE},
)
def checkpoints(request: Request, job_id: str) -> Response:
    """Return all checkpoints that were written, and which are still there."""
    found = all_events(store_of(request), job_id, "checkpoint")
    there = {f"{CHECKPOINTS}/{name}" for name in (settings_of(request).job_storage(job_id) / CHECKPOINTS).names()}
    return answer(CheckpointList(items=[_checkpoint(event, there) for event in found]))


def _checkpoint(event: Event, there: Container[str]) -> Checkpoint:
    data: dict[str, Any] = event.data
    path = str(data.get("path", ""))
    return Checkpoint(
        seq=event.seq,
        time=event.time,
        step=data.get("step"),
        bytes=data.get("bytes"),
        path=path,
        available=path in there,
    )


@router.get(
    "/{job_id}/model",
    response_class=FileResponse,
    summary="Download the model",
    responses={
        200: {
            "description": "The trained weights",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "It is the file in If-None-Match"},
        **documented("no-such-job", "no-model-yet", "model-gone", "no-storage"),
    },
)
def model(request: Request, job_id: str, known: Known = None) -> Response:
    """Return the weights as a safetensors file."""
    job = store_of(request).job(job_id)
    if job.state is not State.SUCCEEDED:
        raise Problem("no-model-yet", _why_no_model(job), state=job.state)
    storage = settings_of(request).job_storage(job_id)
    try:
        return file_reply(request, storage, MODEL_FILE, "application/octet-stream", known, f"{job.name}.safetensors")
    except FileNotFoundError as error:
        detail = f"Job {job_id} has succeeded, but its {MODEL_FILE} was removed; submit the job again to train it anew."
        raise Problem("model-gone", detail) from error


def _why_no_model(job: Job) -> str:
    if job.ended_at is None:
        return f"Job {job.id} is {job.state}; its model is there once it has SUCCEEDED."
    return f"Job {job.id} ended {job.state} and has no model{': ' + job.reason if job.reason else '.'}"
