"""Stand-ins: a reconciler that does nothing, and a Ray Jobs API that starts nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class IdleReconciler:
    """Counts how often it is woken."""

    leads, leader = True, "this one"

    def __init__(self, ray: str = "ok") -> None:
        self.woken, self.ray = 0, ray
        self.ran = threading.Event()

    def run(self, stop: threading.Event) -> None:
        self.ran.set()
        stop.wait()

    def wake(self) -> None:
        self.woken += 1

    def health(self) -> dict[str, Any]:
        return {"ray": self.ray}


class _RayHandler(BaseHTTPRequestHandler):
    jobs: dict[str, dict[str, Any]]

    def do_GET(self) -> None:
        job_id = self.path.rsplit("/", 1)[-1]
        if self.path == "/api/version":
            self._answer(200, {"version": "4", "ray_version": "2.60.0"})
        elif job_id in self.jobs or self.path.startswith("/api/packages/"):  # it has all of them
            self._answer(200, self.jobs.get(job_id, {}))
        else:
            self._answer(404, f"Job {job_id} does not exist")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.path == "/api/jobs/":
            job_id = body["submission_id"]
            if job_id in self.jobs:
                self._answer(500, f"Job with submission_id {job_id} already exists")
                return
            self.jobs[job_id] = {"status": "RUNNING", **body}
        else:
            job_id = self.path.split("/")[-2]
            self.jobs[job_id]["status"] = "STOPPED"
        self._answer(200, {"submission_id": job_id, "job_id": job_id, "stopped": True})

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def fake_ray() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Give the URL of a Jobs API whose jobs run until someone says otherwise, and the jobs by id."""
    jobs: dict[str, dict[str, Any]] = {}
    handler = type("Handler", (_RayHandler,), {"jobs": jobs})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", jobs
        server.shutdown()
        thread.join(5)
