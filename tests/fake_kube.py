"""A Kubernetes API of a few kinds of resources on loopback: keeps them, patches them, and notes who asked for what.

It answers as a kube-apiserver does: the same paths, codes and ``Status`` documents, over HTTPS where a certificate is
asked for. What an operator or a kubelet would do, the test does, by the server's methods or over HTTP: it makes pods,
writes statuses, removes finalizers and what was told to end.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from .documents import HOST, make_certificate, merged, patched

KINDS = {
    "pods": ("", "v1", "Pod"),
    "rayclusters": ("ray.io", "v1", "RayCluster"),
    "rayjobs": ("ray.io", "v1", "RayJob"),
}
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1/namespaces/(?P<ns>[^/]+)/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?"
)
COMPONENT = Path(__file__).parents[1] / "deploy" / "components" / "rayjob"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
OURS = "sampa"  # the namespace where none is given

Resource = dict[str, Any]


class Refused(Exception):
    """What the API answers instead of a resource.

    Attributes:
        code: Of HTTP.
        answer: A ``Status`` that holds the message, or the message where that is a page of HTML.
    """

    def __init__(self, code: int, reason: str, message: str, **details: str) -> None:
        super().__init__(message)
        document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
        document |= {"reason": reason, "details": details, "code": code}
        self.code, self.answer = code, message if message.startswith("<") else json.dumps(document)


class FakeKube(ThreadingHTTPServer):
    """The server and all that it keeps; whatever its methods are given or return is the caller's own.

    Attributes:
        tokens: Which it accepts; None: it asks for none.
        used: Each (verb, resource) that somebody has used over HTTP.
        asked: How often each (verb, resource) was.
        broken: What it answers instead, by verb or for all with "": a code, and the message or the whole body.
        finalizers: What each new resource of a kind is given, so that a delete waits for the test.
        installed: The kinds that it knows.
        certificate, key: Files, where it is served over HTTPS; a client may use them as its own too.
    """

    daemon_threads = True

    def __init__(self, certificates: Path | None = None) -> None:
        super().__init__((HOST, 0), _Handler)
        self.lock = threading.RLock()
        self.tokens: set[str] | None = None
        self.used: set[tuple[str, str]] = set()
        self.asked: dict[tuple[str, str], int] = {}
        self.broken: dict[str, tuple[int, str]] = {}
        self.finalizers: dict[str, list[str]] = {}
        self.installed = set(KINDS)
        self.certificate = self.key = Path()
        self.secure = certificates is not None
        self.version = 100  # of the newest change
        self._kept: dict[tuple[str, str, str], Resource] = {}
        if certificates is not None:
            self.certificate, self.key = make_certificate(certificates)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            # hands are shaken in the thread of the connection, so that nobody who is slow at it holds up the others
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up, or was killed, is no error of the server's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http{'s' if self.secure else ''}://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return what sends Ray's autoscaler here."""
        return {
            "KUBERNETES_SERVICE_HOST": HOST,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.port),
            "RAY_KUBERAY_CA_CERT_PATH": str(self.certificate),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(self.certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(self.key),
        }

    # What may be done with a resource, over HTTP or here

    def create(self, kind: str, resource: Resource, namespace: str = OURS) -> Resource:
        made = copy.deepcopy(resource)
        metadata, (group, version, one) = made["metadata"], KINDS[kind]
        name = metadata["name"]
        for wrong in _faults(made, f"{group}/{version}".strip("/"), one, namespace):
            raise Refused(422, "Invalid", f'{one}.{group} "{name}" is invalid: {wrong}', name=name)
        with self.lock:
            if (kind, namespace, name) in self._kept:
                raise Refused(409, "AlreadyExists", f'{_full(kind)} "{name}" already exists', name=name)
            metadata |= {"namespace": namespace, "creationTimestamp": _written(), "uid": f"uid-{self.version}"}
            if self.finalizers.get(kind):
                metadata["finalizers"] = [*self.finalizers[kind]]
            made.setdefault("status", {})
            return self._keep(kind, namespace, made)

    def get(self, kind: str, name: str, namespace: str = OURS) -> Resource:
        with self.lock:
            if (kind, namespace, name) not in self._kept:
                group = KINDS[kind][0]
                message = f'{_full(kind)} "{name}" not found'
                raise Refused(404, "NotFound", message, name=name, group=group, kind=kind)
            return copy.deepcopy(self._kept[kind, namespace, name])

    def list(self, kind: str, labels: Mapping[str, str] | None = None, namespace: str = OURS) -> list[Resource]:
        """Return those with these labels, oldest first."""
        found = self.all(kind, namespace).values()
        return [one for one in found if (labels or {}).items() <= _labels(one).items()]

    def all(self, kind: str, namespace: str = OURS) -> dict[str, Resource]:
        """Return what it keeps of a kind, by name."""
        with self.lock:
            found = {name: one for (of, ns, name), one in self._kept.items() if (of, ns) == (kind, namespace)}
            return copy.deepcopy(found)

    def patch(self, kind: str, name: str, patch: Sequence[Resource] | Resource, namespace: str = OURS) -> Resource:
        """Change a resource: by operations on its paths (RFC 6902), or by what is to be merged into it (RFC 7386)."""
        with self.lock:
            old = self.get(kind, name, namespace)
            try:
                new = merged(old, patch) if isinstance(patch, dict) else patched(old, patch)
            except ValueError as error:
                raise Refused(422, "Invalid", f"the patch can't be applied: {error}") from error
            return self._keep(kind, namespace, new)

    def delete(self, kind: str, name: str, grace_s: float = 0.0, namespace: str = OURS) -> Resource:
        """Remove a resource, or mark it where it has finalizers or a grace; marked twice is once."""
        with self.lock:
            found = self.get(kind, name, namespace)
            metadata = found["metadata"]
            if not metadata.get("finalizers") and not grace_s:
                return self._kept.pop((kind, namespace, name))
            metadata.setdefault("deletionTimestamp", _written(grace_s))
            metadata.setdefault("deletionGracePeriodSeconds", grace_s)
            return self._keep(kind, namespace, found)

    # What the operator does

    def set_status(self, kind: str, name: str, **fields: Any) -> None:
        """Change fields of a status."""
        self.patch(kind, name, {"status": fields})

    def release(self, kind: str, name: str) -> None:
        """Take the finalizers of a resource that is being deleted away, and with them the resource."""
        with self.lock:
            assert "deletionTimestamp" in self.get(kind, name)["metadata"], "nobody has deleted it"
            del self._kept[kind, OURS, name]

    def _keep(self, kind: str, namespace: str, resource: Resource) -> Resource:
        self.version += 1
        resource["metadata"]["resourceVersion"] = str(self.version)
        self._kept[kind, namespace, resource["metadata"]["name"]] = resource
        return copy.deepcopy(resource)


