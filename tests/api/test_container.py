"""The server as a container runs it: settings from the environment, another user, nothing to write to but its state."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse
from sampa.api.client import Client
from sampa.service.states import State
from sampa.service.store import Store

from .conftest import SPEC
from .containers import Container, ask, prefix_for, started
from .fakes import fake_ray
from .processes import SAMPA, until

USER = 10001
READY_S = 30.0  # the budget of a startup probe
DRAIN_S = 6.0
END_S = DRAIN_S + 30.0  # the least grace that deployments are told to give
TOKEN = "of-a-secret-0123456789"


@pytest.fixture(scope="module")
def prefix() -> list[str]:
    return prefix_for(USER)


@pytest.fixture
def state_dir(prefix: list[str]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sampa-container-"))
    if prefix:
        os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def container(prefix: list[str], state_dir: Path, log: Path, **settings: str) -> Iterator[Container]:
    variables = {
        "SAMPA_STATE_DIR": str(state_dir),
        "SAMPA_HOST": "0.0.0.0",
        "SAMPA_PORT": "0",
        "SAMPA_TOKEN": TOKEN,
        "SAMPA_LOG_FORMAT": "json",
        "SAMPA_DRAIN_S": str(DRAIN_S),
        "SAMPA_POLL_S": "0.05",
        **settings,
    }
    with started([*SAMPA, "serve"], prefix, log, variables) as served:
        yield served


def ready(url: str) -> bool | None:
    answer = ask(f"{url}/readyz")
    return (answer is not None and answer.is_success) or None


def test_it_lives_and_ends_as_a_container_should(prefix: list[str], state_dir: Path, tmp_path: Path) -> None:
    with (
        fake_ray() as (ray_url, submissions),
        container(prefix, state_dir, tmp_path / "log", SAMPA_RAY_ADDRESS=ray_url) as served,
    ):
        url = served.url()
        until(lambda: ready(url), "the server to be ready", READY_S)
        with Client(url, TOKEN) as client:
            job_id = client.submit(SPEC)["id"]
            until(lambda: submissions or None, "the job to be with Ray")
            until(lambda: served.said(f"{job_id}: attempt 1 is with Ray"), "a line about it")
            reader = StreamReader(url, job_id)
            until(lambda: reader.events or None, "the stream to begin")

            served.signal(signal.SIGTERM)
            until(lambda: served.said("stopping on SIGTERM after 6 s"), "the signal to be seen")
            answer = httpx.get(f"{url}/readyz", trust_env=False)
            assert answer.status_code == 503
            assert "the server is ending" in answer.json()["detail"]
            assert answer.headers["connection"] == "close"
            assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200
            assert client.submit({**SPEC, "name": "while-it-drains"})["state"] == "QUEUED"
            assert reader.going, "streams go on while others may still come here"
        assert served.process.wait(END_S) == 0
        reader.join()
        assert reader.clean, "the stream was ended, not cut off"

    assert {one["status"] for one in submissions.values()} == {"RUNNING"}
    store = Store(f"sqlite:///{state_dir}/sampa.db")
    assert store.job(job_id).state is State.STARTING
    store.close()
    lines = served.lines()
    about = [line for line in lines if line.get("job") == job_id]
    assert {("sampa.service.reconciler", 1), ("sampa.requests", None)} <= {
        (line["logger"], line.get("attempt")) for line in about
    }
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert lines[-1]["message"] == "stopped"
    assert TOKEN not in served.log.read_text()
    assert not (state_dir / "token").exists()
    assert {path.stat().st_uid for path in state_dir.iterdir()} == {USER if prefix else os.getuid()}


def test_the_second_signal_ends_it_while_it_drains(prefix: list[str], state_dir: Path, tmp_path: Path) -> None:
    settings = {"SAMPA_RAY_ADDRESS": "http://127.0.0.1:1", "SAMPA_DRAIN_S": "600"}
    with container(prefix, state_dir, tmp_path / "log", **settings) as served:
        url = served.url()
        until(lambda: ask(f"{url}/livez"), "an answer")
        served.signal(signal.SIGTERM)
        until(lambda: served.said("stopping on SIGTERM"), "the signal to be seen")
        served.signal(signal.SIGTERM)
        assert served.process.wait(10) == 128 + signal.SIGTERM
    assert served.lines()[-1]["message"] == "stopped at once"


def test_what_keeps_it_from_serving_is_a_line_of_json(prefix: list[str], state_dir: Path, tmp_path: Path) -> None:
    with container(prefix, state_dir, tmp_path / "log", SAMPA_MAX_RUNNING="many") as served:
        assert served.process.wait(READY_S) == 2
    [line] = served.lines()
    assert (line["level"], line["logger"]) == ("CRITICAL", "sampa.serve")
    assert line["message"] == 'SAMPA_MAX_RUNNING must be a valid integer, but is "many"'


class StreamReader:
    """Someone who follows a job."""

    def __init__(self, url: str, job_id: str) -> None:
        self._url = f"{url}/v1/jobs/{job_id}/events"
        self.events: list[str] = []
        self.clean = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def going(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(10)
        assert not self.going

    def _read(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with (
            httpx.Client(headers=headers, trust_env=False, timeout=60) as http,
            connect_sse(http, "GET", self._url) as source,
        ):
            for event in source.iter_sse():
                self.events.append(event.event)
            self.clean = True
