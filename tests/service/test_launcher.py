"""The Jobs API as the launcher speaks it, with a small server in Ray's place."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sampa.service.launcher import (
    LOOK_S,
    NOT_IN_PLACE,
    LaunchRefused,
    RayJobs,
    RayUnreachable,
    TokenRefused,
    find_token,
)
from sampa.service.room import Node

TOKEN = "secret"


class JobsServer(ThreadingHTTPServer):
    """Answers as Ray 2.60 does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), JobsHandler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.stops: list[str] = []
        self.broken: str | None = None
        self.nodes: dict[str, dict[str, Any]] = {}
        self.types: dict[str, str] | None = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class JobsHandler(BaseHTTPRequestHandler):
    server: JobsServer

    def do_GET(self) -> None:
        job_id = self.path.rsplit("/", 1)[-1]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, "Unauthorized: Missing authentication token")
        elif self.server.broken:
            self._answer(500, self.server.broken)
        elif self.path == "/api/version":
            self._answer(200, {"ray_version": "2.60.0"})
        elif self.path.startswith("/api/packages/"):
            self._answer(200 if self.path in self.server.packages else 404, "")
        elif self.path.startswith("/api/v0/nodes"):
            self._answer(200, {"result": True, "data": {"result": {"result": [*self.server.nodes.values()]}}})
        elif self.path == "/api/cluster_status":
            report = {} if self.server.types is None else {"autoscalerReport": {"nodeTypeMapping": self.server.types}}
            self._answer(200, {"result": True, "data": {"clusterStatus": report}})
        elif job_id in self.server.jobs:
            self._answer(200, {"status": "RUNNING", **self.server.jobs[job_id]})
        else:
            self._answer(404, f"Job {job_id} does not exist")

    def do_PUT(self) -> None:
        body = b"".join(iter(self._chunk, b""))
        if self.server.broken:
            self._answer(500, self.server.broken)
        else:
            assert self.path not in self.server.packages, "it is there already"
            self.server.packages[self.path] = body
            self._answer(200, "")

    def _chunk(self) -> bytes:
        """Return one chunk of a body of unknown length; empty at its end."""
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(403, "Forbidden: Invalid authentication token")
        elif self.server.broken:
            self._answer(500, self.server.broken)
        elif self.path.endswith("/stop"):
            job_id = self.path.split("/")[-2]
            self.server.stops.append(job_id)
            self._answer(200 if job_id in self.server.jobs else 404, {"stopped": True})
        elif body["submission_id"] in self.server.jobs:
            trace = f"Traceback ...\nValueError: Job with submission_id {body['submission_id']} already exists. Please"
            self._answer(500, trace)
        else:
            self.server.jobs[body["submission_id"]] = body
            self._answer(200, {"submission_id": body["submission_id"]})

    def _answer(self, status: int, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[JobsServer]:
    with JobsServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def ray(server: JobsServer) -> Iterator[RayJobs]:
    ray = RayJobs(server.url, TOKEN, timeout_s=5)
    yield ray
    ray.close()


def test_a_submission_carries_its_command_and_environment_and_takes_no_processor(
    ray: RayJobs, server: JobsServer
) -> None:
    ray.submit("a-1", "exec true", {"NAME": "value"})
    assert server.jobs["a-1"] == {
        "entrypoint": "exec true",
        "submission_id": "a-1",
        "entrypoint_num_cpus": 0,
        "runtime_env": {"env_vars": {"NAME": "value"}},
    }
    assert ray.status("a-1") == "RUNNING"


def test_a_submission_carries_its_code_and_packages(ray: RayJobs, server: JobsServer) -> None:
    code = ray.carry("0123", lambda: iter([b"zip", b"ped"]))
    ray.submit("a-1", "exec true", {}, code, ["einops==0.8.1"])
    assert server.packages == {"/api/packages/gcs/_ray_pkg_0123.zip": b"zipped"}
    assert server.jobs["a-1"]["runtime_env"] == {
        "env_vars": {},
        "working_dir": "gcs://_ray_pkg_0123.zip",
        "pip": {"packages": ["einops==0.8.1"], "pip_check": False},
    }


def test_code_that_ray_has_is_not_sent_again(ray: RayJobs, server: JobsServer) -> None:
    def never() -> list[bytes]:
        raise AssertionError("it is there already")

    assert ray.carry("0123", lambda: [b"zipped"]) == ray.carry("0123", never)


@pytest.mark.parametrize(
    ("message", "obstacle"),
    [
        ("runtime_env setup failed: \nERROR: Invalid requirement\nERROR: No match for x\nhint: y\n", "No match for x"),
        ("runtime_env setup failed: the disk is full", "runtime_env setup failed: the disk is full"),
        ("", "Ray gives no reason"),
    ],
)
def test_what_keeps_code_from_its_place_is_said_in_a_line(
    ray: RayJobs, server: JobsServer, message: str, obstacle: str
) -> None:
    failed = {"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": message}
    server.jobs |= {"a-1": failed, "a-2": {**failed, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}}
    assert ray.obstacle("a-1") == f"{NOT_IN_PLACE}: {obstacle}"
    assert ray.obstacle("a-2") == ray.obstacle("unknown") == ""


def test_submitting_again_is_no_error_and_starts_nothing(ray: RayJobs, server: JobsServer) -> None:
    ray.submit("a-1", "exec true", {})
    ray.submit("a-1", "exec false", {})
    assert [job["entrypoint"] for job in server.jobs.values()] == ["exec true"]


def test_an_unknown_submission_has_no_status_and_stopping_it_is_no_error(ray: RayJobs) -> None:
    assert ray.status("a-1") is None
    ray.stop("a-1")


def test_a_stop_reaches_ray(ray: RayJobs, server: JobsServer) -> None:
    ray.submit("a-1", "exec true", {})
    ray.stop("a-1")
    assert server.stops == ["a-1"]


def test_a_refusal_tells_the_last_line_of_rays_answer(ray: RayJobs, server: JobsServer) -> None:
    server.broken = "Traceback (most recent call last):\n  ...\nTimeoutError: no agent within 10 s\n"
    for ask in (
        lambda: ray.submit("a-1", "true", {}),
        lambda: ray.status("a-1"),
        lambda: ray.stop("a-1"),
        lambda: ray.carry("0123", lambda: [b"zipped"]),
    ):
        with pytest.raises(LaunchRefused, match=r"refused a request with 500: TimeoutError: no agent within 10 s$"):
            ask()
    with pytest.raises(RayUnreachable, match=r"doesn't answer \(it answers 500, and not with its version\); jobs keep"):
        ray.check()


@pytest.mark.parametrize(
    ("token", "refused"), [("wrong", "the token that it is given"), (None, "requests without its token")]
)
def test_without_the_right_token_every_request_is_refused(server: JobsServer, token: str | None, refused: str) -> None:
    ray = RayJobs(server.url, token)
    for ask in (ray.check, lambda: ray.status("a-1"), lambda: ray.submit("a-1", "true", {})):
        with pytest.raises(TokenRefused, match=f"^Ray at {server.url} refuses {refused}; .* into RAY_AUTH_TOKEN"):
            ask()
    assert ray.room() is None
    ray.close()


def test_a_ray_that_is_away_is_said_to_be(server: JobsServer) -> None:
    ray = RayJobs("http://127.0.0.1:1", TOKEN, timeout_s=5)
    for ask in (ray.check, lambda: ray.status("a-1")):
        with pytest.raises(RayUnreachable, match=r"http://127.0.0.1:1 doesn't answer .*; jobs keep their state"):
            ask()
    ray.close()


class TestLostNodes:
    """A Ray whose state outlived its head still tells of submissions that went down with it."""

    @pytest.fixture(autouse=True)
    def _nodes(self, server: JobsServer) -> None:
        head = {"is_head_node": True, "start_time_ms": 2000}
        server.nodes = {
            "old": {"node_id": "old", "state": "DEAD", **head, "start_time_ms": 1000},
            "new": {"node_id": "new", "state": "ALIVE", **head},
            "worker": {"node_id": "worker", "state": "ALIVE", "is_head_node": False, "start_time_ms": 1500},
        }

    @pytest.mark.parametrize(
        ("told", "said"),
        [
            ({"status": "RUNNING", "driver_node_id": "old"}, None),  # Ray 2.60 has not looked at it again yet
            ({"status": "RUNNING", "driver_node_id": "new"}, "RUNNING"),
            ({"status": "RUNNING", "driver_node_id": "worker", "start_time": 1600}, "RUNNING"),
            ({"status": "PENDING", "start_time": 1900}, None),  # its process was to start on the old head
            ({"status": "PENDING", "start_time": 2100}, "PENDING"),
            ({"status": "PENDING"}, "PENDING"),
            (
                {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_FAILURE", "driver_node_id": "old"},
                None,
            ),
            ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "driver_node_id": "old"}, None),
            ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "driver_node_id": "new"}, "FAILED"),
            ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_node_id": "old"}, "FAILED"),
            ({"status": "FAILED", "error_type": None, "driver_node_id": "old"}, "FAILED"),
            ({"status": "SUCCEEDED", "driver_node_id": "old"}, "SUCCEEDED"),
        ],
    )
    def test_their_submissions_are_lost(
        self, ray: RayJobs, server: JobsServer, told: dict[str, Any], said: str | None
    ) -> None:
        server.jobs["a-1"] = told
        assert ray.status("a-1") == said

    def test_where_nodes_are_not_told_ray_is_taken_by_its_word(self, ray: RayJobs, server: JobsServer) -> None:
        server.jobs["a-1"] = {"status": "RUNNING", "driver_node_id": "old"}
        server.nodes = {}
        assert ray.status("a-1") == "RUNNING"

    def test_they_are_looked_for_now_and_then_and_anew_where_it_matters(
        self, ray: RayJobs, server: JobsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        server.jobs["a-1"] = {"status": "RUNNING", "driver_node_id": "new"}
        assert ray.status("a-1") == "RUNNING"
        server.nodes["new"]["state"] = "DEAD"
        now[0] += LOOK_S - 0.1
        assert ray.status("a-1") == "RUNNING"
        server.jobs["a-2"] = {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "driver_node_id": "new"}
        assert ray.status("a-2") is None
        assert ray.status("a-1") is None


def with_nodes(server: JobsServer, *resources: dict[str, float], state: str = "ALIVE") -> None:
    """Give the server nodes as Ray's monitor knows them where no autoscaler runs."""
    for number, have in enumerate(resources, len(server.nodes)):
        name = f"{number:04x}"
        server.nodes[name] = {"node_id": name, "state": state, "resources_total": have}
        assert server.types is not None
        server.types[name] = f"node_{name}"


def test_the_room_of_a_cluster_is_what_its_living_nodes_have(ray: RayJobs, server: JobsServer) -> None:
    with_nodes(server, {"CPU": 2.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 1.0})
    with_nodes(server, {"CPU": 64.0}, state="DEAD")
    assert ray.room() == [Node(2, 0), Node(8, 1)]


def test_the_room_is_not_known_where_it_may_grow_or_nobody_tells(ray: RayJobs, server: JobsServer) -> None:
    with_nodes(server, {"memory": 1e9})
    assert ray.room() is None, "there is but a head that takes no work"
    with_nodes(server, {"CPU": 2.0})
    assert ray.room() == [Node(0, 0), Node(2, 0)]
    server.types |= {"0000": "ray.head.default"}
    assert ray.room() is None, "an autoscaler runs"
    server.types = None
    assert ray.room() is None, "the monitor has not reported yet"
    server.broken = "ValueError: x"
    assert ray.room() is None
    away = RayJobs("http://127.0.0.1:1", TOKEN)
    assert away.room() is None
    away.close()


def test_a_token_is_looked_for_where_ray_looks(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from a path\n")
    (tmp_path / ".ray").mkdir()
    path = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "given")}
    assert find_token({"RAY_AUTH_TOKEN": "from a variable", **path}) == "from a variable"
    assert find_token(path) == "from a path"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "missing")}) is None
