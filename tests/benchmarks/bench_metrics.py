"""What does GET /metrics cost where there are many jobs, and what does counting requests cost each of them?

A store on SQLite with 10,000 jobs, sweeps and trials of 100 events each, of which 5 are changes of workers and 20 jobs
run. Times are of the processor, since other processes may be at work; the first scrape after the start of the server
reads all changes of workers, the next ones only those that are new.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import secrets
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sampa.api.app import create_app
from sampa.api.metrics import Metrics
from sampa.api.requests import RequestMiddleware
from sampa.service.rows import as_json
from sampa.service.settings import ServiceSettings
from sampa.service.store import Store
from sampa.service.tables import events, jobs
from sqlalchemy import insert

from ..api.conftest import elastic
from ..api.fakes import IdleReconciler
from ..service.samples import spec_of

EVENTS, CHANGES, RUNNING, SCRAPES, REQUESTS = 100, range(10, 60, 10), 20, 20, 20_000
BEGAN = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


def fill(store: Store, count: int) -> None:
    """Write jobs with their events, past the rules of their states."""
    spec = as_json(spec_of())
    for first in range(0, count, 1000):
        some = [row(number, spec) for number in range(first, min(first + 1000, count))]
        with store._write() as connection:
            connection.execute(insert(jobs), some)
            connection.execute(insert(events), [one for job in some for one in history(job["id"])])


def row(number: int, spec: dict[str, Any]) -> dict[str, Any]:
    state = "RUNNING" if number < RUNNING else "QUEUED" if number < 10 * RUNNING else "SUCCEEDED"
    created = BEGAN + datetime.timedelta(seconds=number)
    started = None if state == "QUEUED" else created + datetime.timedelta(seconds=number % 100)
    return {
        "id": secrets.token_hex(6),
        "kind": "job" if number % 2 else "trial",
        "name": "x",
        "spec": spec,
        "state": state,
        "reason": "",
        "attempt": 1,
        "restarts": 0,
        "losses": 0,
        "launched": True,
        "created_at": created,
        "updated_at": created,
        "started_at": started,
        "progress": {"step": 9, "seconds_per_step": 0.02},
        "last_event": EVENTS,
        "version": EVENTS,
    }


def history(job_id: str) -> Iterator[dict[str, Any]]:
    metrics = ("metrics", {"step": 9, "loss": 0.5, "lr": 0.05, "seconds": {"compute": 0.01, "exchange": 0.001}})
    for seq in range(1, EVENTS + 1):
        kind, data = elastic("loss", seq, 2, 1, recovery_seconds=0.1) if seq in CHANGES else metrics
        yield {"job_id": job_id, "seq": seq, "time": BEGAN, "kind": kind, "data": data}


async def scrapes(app: FastAPI) -> list[float]:
    """Return the seconds of each scrape."""
    took = []
    async with AsyncClient(transport=ASGITransport(app), base_url="http://sampa.test") as http:
        for _ in range(SCRAPES):
            began = time.process_time()
            (await http.get("/metrics")).raise_for_status()
            took.append(time.process_time() - began)
    return took


async def per_request(store: Store) -> float:
    """Return the seconds that counting adds to a request: the median of turns."""

    class Route:
        path = "/v1/jobs/{job_id}"

    async def bare(scope: Any, _receive: Any, send: Any) -> None:
        scope["route"] = Route
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    counted = RequestMiddleware(bare, Metrics(store, IdleReconciler()), threading.Event(), False)
    added = []
    for _ in range(9):
        without, with_it = [await _turn(app) for app in (bare, counted)]
        added.append(with_it - without)
    return statistics.median(added)


async def _turn(app: Callable[[Any, Any, Any], Awaitable[None]]) -> float:
    async def sink(_message: Any) -> None:
        return

    began = time.process_time()
    for _ in range(REQUESTS):
        await app({"type": "http", "method": "GET", "path": "/v1/jobs/x"}, None, sink)
    return (time.process_time() - began) / REQUESTS


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(state_dir=folder, ray_address="http://127.0.0.1:1")
        store = Store(settings.store_url)
        store.migrate()
        fill(store, given.jobs)
        first, *later = asyncio.run(scrapes(create_app(settings, store, IdleReconciler())))
        added = asyncio.run(per_request(store))
        store.close()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    low, middle, high = statistics.quantiles(later, n=4)
    lines = [
        f"# What /metrics costs, {datetime.date.today()}",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, SQLite, commit "
        f"{commit.stdout.strip()}; `make bench-metrics`: {given.jobs:,} jobs, {given.jobs * EVENTS:,} events, "
        f"{given.jobs * len(CHANGES):,} of them changes of workers.",
        "",
        "| | processor time |",
        "| --- | ---: |",
        f"| the first scrape of a process | {first * 1e3:.0f} ms |",
        f"| each later one: median (quartiles) of {len(later)} | {middle * 1e3:.0f} ms "
        f"({low * 1e3:.0f} to {high * 1e3:.0f}) |",
        f"| counting one request | {added * 1e6:.1f} µs |",
        "",
        "Not shown: PostgreSQL; disks that are slower than the page cache.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
