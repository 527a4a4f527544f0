"""A Kubernetes API of a few kinds of resources on loopback: keeps them, patches them, and notes who asked for what.

It answers as a kube-apiserver does: the same paths, codes and ``Status`` documents, over HTTPS where a certificate is
asked for. What an operator would do, the test does: it writes statuses and removes finalizers, here or over HTTP.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..documents import HOST, make_certificate, merged, patched

KINDS = {
    "pods": ("", "v1", "Pod"),
    "rayclusters": ("ray.io", "v1", "RayCluster"),
    "rayjobs": ("ray.io", "v1", "RayJob"),
}
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1/namespaces/(?P<ns>[^/]+)/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?"
)
COMPONENT = Path(__file__).parents[2] / "deploy" / "components" / "rayjob"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}

Resource = dict[str, Any]


class FakeKube(ThreadingHTTPServer):
    """The server and all that it keeps.

    Attributes:
        tokens: Which it accepts; None: it asks for none.
        used: Each (verb, resource) that somebody has used.
        asked: How often each (verb, resource) was.
        broken: What it answers instead, by verb or for all with "": a code, and the message or the whole body.
        finalizers: What each new resource of a kind is given, so that a delete waits for the test.
        installed: The kinds that it knows.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.lock = threading.RLock()
        self.tokens: set[str] | None = None
        self.used: set[tuple[str, str]] = set()
        self.asked: dict[tuple[str, str], int] = {}
        self.broken: dict[str, tuple[int, str]] = {}
        self.finalizers: dict[str, list[str]] = {}
        self.installed = set(KINDS)
        self.kept: dict[tuple[str, str, str], Resource] = {}
        self.secure = False
        self._version = 100

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no error of the server's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http{'s' if self.secure else ''}://{HOST}:{self.server_address[1]}"

    def all(self, kind: str, namespace: str = "sampa") -> dict[str, Resource]:
        """Return what it keeps of a kind, by name."""
        with self.lock:
            return {name: one for (of, ns, name), one in self.kept.items() if (of, ns) == (kind, namespace)}

    def keep(self, kind: str, namespace: str, resource: Resource) -> Resource:
        """Keep a resource as it is now, and give it a new version."""
        with self.lock:
            self._version += 1
            resource["metadata"]["resourceVersion"] = str(self._version)
            self.kept[kind, namespace, resource["metadata"]["name"]] = resource
            return resource

    def set_status(self, kind: str, name: str, namespace: str = "sampa", **fields: Any) -> None:
        """Do what the operator does: change fields of a status."""
        with self.lock:
            resource = self.kept[kind, namespace, name]
            resource["status"] = {**resource.get("status", {}), **fields}
            self.keep(kind, namespace, resource)

    def release(self, kind: str, name: str, namespace: str = "sampa") -> None:
        """Do what the operator does with a resource that is being deleted: take its finalizers away."""
        with self.lock:
            assert "deletionTimestamp" in self.kept[kind, namespace, name]["metadata"], "nobody has deleted it"
            del self.kept[kind, namespace, name]


@contextmanager
def fake_kube(certificates: Path | None = None) -> Iterator[FakeKube]:
    """Run one; over HTTPS, with ``ca.crt`` and ``ca.key`` in the directory that is given."""
    with FakeKube() as server:
        if certificates is not None:
            server.secure = True
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*make_certificate(certificates))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def deployed(kind: str) -> Path:
    """Return the file of deploy/components/rayjob with a resource of this kind."""
    files = sorted(COMPONENT.glob("*.yaml"))
    return next(path for path in files if re.search(rf"^kind: {kind}$", path.read_text(), re.MULTILINE))


