"""Every error that leaves the server is made here: RFC 9457 problem documents, and nothing else.

A problem has a stable ``type``, a ``title`` that is the same for all of its type, a ``detail`` of one sentence
that says what happened and what to do, the ``status``, and the path of the request as ``instance``. A rejected
body adds ``errors``: pointer, detail and hint of each fault.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from ..service.bundles import BundleRefused, BundleTooLarge
from ..service.specs import JobSpec
from ..service.store import (
    CodeMissing,
    KeyReused,
    NoSuchBundle,
    NoSuchJob,
    NoSuchSweep,
    NoSuchTrial,
    NotExtended,
    NotNow,
    PartOfSweep,
    StoreError,
    StoreUnavailable,
    TooManyWorkers,
)
from ..service.sweeps.spec import SweepSpec
from ..workers.storage import StorageError
from .faults import Fault, faults_in, summary

log = logging.getLogger("sampa.api")

MEDIA_TYPE = "application/problem+json"
KINDS: Mapping[str, tuple[int, str]] = {
    "malformed-body": (400, "The body can't be read as JSON"),
    "wrong-cursor": (400, "The cursor can't be used here"),
    "bad-request": (400, "The request can't be understood"),
    "unauthorized": (401, "A valid token is needed"),
    "no-such-path": (404, "There is nothing at this path"),
    "no-such-job": (404, "There is no such job"),
    "no-such-bundle": (404, "There is no such bundle"),
    "no-such-sweep": (404, "There is no such sweep"),
    "no-such-trial": (404, "The sweep has no such trial"),
    "no-report-yet": (404, "The sweep has no report"),
    "method-not-allowed": (405, "This path doesn't take this method"),
    "no-model-yet": (409, "The job has no model"),
    "no-recommendation": (409, "The sweep's report recommends nothing"),
    "part-of-sweep": (409, "A trial is steered by its sweep"),
    "wrong-state": (409, "Its state doesn't allow that"),
    "model-gone": (410, "The job's model is no longer there"),
    "body-too-large": (413, "The body is too large"),
    "bundle-too-large": (413, "The bundle is too large"),
    "unsupported-media-type": (415, "The body has another content type than is taken here"),
    "invalid-job": (422, "The job is not valid"),
    "invalid-sweep": (422, "The sweep is not valid"),
    "no-room": (422, "The cluster could never hold it"),
    "invalid-bundle": (422, "The bundle can't be used"),
    "invalid-request": (422, "A parameter of the request is not valid"),
    "key-reused": (422, "The idempotency key belongs to another request"),
    "internal": (500, "Something is wrong in the server"),
    "not-ready": (503, "The server is not ready"),
    "storage-not-shared": (503, "The server is deployed in a way in which no job can run"),
    "no-storage": (503, "The storage can't be used"),
}
AS_SAID: Mapping[type[StoreError], str] = {
    NoSuchJob: "no-such-job",
    NoSuchSweep: "no-such-sweep",
    NoSuchTrial: "no-such-trial",
    NoSuchBundle: "no-such-bundle",
    KeyReused: "key-reused",
}
INVALID: Mapping[type[BaseModel] | None, str] = {JobSpec: "invalid-job", SweepSpec: "invalid-sweep"}


class Problem(Exception):
    """An error on its way to the client."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        faults: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers = kind, detail, dict(headers or {})
        self.members = {**members, **({"errors": list(faults)} if faults else {})}

    def response(self, path: str) -> JSONResponse:
        """Return the document for a request of ``path``."""
        status, title = KINDS[self.kind]
        document = {
            "type": f"urn:sampa:problem:{self.kind}",
            "title": title,
            "status": status,
            "detail": self.detail,
            "instance": path,
            **self.members,
        }
        return JSONResponse(document, status, self.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make problem documents of whatever is raised while ``app`` answers."""

    def handle(kind: type[Exception]) -> None:
        def answer(request: Request, error: Exception) -> JSONResponse:
            return problem_of(request, error).response(request.url.path)

        app.add_exception_handler(kind, answer)

    for kind in (Problem, StoreError, StorageError, BundleRefused, RequestValidationError, HTTPException, Exception):
        handle(kind)


def problem_of(request: Request, error: Exception) -> Problem:  # noqa: PLR0911 - a table of errors
    """Return the problem that tells the client of ``error``."""
    match error:
        case Problem():
            return error
        case NoSuchJob() | NoSuchSweep() | NoSuchTrial() | NoSuchBundle() | KeyReused():
            return Problem(AS_SAID[type(error)], str(error))
        case CodeMissing():
            return _without_code(request, error)
        case BundleTooLarge():
            return Problem("bundle-too-large", _sentence(str(error)))
        case BundleRefused():
            return Problem("invalid-bundle", _sentence(str(error)))
        case NotNow():
            return Problem("wrong-state", str(error), state=error.state)
        case PartOfSweep():
            return Problem("part-of-sweep", str(error), sweep_id=error.sweep_id)
        case TooManyWorkers() | NotExtended():
            field = error.field if isinstance(error, NotExtended) else "workers"
            return invalid_body("invalid-request", [Fault(tuple(field.split(".")), str(error))])
        case StoreUnavailable():
            return Problem("not-ready", str(error), headers={"Retry-After": "1"})
        case StorageError():
            said = str(error)
            return Problem("no-storage", _sentence(said[:1].upper() + said[1:]), headers={"Retry-After": "10"})
        case RequestValidationError():
            return _invalid(request, error)
        case HTTPException():
            return _of_routing(request, error)
    incident = secrets.token_hex(4)
    log.error("incident %s: %s %s raised %r; its traceback follows", incident, request.method, request.url.path, error)
    return Problem(
        "internal",
        f"The request failed by no fault of yours; the server's log has the cause under incident {incident}.",
        incident=incident,
    )


def _of_routing(request: Request, error: HTTPException) -> Problem:
    path = request.url.path
    if error.status_code == 404:
        return Problem("no-such-path", f"There is nothing at {path}; /openapi.json lists all paths.")
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods_at(request)))
        detail = f"{path} doesn't take {request.method}; use {allowed}."
        return Problem("method-not-allowed", detail, headers={"Allow": allowed})
    return Problem("bad-request", f"The request can't be understood: {error.detail}.")


def _methods_at(request: Request) -> set[str]:
    """Return the methods that the path of ``request`` takes, over all routes that share it."""
    methods: set[str] = set()
    for route in _flat(request.app.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return methods


def _flat(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    inner = [(route, getattr(getattr(route, "original_router", route), "routes", None)) for route in routes]
    return [leaf for route, below in inner for leaf in (_flat(below) if below else [route])]


def _invalid(request: Request, error: RequestValidationError) -> Problem:
    """Return the problem for a body, or parameters, that don't fit."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Problem("malformed-body", f"The body is not JSON: {_where(error.body, first['loc'][1])}.")
    if isinstance(error.body, bytes):
        found = request.headers.get("content-type", "none")
        return Problem(
            "unsupported-media-type",
            f"The body has content type {json.dumps(found)}; send JSON with Content-Type: application/json.",
        )
    if first["loc"][0] != "body":
        return _wrong_parameters(request, error)
    model = _body_model(request)
    stripped = [{**one, "loc": one["loc"][1:]} for one in error.errors()]
    kind = INVALID.get(model, "invalid-request")
    return invalid_body(kind, [fault for one in stripped for fault in faults_in(model, one, whole="the body")])


def _without_code(request: Request, error: CodeMissing) -> Problem:
    model = _body_model(request)
    above = ("base",) if model is SweepSpec else ()
    return invalid_body(INVALID.get(model, "invalid-request"), [Fault((*above, "code", "bundle"), str(error))])


def invalid_body(kind: str, faults: Sequence[Fault]) -> Problem:
    """Return the problem for a body in which these fields are wrong."""
    documents = [{"pointer": fault.pointer, "detail": fault.detail, "hint": fault.hint} for fault in faults]
    return Problem(kind, _sentence(summary(faults)), faults=documents)


def _wrong_parameters(request: Request, error: RequestValidationError) -> Problem:
    faults: list[Mapping[str, str]] = []
    for one in error.errors():
        place, name = str(one["loc"][0]), str(one["loc"][1]) if len(one["loc"]) > 1 else ""
        found = faults_in(_query_model(request), {**one, "loc": one["loc"][1:2]}, whole=f"the {place}")
        faults += [{"in": place, "parameter": name, "detail": fault.detail, "hint": fault.hint} for fault in found]
    others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Problem("invalid-request", _sentence(faults[0]["detail"] + others), faults=faults)


def _body_model(request: Request) -> type[BaseModel] | None:
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None


def _query_model(request: Request) -> type[BaseModel] | None:
    dependant = getattr(request.scope.get("route"), "dependant", None)
    for field in dependant.query_params if dependant else ():
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None


def _where(text: Any, position: int) -> str:
    before = str(text)[:position]
    return f"line {before.count(chr(10)) + 1}, column {position - before.rfind(chr(10))} can't be read"


def _sentence(words: str) -> str:
    return words if re.search(r"[.?!]$", words) else words + "."


SCHEMA: Mapping[str, Any] = {
    "title": "Problem",
    "description": "An error, as in RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "enum": [f"urn:sampa:problem:{kind}" for kind in KINDS]},
        "title": {"type": "string", "description": "the same for all errors of the type"},
        "status": {"type": "integer", "description": "the HTTP status"},
        "detail": {"type": "string", "description": "one sentence: what happened, and what to do"},
        "instance": {"type": "string", "description": "path of the request"},
        "errors": {
            "type": "array",
            "description": "each fault of what was sent",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer of the field in the body"},
                    "in": {"type": "string", "description": "query, path or header, for a parameter"},
                    "parameter": {"type": "string", "description": "name of the parameter"},
                    "detail": {"type": "string"},
                    "hint": {"type": "string"},
                },
            },
        },
    },
}


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these kinds of problem."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title = KINDS[kind]
        responses.setdefault(
            status,
            {"description": title, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
    return responses
