"""A reader of the stream misses nothing and sees nothing twice, whatever breaks in between."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sampa.service.states import State
from sampa.service.store import Job, Store
from starlette.types import Message

from .conftest import metrics
from .processes import ServerProcess, run_job, server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("stream")) as server:
        server.start()
        yield server


@pytest.fixture
def shared(server: ServerProcess) -> Iterator[Store]:
    """The store of the server process, opened beside it."""
    store = server.store()
    yield store
    store.close()


def messages(text: str) -> list[dict[str, str]]:
    """Return the complete messages of a stream as fields, without comments."""
    blocks = text.split("\n\n")[:-1]
    fields = [[line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")] for block in blocks]
    return [dict(block) for block in fields if block and block[0][0] != "retry"]


def write_steps(store: Store, job: Job, count: int, per_batch: int = 3) -> threading.Thread:
    """Append events from another thread, then end the job."""

    def work() -> None:
        for start in range(1, count + 1, per_batch):
            store.append(job.id, metrics(range(start, min(start + per_batch, count + 1))), attempt=1)
        store.move(job.id, State.SUCCEEDED, attempt=1, result={})

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_stream_gives_history_then_news_then_the_end(http: httpx.Client, store: Store, running: Job) -> None:
    store.append(running.id, [("log", {"worker": 0, "line": "a\nb\r\n\n: é\u2028"})], attempt=1)
    store.move(running.id, State.SUCCEEDED, result={})
    answer = http.get(f"/v1/jobs/{running.id}/events", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    *events, end = messages(answer.text)
    assert [(event["id"], event["event"]) for event in events] == [
        ("1", "state"),
        ("2", "state"),
        ("3", "state"),
        ("4", "log"),
        ("5", "state"),
    ]
    page = http.get(f"/v1/jobs/{running.id}/events").json()["items"]
    assert [json.loads(event["data"]) for event in events] == page
    assert (end["event"], json.loads(end["data"])) == ("end", {"state": "SUCCEEDED", "last": 5})
    assert "id" not in end


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("?stream=true", {}, ["1", "2", "3", "4"]),
        ("?stream=true&after=2", {}, ["3", "4"]),
        ("?stream=true&after=1", {"Last-Event-ID": "3"}, ["4"]),
        ("?stream=true&after=4", {}, []),
        ("?kind=log", {"Accept": "text/event-stream"}, []),
        ("?kind=state", {"Accept": "text/event-stream", "Last-Event-ID": "3"}, ["4"]),
    ],
)
def test_a_stream_starts_where_it_is_told(
    http: httpx.Client, store: Store, running: Job, query: str, headers: dict[str, str], expected: list[str]
) -> None:
    store.move(running.id, State.SUCCEEDED, result={})
    *events, end = messages(http.get(f"/v1/jobs/{running.id}/events{query}", headers=headers).text)
    assert [event["id"] for event in events] == expected
    assert end["event"] == "end"


@pytest.mark.parametrize("number", [-1, 10**30])
def test_a_stream_from_a_number_that_no_event_has_is_refused(http: httpx.Client, running: Job, number: int) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(number)}
    answer = http.get(f"/v1/jobs/{running.id}/events", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:sampa:problem:invalid-request")


def test_a_reader_that_drops_at_random_points_misses_nothing_and_sees_nothing_twice(
    server: ServerProcess, shared: Store
) -> None:
    job = run_job(shared, "dropped")
    choose = random.Random(7)
    seen: list[int] = []
    drops, ended = 0, False
    thread = write_steps(shared, job, 300)
    headers = {"Authorization": f"Bearer {server.token}", "Accept": "text/event-stream"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as http:
        while not ended:
            last = {"Last-Event-ID": str(seen[-1])} if seen else {}
            text, most = "", choose.randrange(1, 8000)
            with http.stream("GET", f"/v1/jobs/{job.id}/events", headers=last) as answer:
                for piece in answer.iter_text(chunk_size=97):
                    text += piece
                    if len(text) > most:
                        break
            got = messages(text)
            seen += [int(message["id"]) for message in got if "id" in message]
            ended = any(message["event"] == "end" for message in got)
            drops += not ended
    thread.join(20)
    assert drops > 5
    assert seen == list(range(1, shared.job(job.id).last_event + 1))


def test_a_follower_outlives_a_killed_server(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        first = server.start()
        store = server.store()
        job = run_job(store, "killed")
        seen: list[int] = []

        def read() -> None:
            with server.client() as client:
                seen.extend(event["seq"] for event in client.follow(job.id))

        reader = threading.Thread(target=read)
        reader.start()
        store.append(job.id, metrics(range(1, 50)), attempt=1)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        store.append(job.id, metrics(range(50, 100)), attempt=1)  # the runner goes on without the server
        server.start()
        assert store.job(job.id).attempt == 1
        write_steps(store, job, 20).join(20)
        reader.join(20)
        assert seen == list(range(1, store.job(job.id).last_event + 1))
        store.close()


def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        process = server.start()
        store = server.store()
        job = run_job(store, "open")
        headers = {"Authorization": f"Bearer {server.token}", "Accept": "text/event-stream"}
        with httpx.stream(
            "GET", f"{server.url}/v1/jobs/{job.id}/events", headers=headers, timeout=20, trust_env=False
        ) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            process.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert process.wait(10) == 0
        assert [message["event"] for message in messages(text)][-1] == "state"
        assert "exceeded" not in server.log.read_text()
        store.close()


def test_a_reader_that_leaves_is_noticed(app: FastAPI, token: str, running: Job) -> None:
    sent: list[Message] = []

    async def leave_after_the_history() -> None:
        started = asyncio.Event()

        async def receive() -> Message:
            await started.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if b"RUNNING" in message.get("body", b""):
                started.set()

        await asyncio.wait_for(app(stream_scope(running.id, token), receive, send), 20)

    asyncio.run(leave_after_the_history())
    assert sent[0]["status"] == 200
    assert not any(b"event: end" in message.get("body", b"") for message in sent)


def stream_scope(job_id: str, token: str) -> dict[str, Any]:
    """Return the request of a stream as a server of uvicorn's kind hands it over."""
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"accept", b"text/event-stream")]
    path = f"/v1/jobs/{job_id}/events"
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {"type": "http", "asgi": asgi, "method": "GET", "path": path, "query_string": b"", "headers": headers}


def test_following_yields_what_comes_later(server: ServerProcess, shared: Store) -> None:
    job = run_job(shared, "later")
    with server.client() as client:
        events: Iterator[dict[str, Any]] = client.follow(job.id, after=3)
        shared.append(job.id, metrics(range(1, 2)), attempt=1)
        assert next(events)["seq"] == 4
        shared.append(job.id, metrics(range(2, 3)), attempt=1)
        assert next(events)["seq"] == 5
        shared.move(job.id, State.FAILED, reason="x")
        assert [event["data"]["state"] for event in events] == ["FAILED"]
