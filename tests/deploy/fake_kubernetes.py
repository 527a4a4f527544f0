"""A Kubernetes API of two resources, pods and RayClusters: as much of it as Ray's autoscaler for KubeRay asks for.

It keeps documents, numbers their versions, and deletes as Kubernetes does: what has a grace period is marked, and stays
until whoever runs it removes it. Served over HTTPS on loopback, with a certificate of its own.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..documents import HOST, make_certificate, merged, patched

Document = dict[str, Any]
PATH = re.compile(r"/(?:api/v1|apis/ray\.io/v1)/namespaces/([^/]+)/(pods|rayclusters)(?:/([^/]+))?(?:/status)?")
VERBS = {"GET": "get", "PATCH": "patch", "DELETE": "delete", "POST": "create"}


class Refused(Exception):
    """What the API answers instead of a document."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Documents:
    """What a namespace holds; may be shared between threads. Whatever is given or returned is the caller's own."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Document] = {}
        self._version = 100
        self._lock = threading.RLock()

    @property
    def version(self) -> str:
        """The number of the newest change."""
        return str(self._version)

    def create(self, kind: str, document: Document) -> Document:
        with self._lock:
            name = document["metadata"]["name"]
            if (kind, name) in self._held:
                raise Refused(409, f"{kind} {name} exists already")
            return self._put(kind, name, {"status": {}, **copy.deepcopy(document)})

    def get(self, kind: str, name: str) -> Document:
        with self._lock:
            if (kind, name) not in self._held:
                raise Refused(404, f"{kind} {name} not found")
            return copy.deepcopy(self._held[kind, name])

    def list(self, kind: str, **labels: str) -> list[Document]:
        """Return those with these labels, oldest first; ``node_type`` stands for ``ray.io/node-type``."""
        wanted = {f"ray.io/{name.replace('_', '-')}": value for name, value in labels.items()}
        return self.select(kind, wanted)

    def select(self, kind: str, wanted: Mapping[str, str]) -> list[Document]:
        with self._lock:
            every = [document for (of, _), document in self._held.items() if of == kind]
            fit = [one for one in every if wanted.items() <= one["metadata"].get("labels", {}).items()]
            return copy.deepcopy(fit)

    def patch(self, kind: str, name: str, patch: Sequence[Document] | Document) -> Document:
        """Change a document: by operations on its paths (RFC 6902), or by what is to be merged into it (RFC 7386)."""
        with self._lock:
            old = self.get(kind, name)
            try:
                return self._put(kind, name, merged(old, patch) if isinstance(patch, dict) else patched(old, patch))
            except ValueError as error:
                raise Refused(422, str(error)) from error

    def delete(self, kind: str, name: str, grace_s: float = 0.0) -> Document:
        """Remove a document, or mark it to be removed by whoever runs it, within its grace; marked twice is once."""
        with self._lock:
            document = self.get(kind, name)
            if not grace_s:
                return self._held.pop((kind, name))
            by = datetime.now(UTC) + timedelta(seconds=grace_s)
            marks = {"deletionTimestamp": by.isoformat(), "deletionGracePeriodSeconds": grace_s}
            return self._put(kind, name, merged(document, {"metadata": {**marks, **document["metadata"]}}))

    def _put(self, kind: str, name: str, document: Document) -> Document:
        self._version += 1
        document["metadata"]["resourceVersion"] = self.version
        self._held[kind, name] = document
        return copy.deepcopy(document)


@dataclass(frozen=True)
class Served:
    """Where the API is, and what a client needs to trust it.

    Attributes:
        port: On ``HOST``.
        certificate, key: Files; of the server, which a client may use as its own too.
        calls: What was asked for so far, as pairs of verb and resource.
    """

    port: int
    certificate: Path
    key: Path
    calls: set[tuple[str, str]]

    def environment(self) -> dict[str, str]:
        """Return what sends Ray's autoscaler here."""
        return {
            "KUBERNETES_SERVICE_HOST": HOST,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.port),
            "RAY_KUBERAY_CA_CERT_PATH": str(self.certificate),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(self.certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(self.key),
        }


@contextmanager
def served(documents: Documents, folder: Path) -> Iterator[Served]:
    """Serve the documents, whatever namespace is asked for, on a free port; the certificate goes to the folder."""
    certificate, key = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    calls: set[tuple[str, str]] = set()
    with _Server((HOST, 0), _handler(documents, calls)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="kubernetes")
        thread.start()
        try:
            yield Served(server.server_address[1], certificate, key, calls)
        finally:
            server.shutdown()
            thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that was killed in the middle of a request is no fault of ours."""


def _handler(documents: Documents, calls: set[tuple[str, str]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # of a connection that says nothing

        def do_GET(self) -> None:
            self._answer(200, self._get)

        def do_POST(self) -> None:
            self._answer(201, lambda kind, _name, body: documents.create(kind, body))

        def do_PATCH(self) -> None:
            self._answer(200, documents.patch)

        def do_DELETE(self) -> None:
            self._answer(200, lambda kind, name, _body: documents.delete(kind, name))

        def _get(self, kind: str, name: str, _body: Any) -> Document:
            if name:
                return documents.get(kind, name)
            selector = dict(parse_qsl(urlsplit(self.path).query)).get("labelSelector", "")
            wanted = dict(term.split("=", 1) for term in selector.split(",") if term)
            return {"metadata": {"resourceVersion": documents.version}, "items": documents.select(kind, wanted)}

        def _answer(self, status: int, act: Callable[[str, str, Any], Document]) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            try:
                kind, name = _resource(self.path)
                calls.add(("list" if self.command == "GET" and not name else VERBS[self.command], kind))
                document = act(kind, name, body)
            except Refused as refusal:
                status, document = refusal.status, {"kind": "Status", "code": refusal.status, "message": str(refusal)}
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _resource(path: str) -> tuple[str, str]:
    """Return the kind of what is asked for, and its name; empty for all of that kind."""
    found = PATH.fullmatch(urlsplit(path).path)
    if found is None:
        raise Refused(404, f"no resource is at {path}")
    return found[2], found[3] or ""