@contextmanager
def fake_kube(certificates: Path | None = None) -> Iterator[FakeKube]:
    """Run one; over HTTPS, with ``ca.crt`` and ``ca.key`` in the directory that is given."""
    with FakeKube(certificates) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="kubernetes")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def deployed(kind: str) -> Path:
    """Return the file of deploy/components/rayjob with a resource of this kind."""
    files = sorted(COMPONENT.glob("*.yaml"))
    return next(path for path in files if re.search(rf"^kind: {kind}$", path.read_text(), re.MULTILINE))


def allowed() -> set[tuple[str, str]]:
    """Return what the Role of the deployment lets the API do."""
    role = yaml.safe_load(deployed("Role").read_text())
    assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"ray.io"}
    return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}


def make_account(folder: Path, token: str = "first", namespace: str = OURS) -> Path:
    """Return the directory of a service account, as a pod has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    (folder / "namespace").write_text(namespace)
    return folder


class _Handler(BaseHTTPRequestHandler):
    server: FakeKube
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection that says nothing
    disable_nagle_algorithm = True  # else an answer in two parts takes 40 ms

    def do_GET(self) -> None:
        self._do(200, lambda kind, name, ns: self._list(kind, ns) if name is None else self.server.get(kind, name, ns))

    def do_POST(self) -> None:
        self._do(201, lambda kind, _, ns: self.server.create(kind, self.body, ns))

    def do_PATCH(self) -> None:
        self._do(200, lambda kind, name, ns: self.server.patch(kind, name, self.body, ns))

    def do_DELETE(self) -> None:
        self._do(200, lambda kind, name, ns: self.server.delete(kind, name, namespace=ns))

    def _list(self, kind: str, namespace: str) -> Resource:
        wanted = _selected(self.query.get("labelSelector", ""))
        limit = int(self.query.get("limit") or 0) or None
        group, number, one = KINDS[kind]
        document = {"apiVersion": f"{group}/{number}".strip("/"), "kind": f"{one}List"}
        metadata = {"resourceVersion": str(self.server.version)}
        every = self.server.list(kind, namespace=namespace)
        found = [one for one in every if all(_labels(one).get(name) in values for name, values in wanted.items())]
        return {**document, "metadata": metadata, "items": found[:limit]}

    def _do(self, code: int, act: Callable[[str, Any, str], Resource]) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        found = PATH.fullmatch(url.path)
        if not found or found["kind"] not in self.server.installed or KINDS[found["kind"]][0] != (found["group"] or ""):
            self._text(404, "404 page not found\n")
            return
        verb = "list" if self.command == "GET" and found["name"] is None else VERBS[self.command]
        asked = (verb, f"{found['kind']}/{found['sub']}" if found["sub"] else found["kind"])
        with self.server.lock:
            self.server.used.add(asked)
            self.server.asked[asked] = self.server.asked.get(asked, 0) + 1
            try:
                self._let_in(verb)
                answer = json.dumps(act(found["kind"], found["name"], found["ns"]))
            except Refused as refusal:
                code, answer = refusal.code, refusal.answer
        self._text(code, answer, "text/html" if answer.startswith("<") else "application/json")

    def _let_in(self, verb: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.tokens is not None and token not in self.server.tokens:
            raise Refused(401, "Unauthorized", "Unauthorized")
        broken = self.server.broken.get(verb) or self.server.broken.get("")
        if broken:
            raise Refused(broken[0], "", broken[1])

    def _text(self, code: int, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


def _selected(selector: str) -> dict[str, set[str]]:
    """Return which values of which labels are asked for: ``name=value`` or ``name in (value,value)``, with commas."""
    found = re.findall(r"([^=,\s]+)(?:=([^,]*)|\s+in\s+\(([^)]+)\))", selector)
    return {name: {one.strip() for one in several.split(",")} if several else {value} for name, value, several in found}


def _full(kind: str) -> str:
    return f"{kind}.{KINDS[kind][0]}".strip(".")


def _written(in_s: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


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
