"""The application: the routes, the gate before them, and what runs beside them while the server lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Protocol

from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ..service import local_ray
from ..service.backends import launcher_of
from ..service.launcher import Launcher
from ..service.reconciler import Reconciler
from ..service.settings import ServiceSettings
from ..service.store import Store
from . import bundles, health, jobs, metrics, problems, sweeps
from .auth import OPEN_PATHS, BearerGate, token_of
from .bodies import BodyLimit
from .requests import RequestMiddleware

log = logging.getLogger("sampa.api")
PASS_DEADLINE_S = 25.0  # after which a pass of the reconciler is left to itself; one that starts Ray takes this long


class Beside(Protocol):
    """What works beside the routes: the reconciler."""

    def run(self, stop: threading.Event) -> None: ...
    def wake(self) -> None: ...
    def health(self) -> Mapping[str, Any]: ...
    @property
    def leads(self) -> bool: ...
    @property
    def leader(self) -> str: ...


def create_app(
    settings: ServiceSettings,
    store: Store | None = None,
    reconciler: Beside | None = None,
    launcher: Launcher | None = None,
) -> FastAPI:
    """Return the application over a store, which is up to date; what is left out is made from the settings, but that a
    reconciler which is given needs no launcher.

    Its lifespan runs the reconciler, which finds or starts the local Ray when the
    settings give no Ray address. ``app.state.stop`` ends the streams and the reconciler when it is set; before that,
    ``app.state.draining`` says that the server is not ready any more.
    """
    app = FastAPI(
        title="sampa",
        version=version("sampa"),
        summary="Train with SAMPa over REST.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.settings, app.state.stop, app.state.draining = settings, threading.Event(), threading.Event()
    app.state.store = store or Store(settings.store_url)
    if reconciler is None:
        launcher = launcher or launcher_of(settings)
        reconciler = Reconciler(app.state.store, launcher, settings)
    app.state.launcher, app.state.reconciler = launcher, reconciler
    app.state.metrics = metrics.Metrics(app.state.store, reconciler)
    app.add_middleware(BodyLimit)
    app.add_middleware(BearerGate, token=token_of(settings))
    logs = settings.log_format == "json"
    app.add_middleware(RequestMiddleware, metrics=app.state.metrics, draining=app.state.draining, logs=logs)
    app.include_router(jobs.router)
    app.include_router(sweeps.router)
    app.include_router(bundles.router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    problems.install(app)
    app.openapi = _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    thread = threading.Thread(target=state.reconciler.run, args=(state.stop,), name="reconciler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        state.stop.set()
        state.reconciler.wake()
        await run_sync(_end, app, thread)


def _end(app: FastAPI, thread: threading.Thread) -> None:
    """Wait for the reconciler's pass, then end the local Ray if it is ours alone; its jobs go on at the next start."""
    state = app.state
    thread.join(PASS_DEADLINE_S)
    if state.launcher is not None:
        state.launcher.close()
        ours = isinstance(state.launcher, local_ray.LocalRayJobs) and state.launcher.alone()
        ray = local_ray.find(state.settings.state_dir) if ours else None
        if ray is not None:
            log.info("stopping the local Ray; unfinished jobs go on from their newest checkpoints at the next start")
            local_ray.stop(ray)
    state.store.close()


def _described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return what makes the OpenAPI document: FastAPI's, with our problems and our token in it."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = document["components"]
            components["schemas"]["Problem"] = problems.SCHEMA
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}]
            for path in OPEN_PATHS & document["paths"].keys():
                document["paths"][path]["get"]["security"] = []
            app.openapi_schema = document
        return app.openapi_schema

    return openapi
