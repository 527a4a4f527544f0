"""The routes of jobs: submit, list, show, steer, and what a job has said and left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from ..service.settings import ServiceSettings
from ..service.specs import JobSpec
from ..service.states import State
from ..service.store import Event, Job, Store
from ..workers.ledger import Ledger
from .models import (
    Answer,
    Checkpoint,
    CheckpointList,
    EventPage,
    EventQuery,
    JobAnswer,
    JobPage,
    JobQuery,
    Measurement,
    MetricPage,
    MetricQuery,
    Resize,
    WholeJobAnswer,
    job_answer,
)
from .pages import cursor_after, position_of
from .problems import Problem, documented
from .stream import EventStream

EVERYWHERE = documented("unauthorized", "invalid-request", "internal", "not-ready")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=EVERYWHERE)
NO_JOB = documented("no-such-job")
STEERED = documented("no-such-job", "wrong-state")
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
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
STREAM_EXAMPLE = 'id: 1\nevent: state\ndata: {"seq":1,"kind":"state","data":{"state":"QUEUED"}}\n\n'
MODEL_FILE = "model.safetensors"


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _answer(body: Answer, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body.model_dump(mode="json", by_alias=True), status, headers)


@router.post(
    "",
    status_code=201,
    response_model=JobAnswer,
    summary="Submit a job",
    responses={
        200: {"model": JobAnswer, "description": "The key was used before: the job of then"},
        **documented("malformed-body", "body-too-large", "unsupported-media-type", "invalid-job"),
    },
)
def submit(
    request: Request,
    spec: Annotated[JobSpec, Body(openapi_examples={"digits": {"summary": "SAMPa on digits", "value": EXAMPLE}})],
    key: Key = None,
) -> Response:
    """Store a job; it starts as soon as there is room. With an Idempotency-Key, repeating the request is safe."""
    job, created = _store(request).submit(spec, key)
    if created:
        request.app.state.reconciler.wake()
    headers = {"Location": f"/v1/jobs/{job.id}", "ETag": _etag(job)}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    return _answer(job_answer(job), 201 if created else 200, headers)


@router.get("", response_model=JobPage, summary="List jobs", responses=documented("wrong-cursor"))
def list_jobs(request: Request, query: Annotated[JobQuery, Query()]) -> Response:
    """Return jobs, newest first."""
    before = None if query.cursor is None else position_of(query.cursor, query.filters())
    found = _store(request).jobs(query.state, query.name, before, query.limit + 1)
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = cursor_after((shown[-1].created_at, shown[-1].id), query.filters()) if more else None
    headers = {"Link": f'<{_next_link(query, cursor)}>; rel="next"'} if cursor else {}
    return _answer(JobPage(items=[job_answer(job) for job in shown], next=cursor), headers=headers)


def _next_link(query: JobQuery, cursor: str) -> str:
    given = query.model_dump(mode="json", exclude_defaults=True) | {"cursor": cursor}
    return f"/v1/jobs?{urlencode(given, doseq=True)}"


@router.get(
    "/{job_id}",
    response_model=WholeJobAnswer,
    summary="Show a job",
    responses={304: {"description": "Nothing changed since the version in If-None-Match"}, **NO_JOB},
)
def show(request: Request, job_id: str, known: Annotated[str | None, Header(alias="If-None-Match")] = None) -> Response:
    """Return a job with its past."""
    store = _store(request)
    job = store.job(job_id)
    if _matches(known, _etag(job)):
        return Response(status_code=304, headers={"ETag": _etag(job)})
    elastic = Ledger(event.data for event in _all_events(store, job_id, "elastic")).totals()
    past = {"elastic": elastic, "transitions": store.transitions(job_id)}
    answer = WholeJobAnswer.model_validate({**job_answer(job).model_dump(by_alias=True), **past})
    return _answer(answer, headers={"ETag": _etag(job)})


@router.post("/{job_id}/cancel", status_code=202, response_model=JobAnswer, summary="Cancel a job", responses=NO_JOB)
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
    responses={**STEERED, **documented("malformed-body", "body-too-large", "unsupported-media-type")},
)
def resize(request: Request, job_id: str, asked: Resize) -> Response:
    """Let a job have at most so many workers from its next step on, or when it starts; its numbers don't change."""
    return _steered(request, lambda store: store.resize(job_id, asked.workers))


