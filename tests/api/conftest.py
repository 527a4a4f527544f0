"""An application over a fresh store, asked without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sampa.api.app import create_app
from sampa.api.auth import token_in
from sampa.api.client import Client
from sampa.service.settings import ServiceSettings
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Job, Store

from ..service.samples import FakeRay
from .fakes import IdleReconciler

SPEC: dict[str, Any] = {
    "name": "digits-sampa",
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "method": {"name": "sampa", "rho": 0.1, "lambda": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "epochs": 1,
    "batch_size": 64,
}

SWEEP: dict[str, Any] = {
    "name": "rho",
    "base": {name: value for name, value in SPEC.items() if name != "name"},
    "space": {"method.rho": {"loguniform": [0.01, 0.5]}},
    "trials": 4,
    "baselines": ["sgd"],
}


class AppTransport(httpx.BaseTransport):
    """Hands each request to the application; the answer is there as a whole."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer = await self._inner.handle_async_request(_asynchronous(request))
            content = await answer.aread()
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)

        return asyncio.run(asyncio.wait_for(ask(), 20))


def _asynchronous(request: httpx.Request) -> httpx.Request:
    assert isinstance(request.stream, httpx.SyncByteStream)
    pieces = request.stream

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    headers = request.headers
    return httpx.Request(request.method, request.url, headers=headers, content=content())


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(state_dir=tmp_path / "state", ray_address="http://127.0.0.1:1")


@pytest.fixture
def store(settings: ServiceSettings) -> Iterator[Store]:
    settings.state_dir.mkdir(mode=0o700)
    store = Store(settings.store_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def reconciler() -> IdleReconciler:
    return IdleReconciler()


@pytest.fixture
def launcher() -> FakeRay:
    return FakeRay()


@pytest.fixture
def app(settings: ServiceSettings, store: Store, reconciler: IdleReconciler, launcher: FakeRay) -> FastAPI:
    return create_app(settings, store, reconciler, launcher)


@pytest.fixture
def token(settings: ServiceSettings) -> str:
    return token_in(settings.state_dir)


@pytest.fixture
def http(app: FastAPI, token: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test", headers=headers) as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI) -> Iterator[httpx.Client]:
    """Someone without a token."""
    with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test") as client:
        yield client


@pytest.fixture
def transport(app: FastAPI) -> AppTransport:
    return AppTransport(app)


@pytest.fixture
def client(transport: AppTransport, token: str) -> Iterator[Client]:
    with Client("http://sampa.test", token, transport=transport) as client:
        yield client


@pytest.fixture
def job(store: Store) -> Job:
    return store.submit(JobSpec.model_validate(SPEC))[0]


@pytest.fixture
def running(store: Store, job: Job) -> Job:
    store.move(job.id, State.STARTING, next_attempt=True)
    return store.move(job.id, State.RUNNING)


def elastic(cause: str, step: int, before: int, after: int, **costs: Any) -> tuple[str, dict[str, Any]]:
    """Return the report of a change of workers."""
    free = {"steps_lost": 0, "samples_replayed": 0, "recovery_seconds": 0.0, "detail": ""}
    change = {"cause": cause, "generation": 1, "step": step, "workers_before": before, "workers_after": after}
    return ("elastic", {**change, **free, **costs})


def metrics(steps: range) -> list[tuple[str, dict[str, Any]]]:
    """Return a report of each step."""
    return [("metrics", {"step": step, "epoch": 0, "loss": 1.0 / step, "lr": 0.05}) for step in steps]