def make_account(folder: Path, token: str = "first", namespace: str = "sampa") -> Path:
    """Return the directory of a service account, as a pod has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    (folder / "namespace").write_text(namespace)
    return folder


class _Handler(BaseHTTPRequestHandler):
    server: FakeKube
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer in two parts takes 40 ms

    def do_GET(self) -> None:
        self._do(self._get)

    def do_POST(self) -> None:
        self._do(self._create)

    def do_PATCH(self) -> None:
        self._do(self._patch)

    def do_PUT(self) -> None:
        self._do(self._put)

    def do_DELETE(self) -> None:
        self._do(self._delete)

    def _do(self, act: Any) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        found = PATH.fullmatch(url.path)
        if not found or found["kind"] not in self.server.installed or KINDS[found["kind"]][0] != (found["group"] or ""):
            return self._text(404, "404 page not found\n")
        kind, namespace, name, self.sub = found["kind"], found["ns"], found["name"], found["sub"]
        verb = "list" if self.command == "GET" and name is None else VERBS[self.command]
        with self.server.lock:
            asked = (verb, f"{kind}/{self.sub}" if self.sub else kind)
            self.server.used.add(asked)
            self.server.asked[asked] = self.server.asked.get(asked, 0) + 1
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if self.server.tokens is not None and token not in self.server.tokens:
                return self._refuse(401, "Unauthorized", "Unauthorized")
            code, said = self.server.broken.get(verb) or self.server.broken.get("", (0, ""))
            if code:
                return self._text(code, said) if said.startswith("<") else self._refuse(code, "", said)
            if name is not None and self.command != "POST" and (kind, namespace, name) not in self.server.kept:
                group = KINDS[kind][0]
                what = f"{kind}.{group}" if group else kind
                return self._refuse(404, "NotFound", f'{what} "{name}" not found', name=name, group=group, kind=kind)
            return act(kind, namespace, name)

    def _get(self, kind: str, namespace: str, name: str | None) -> None:
        if name is not None:
            return self._answer(200, self.server.kept[kind, namespace, name])
        wanted = dict(part.split("=", 1) for part in self.query.get("labelSelector", "").split(",") if part)
        found = [one for one in self.server.all(kind, namespace).values() if wanted.items() <= _labels(one).items()]
        limit = int(self.query.get("limit") or 0) or None
        version = str(self.server._version)
        group, number, one = KINDS[kind]
        document = {"apiVersion": f"{group}/{number}".strip("/"), "kind": f"{one}List"}
        return self._answer(200, {**document, "metadata": {"resourceVersion": version}, "items": found[:limit]})

    def _create(self, kind: str, namespace: str, _: str | None) -> None:
        made = copy.deepcopy(self.body)
        metadata, (group, version, kind_name) = made["metadata"], KINDS[kind]
        name = metadata["name"]
        for wrong in _faults(made, f"{group}/{version}".strip("/"), kind_name, namespace):
            return self._refuse(422, "Invalid", f'{kind_name}.{group} "{name}" is invalid: {wrong}', name=name)
        if (kind, namespace, name) in self.server.kept:
            return self._refuse(409, "AlreadyExists", f'{kind}.{group} "{name}" already exists', name=name)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata |= {"namespace": namespace, "creationTimestamp": now, "uid": f"uid-{self.server._version}"}
        if self.server.finalizers.get(kind):
            metadata["finalizers"] = [*self.server.finalizers[kind]]
        made.setdefault("status", {})
        return self._answer(201, self.server.keep(kind, namespace, made))

    def _patch(self, kind: str, namespace: str, name: str) -> None:
        before = self.server.kept[kind, namespace, name]
        if "json-patch" in self.headers["Content-Type"]:
            try:
                after = patched(before, self.body)
            except ValueError as error:
                return self._refuse(422, "Invalid", f"the patch can't be applied: {error}")
        else:
            after = merged(before, self.body)
        return self._answer(200, self.server.keep(kind, namespace, after))

    def _put(self, kind: str, namespace: str, name: str) -> None:
        before = self.server.kept[kind, namespace, name]
        version = self.body["metadata"].get("resourceVersion")
        if version and version != before["metadata"]["resourceVersion"]:
            return self._refuse(409, "Conflict", f'Operation cannot be fulfilled on {kind} "{name}"')
        return self._answer(200, self.server.keep(kind, namespace, copy.deepcopy(self.body)))

    def _delete(self, kind: str, namespace: str, name: str) -> None:
        found = self.server.kept[kind, namespace, name]
        if not found["metadata"].get("finalizers"):
            return self._answer(200, self.server.kept.pop((kind, namespace, name)))
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found["metadata"].setdefault("deletionTimestamp", now)
        return self._answer(200, self.server.keep(kind, namespace, found))

    def _refuse(self, code: int, reason: str, message: str, **details: str) -> None:
        document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
        self._answer(code, {**document, "reason": reason, "details": details, "code": code})

    def _answer(self, code: int, document: Mapping[str, Any]) -> None:
        self._text(code, json.dumps(document), "application/json")

    def _text(self, code: int, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


def _labels(resource: Resource) -> dict[str, str]:
    labels: dict[str, str] = resource["metadata"].get("labels") or {}
    return labels


def _faults(resource: Resource, version: str, kind: str, namespace: str) -> Iterator[str]:
    """Yield what a kube-apiserver finds wrong with the frame of any resource."""
    if (resource.get("apiVersion", version), resource.get("kind", kind)) != (version, kind):
        yield f"the kind is {resource.get('apiVersion')} {resource.get('kind')}"
    if resource["metadata"].get("namespace", namespace) != namespace:
        yield "the namespace of the provided object does not match the namespace sent on the request"
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", resource["metadata"]["name"]):
        yield "metadata.name: Invalid value"
    for key, value in _labels(resource).items():
        if not isinstance(value, str) or len(value) > 63 or not LABEL.fullmatch(value):
            yield f"metadata.labels: Invalid value: {key}={value!r}"