def _steered(request: Request, act: Callable[[Store], Job]) -> Response:
    job = act(_store(request))
    request.app.state.reconciler.wake()
    return _answer(job_answer(job), 202, {"Location": f"/v1/jobs/{job.id}", "ETag": _etag(job)})


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    summary="Read what happened, in pages or as a stream",
    responses={
        200: {
            "description": "A page, or a stream that ends with the job",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
        },
        **NO_JOB,
    },
)
def events(
    request: Request,
    job_id: str,
    query: Annotated[EventQuery, Query()],
    accept: Annotated[str, Header()] = "*/*",
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0)] = None,
) -> Response:
    """Return the events after a number. A stream takes it from Last-Event-ID, else from ``after``."""
    store = _store(request)
    job = store.job(job_id)
    after = query.after if last_event_id is None else last_event_id
    if query.stream or "text/event-stream" in accept:
        return EventStream(store, job_id, after, query.kind, request.app.state.stop)
    page = store.events(job_id, after, query.limit, query.kind)
    # The job was read first, so all that it counts was looked at, unless the page is full.
    seen = page[-1].seq if page else after
    last = seen if len(page) == query.limit else max(seen, job.last_event)
    return _answer(EventPage.of(page, last))


@router.get("/{job_id}/metrics", response_model=MetricPage, summary="Read the measurements", responses=NO_JOB)
def metrics(request: Request, job_id: str, query: Annotated[MetricQuery, Query()]) -> Response:
    """Return running losses and evaluations, in order."""
    found = _store(request).events(job_id, query.after, query.limit + 1, ("metrics", "evaluation"))
    shown, more = found[: query.limit], len(found) > query.limit
    items = [Measurement.model_validate({**one.data, "seq": one.seq, "kind": one.kind}) for one in shown]
    return _answer(MetricPage(items=items, next=shown[-1].seq if more else None))


@router.get("/{job_id}/checkpoints", response_model=CheckpointList, summary="List the checkpoints", responses=NO_JOB)
def checkpoints(request: Request, job_id: str) -> Response:
    """Return all checkpoints that were written, and which are still there."""
    folder = _settings(request).job_dir(job_id)
    found = _all_events(_store(request), job_id, "checkpoint")
    return _answer(CheckpointList(items=[_checkpoint(event, folder) for event in found]))


def _all_events(store: Store, job_id: str, kind: str) -> list[Event]:
    found: list[Event] = []
    while page := store.events(job_id, found[-1].seq if found else 0, kinds=(kind,)):
        found += page
    return found


def _checkpoint(event: Event, folder: Path) -> Checkpoint:
    data: dict[str, Any] = event.data
    path = str(data.get("path", ""))
    return Checkpoint(
        seq=event.seq,
        time=event.time,
        step=data.get("step"),
        bytes=data.get("bytes"),
        path=path,
        available=bool(path) and (folder / path).exists(),
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
        **documented("no-such-job", "no-model-yet", "model-gone"),
    },
)
def model(
    request: Request, job_id: str, known: Annotated[str | None, Header(alias="If-None-Match")] = None
) -> Response:
    """Return the weights as a safetensors file."""
    job = _store(request).job(job_id)
    if job.state is not State.SUCCEEDED:
        raise Problem("no-model-yet", _why_no_model(job), state=job.state)
    path = _settings(request).job_dir(job_id) / MODEL_FILE
    try:
        found = path.stat()
    except OSError as error:
        detail = f"Job {job_id} has succeeded, but its {MODEL_FILE} was removed; submit the job again to train it anew."
        raise Problem("model-gone", detail) from error
    file = FileResponse(
        path, media_type="application/octet-stream", filename=f"{job.name}.safetensors", stat_result=found
    )
    if _matches(known, file.headers["etag"]):
        return Response(status_code=304, headers={"ETag": file.headers["etag"]})
    return file


def _why_no_model(job: Job) -> str:
    if job.ended_at is None:
        return f"Job {job.id} is {job.state}; its model is there once it has SUCCEEDED."
    return f"Job {job.id} ended {job.state} and has no model{': ' + job.reason if job.reason else '.'}"


def _settings(request: Request) -> ServiceSettings:
    settings: ServiceSettings = request.app.state.settings
    return settings


def _etag(job: Job) -> str:
    return f'"{job.version}"'


def _matches(known: str | None, etag: str) -> bool:
    """Say whether an If-None-Match header names this version."""
    tags = [tag.strip().removeprefix("W/") for tag in (known or "").split(",")]
    return etag in tags or "*" in tags
