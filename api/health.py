"""Whether the process lives and whether it can do its work; both without a token."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from .models import Health
from .problems import Problem, documented

router = APIRouter(tags=["health"])


@router.get("/livez", response_model=Health, summary="Say whether the process answers")
async def livez() -> Response:
    """Answer; nothing else is looked at."""
    return JSONResponse({"status": "ok", "checks": {}})


@router.get("/readyz", response_model=Health, summary="Say whether jobs can run", responses=documented("not-ready"))
def readyz(
    request: Request,
    exclude: Annotated[
        tuple[Literal["ray"], ...], Query(description="what may be away: jobs are taken without Ray")
    ] = (),
) -> Response:
    """Look at the store and, in the process that starts and watches the jobs, at Ray; one that ends is not ready."""
    if request.app.state.draining.is_set():
        ending = {"server": "is ending and takes no more clients; those that it has are served until then"}
        raise Problem("not-ready", f"Not ready: the server {ending['server']}.", checks=ending)
    reconciler = request.app.state.reconciler
    checks = {"store": "ok" if request.app.state.store.reachable() else "does not answer"}
    checks |= reconciler.health()
    missing = [f"{name} {word}" for name, word in checks.items() if word != "ok" and name not in exclude]
    if missing:
        raise Problem("not-ready", f"Not ready: {'; '.join(missing)}.", headers={"Retry-After": "2"}, checks=checks)
    return JSONResponse({"status": "ok", "checks": checks, "leader": reconciler.leader})
