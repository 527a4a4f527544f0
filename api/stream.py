"""The events of a job, trial or sweep as they are sent: the history first, then live, each once, until it has ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Collection

import anyio
from anyio.to_thread import run_sync
from starlette.responses import StreamingResponse

from ..service.states import State, is_final
from ..service.store import Event, Store, StoreUnavailable
from .models import EventAnswer

POLL_S = 0.25  # between two looks of one stream at the store
KEEP_ALIVE_S = 15.0  # silence after which a comment shows that the connection lives
RETRY_MS = 1000  # after which a reader may come back
BATCH = 500


class EventStream(StreamingResponse):
    """The open end of one reader."""

    media_type = "text/event-stream"

    def __init__(self, store: Store, some_id: str, after: int, kinds: Collection[str], stop: threading.Event) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_lines(store, some_id, after, kinds, stop), headers=headers)


async def _lines(
    store: Store, some_id: str, after: int, kinds: Collection[str], stop: threading.Event
) -> AsyncIterator[bytes]:
    """Yield what goes over the wire; ends with what it is about, with ``stop``, or when the store can't be read."""
    yield f"retry: {RETRY_MS}\n\n".encode()
    spoke = time.monotonic()
    while not stop.is_set():
        try:
            news, after, state = await run_sync(_look, store, some_id, after, kinds)
        except StoreUnavailable:
            return  # the reader comes back with Last-Event-ID and is told why it can't be served
        if news:
            yield b"".join(map(_event_lines, news))
            spoke = time.monotonic()
        elif state is not None:
            yield _message("end", {"state": state, "last": after})
            return
        elif time.monotonic() - spoke > KEEP_ALIVE_S:
            yield b": keep-alive\n\n"
            spoke = time.monotonic()
        if len(news) < BATCH:
            await anyio.sleep(POLL_S)


def _look(store: Store, some_id: str, after: int, kinds: Collection[str]) -> tuple[list[Event], int, State | None]:
    """Return the events after a number, the number up to which all were seen, and the final state once all were.

    The record is read first: what its ``last_event`` counts is there to be read, and once ended it gets no more.
    """
    record = store.record(some_id)
    if record.last_event <= after:
        return [], after, record.state if is_final(record.state) else None
    news = store.events(some_id, after=after, limit=BATCH, kinds=kinds)
    if len(news) < BATCH:
        after = max(record.last_event, after)
    after = max(after, news[-1].seq) if news else after
    return news, after, None


def _event_lines(event: Event) -> bytes:
    answer = EventAnswer.model_validate(event)
    return _message(event.kind, answer.model_dump(mode="json"), number=event.seq)


def _message(kind: str, data: object, *, number: int | None = None) -> bytes:
    head = "" if number is None else f"id: {number}\n"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))  # JSON keeps line breaks escaped: one data line
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()
