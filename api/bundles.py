"""The routes of bundles: a zip of the user's own code goes in, and jobs refer to it by its SHA-256."""

from __future__ import annotations

import hashlib
import json
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, cast

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from ..service.bundles import MEDIA_TYPE, BundleLimits, inspect, too_large
from ..service.reconciler import BUNDLE_KEPT
from ..service.records import Bundle
from ..service.settings import ServiceSettings
from ..service.store import Store
from .models import BundleAnswer
from .problems import Problem, documented
from .replies import EVERYWHERE

router = APIRouter(prefix="/v1/bundles", tags=["bundles"], responses=EVERYWHERE)
IN_MEMORY = 4 << 20  # bytes of a bundle on its way in; what is beyond lies in a temporary file
BODY = {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
Sha256 = Annotated[str, Path(description="SHA-256 of the zip, in hexadecimal")]


@router.post(
    "",
    status_code=201,
    response_model=BundleAnswer,
    summary="Upload your own code",
    responses={
        200: {"model": BundleAnswer, "description": "It was there already"},
        **documented("bundle-too-large", "unsupported-media-type", "invalid-bundle"),
    },
    openapi_extra={"requestBody": BODY},
)
async def upload(request: Request) -> Response:
    """Keep the zip of a directory for jobs whose code.bundle names its SHA-256. Repeating it changes nothing."""
    _check_type(request)
    settings: ServiceSettings = request.app.state.settings
    with SpooledTemporaryFile(IN_MEMORY) as spooled:
        file = cast(BinaryIO, spooled)
        await _receive(request, file, settings.bundles)
        bundle, created = await run_sync(_keep, request.app.state.store, file, settings.bundles)
    return _answer(bundle, 201 if created else 200, {"Location": f"/v1/bundles/{bundle.sha256}"})


@router.get("/{sha256}", response_model=BundleAnswer, summary="Show a bundle", responses=documented("no-such-bundle"))
def show(request: Request, sha256: Sha256) -> Response:
    """Say that a bundle is there, and have it stay for another day."""
    store: Store = request.app.state.store
    return _answer(store.bundles.get(sha256.lower()))


def _check_type(request: Request) -> None:
    found = request.headers.get("content-type", "none")
    if found.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise Problem(
            "unsupported-media-type",
            f"The body has content type {json.dumps(found)}; send a zip with Content-Type: {MEDIA_TYPE}.",
        )


async def _receive(request: Request, file: BinaryIO, limits: BundleLimits) -> None:
    """Write the body into the file, up to the limit; raises BundleTooLarge."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.packed_bytes:
        raise too_large(limits)
    try:
        async for piece in request.stream():
            if file.tell() + len(piece) > limits.packed_bytes:
                raise too_large(limits)
            file.write(piece)
    except ClientDisconnect as error:
        raise Problem("bad-request", "The body ended before its time; send it again.") from error


def _keep(store: Store, file: BinaryIO, limits: BundleLimits) -> tuple[Bundle, bool]:
    """Look at what has come, and keep it if it is a bundle; raises BundleRefused."""
    contents = inspect(file, limits)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return store.bundles.put(sha256, contents, file)


def _answer(bundle: Bundle, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    kept_until = None if bundle.in_use else bundle.used_at + BUNDLE_KEPT
    answer = BundleAnswer.model_validate({**vars(bundle), "kept_until": kept_until})
    return JSONResponse(answer.model_dump(mode="json"), status, headers)
