"""What the routes of jobs, sweeps and trials share: how a record is submitted, listed, shown, steered and heard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Header, Query, Request, Response
from fastapi.responses import JSONResponse

from ..service.room import why_no_room
from ..service.settings import ServiceSettings
from ..service.shared import runs_of
from ..service.store import Event, Job, Store, Sweep
from ..workers.ledger import Ledger
from ..workers.plan import Workers
from .faults import Fault
from .models import Answer, EventPage, EventQuery, ListQuery
from .pages import Position, cursor_after, position_of
from .problems import Problem, documented, invalid_body
from .stream import EventStream

EVERYWHERE = documented("unauthorized", "invalid-request", "internal", "not-ready")
BODY = documented("malformed-body", "body-too-large", "unsupported-media-type")
STREAM_EXAMPLE = 'id: 1\nevent: state\ndata: {"seq":1,"kind":"state","data":{"state":"QUEUED"}}\n\n'
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page, or a stream that ends with what it is about",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
    }
}
UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Nothing changed since the version in If-None-Match"}
}

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Known = Annotated[str | None, Header(alias="If-None-Match")]
Events = Annotated[EventQuery, Query()]
Accept = Annotated[str, Header()]
LastEvent = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**31)]
Record = TypeVar("Record", Job, Sweep)


def store_of(request: Request) -> Store:
    """Return the store of the application."""
    store: Store = request.app.state.store
    return store


def settings_of(request: Request) -> ServiceSettings:
    """Return the settings of the application."""
    settings: ServiceSettings = request.app.state.settings
    return settings


def check_storage(request: Request) -> None:
    """Raise the problem of a server whose jobs would run where its storage isn't, if that can be told."""
    launcher, runs = request.app.state.launcher, runs_of(settings_of(request))
    why = launcher.why_not_shared(runs) if launcher is not None and runs is not None else ""
    if why:
        detail = (
            f"{runs}, where the runs' files lie, is not shared with all nodes that jobs run on: {why}. "
            "Nothing was stored. Use a volume that many nodes may write to, at the same path everywhere."
        )
        raise Problem("storage-not-shared", detail)


def check_room(request: Request, workers: Workers, field: str = "workers") -> None:
    """Raise the problem of workers of which not even the fewest could ever run on the cluster, if that can be told.

    ``field`` is where the body has them.
    """
    nodes, launcher = settings_of(request).most_nodes(), request.app.state.launcher
    if nodes is None and launcher is not None:
        nodes = launcher.room()
    why = "" if nodes is None else why_no_room(workers, nodes)
    if why:
        raise invalid_body("no-room", [Fault(tuple(field.split(".")), f"{field}: {why}")])


def path_of(record: Job | Sweep) -> str:
    """Return where a record is shown."""
    if isinstance(record, Sweep):
        return f"/v1/sweeps/{record.id}"
    if record.part is not None:
        return f"/v1/sweeps/{record.sweep_id}/trials/{record.part.number}"
    return f"/v1/jobs/{record.id}"


def answer(body: Answer, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a body as JSON."""
    return JSONResponse(body.model_dump(mode="json", by_alias=True), status, headers)


def submitted(request: Request, record: Job | Sweep, body: Answer, created: bool) -> Response:
    """Return 201 for a new record; 200 for the one that a repeated key has found."""
    if created:
        request.app.state.reconciler.wake()
    headers = {"Location": path_of(record), "ETag": etag(record)}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    return answer(body, 201 if created else 200, headers)


def steered(request: Request, record: Job | Sweep, body: Answer) -> Response:
    """Return 202: what was asked is under way, or was before."""
    request.app.state.reconciler.wake()
    return answer(body, 202, {"Location": path_of(record), "ETag": etag(record)})


def shown(known: str | None, record: Job | Sweep, body: Callable[[], Answer]) -> Response:
    """Return a record, or that it is still the version that is known."""
    tag = {"ETag": etag(record)}
    return Response(status_code=304, headers=tag) if matches(known, tag["ETag"]) else answer(body(), headers=tag)


def listed(
    path: str,
    query: ListQuery,
    find: Callable[[Position | None, int], Sequence[Record]],
    page: Callable[[Sequence[Record], str | None], Answer],
) -> Response:
    """Return one page, with the way to the next one.

    Args:
        path: Of the list.
        query: Which ones.
        find: Returns so many records, from a position on.
        page: Makes the body of them and the cursor of the next page.
    """
    found = find(None if query.cursor is None else position_of(query.cursor, query.filters()), query.limit + 1)
    items, more = found[: query.limit], len(found) > query.limit
    cursor = cursor_after((items[-1].created_at, items[-1].id), query.filters()) if more else None
    given = query.model_dump(mode="json", exclude_defaults=True) | {"cursor": cursor}
    headers = {"Link": f'<{path}?{urlencode(given, doseq=True)}>; rel="next"'} if cursor else {}
    return answer(page(items, cursor), headers=headers)


def heard(request: Request, record: Job | Sweep, query: EventQuery, accept: str, last_event_id: int | None) -> Response:
    """Return the events after a number, as a page or a stream. A stream takes it from Last-Event-ID, else ``after``."""
    store = store_of(request)
    after = query.after if last_event_id is None else last_event_id
    if query.stream or "text/event-stream" in accept:
        return EventStream(store, record.id, after, query.kind, request.app.state.stop)
    page = store.events(record.id, after, query.limit, query.kind)
    # The record was read first, so all that it counts was looked at, unless the page is full.
    seen = page[-1].seq if page else after
    last = seen if len(page) == query.limit else max(seen, record.last_event)
    return answer(EventPage.of(page, last))


def past_of(store: Store, job: Job) -> dict[str, Any]:
    """Return what a job or trial has been through: its elastic events summed up, and its transitions."""
    elastic = Ledger(event.data for event in all_events(store, job.id, "elastic")).totals()
    return {"elastic": elastic, "transitions": store.transitions(job.id)}


def all_events(store: Store, some_id: str, kind: str) -> list[Event]:
    """Return all events of a kind."""
    found: list[Event] = []
    while page := store.events(some_id, found[-1].seq if found else 0, kinds=(kind,)):
        found += page
    return found


def etag(record: Job | Sweep) -> str:
    """Return the version of a record as HTTP names it."""
    return f'"{record.version}"'


def matches(known: str | None, tag: str) -> bool:
    """Say whether an If-None-Match header names this version."""
    tags = [each.strip().removeprefix("W/") for each in (known or "").split(",")]
    return tag in tags or "*" in tags
