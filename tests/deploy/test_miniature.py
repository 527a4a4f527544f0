"""The service on KubeRay in miniature: nodes come for a job and are lost, as is the head; its numbers stay the same."""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from sampa.api.client import Client

from ..acceptance.jobs import CODE, LOOK_S, Document, Watched, run_of, spec, unbroken
from ..api.processes import ServerProcess, until
from .metrics import OURS, RAYS, missing
from .miniature import Miniature, Timeline, raycluster

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(480)]
T = TypeVar("T")
STEP_S = 120.0  # in which anything that is waited for has happened
STEPS, EVERY, PACE_S = 240, 10, 1.5
CLUSTER_LOST = "its Ray cluster was lost"


class Play:
    """What a test has in its hands: the cluster, the service on it, and what has happened."""

    def __init__(self, cluster: Miniature, server: ServerProcess, client: Client) -> None:
        self.cluster, self.server, self.client, self.timeline = cluster, server, client, cluster.timeline
        self._told = 0

    def until(self, look: Callable[[], T | None], what: str, job: Watched | None = None) -> T:
        """Return what ``look`` finds; a failure tells what all processes said last, and what the job went through."""

        def look_closer() -> T | None:
            self.cluster.check()
            if job is not None:
                self.tell(job)
            return look()

        try:
            return until(look_closer, what, STEP_S, 2 * LOOK_S)
        except AssertionError as error:
            seen = "" if job is None else f"{job.now()}\n{job.data('elastic')}\n{job.data('log')[-10:]}"
            said = self.server.log.read_text()[-3000:]
            raise AssertionError(f"{error}\n{seen}\n--- server\n{said}\n{self.cluster.story()}") from error

    def tell(self, job: Watched) -> None:
        """Put what has happened to the job since the last call into the timeline."""
        for event in job.client.events(job.id, self._told, kinds=("state", "elastic")):
            self._told = event["seq"]
            self.timeline.note("job", _in_words(event), datetime.fromisoformat(event["time"]).timestamp())

    def elastic(self, job: Watched, cause: str, count: int = 1) -> Document:
        """Wait for the job's ``count``-th elastic event of this cause."""

        def look() -> Document | None:
            found = [data for data in job.data("elastic") if data["cause"] == cause]
            return found[count - 1] if len(found) >= count else None

        return self.until(look, f"{job.id} to have {count} events of cause {cause}", job)

    def nodes(self, count: int, job: Watched | None = None) -> list[str]:
        """Wait for so many worker nodes, and return their pods."""

        def look() -> list[str] | None:
            workers = self.cluster.workers()
            return workers if len(workers) == count else None

        return self.until(look, f"{count} worker nodes", job)

    def trains_with(self, job: Watched, workers: int) -> int:
        """Wait until so many workers train and have committed a step since; return the step."""

        def look() -> int | None:
            now = job.now()
            entries = now["elastic"]["workers"]
            fits = entries and entries[-1][1] == workers and now["state"] == "RUNNING"
            return now["progress"]["step"] if fits and now["progress"].get("step", 0) > entries[-1][0] else None

        return self.until(look, f"{job.id} to train with {workers} workers", job)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    logs = tmp_path / "logs"
    logs.mkdir()
    with Miniature(logs, Timeline(), _python_path() | token, raycluster()) as cluster:
        server = ServerProcess(tmp_path / "state", cluster.dashboard_url, variables=_python_path() | token)
        try:
            server.start()
            with server.client() as client:
                yield Play(cluster, server, client)
        finally:
            server.end()


def _python_path() -> dict[str, str]:
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def test_a_job_outlives_its_nodes_and_its_head_and_the_cluster_scales_from_and_to_zero(
    play: Play, tmp_path: Path
) -> None:
    cluster, timeline = play.cluster, play.timeline
    play.until(cluster.head, "the head")
    play.until(lambda: _word(play.server).startswith("200") or None, "the service to reach Ray with its token")
    timeline.note("service", "is ready: it reaches the Jobs API with the cluster's token")
    with stranger(tmp_path / "wrong", cluster, RAY_AUTH_TOKEN="wrong") as server:
        refused = play.until(lambda: _refusal(server), "a server with a wrong token to be refused")
        assert "refuses the token that it is given" in refused
    with stranger(tmp_path / "none", cluster, RAY_AUTH_TOKEN_PATH=str(tmp_path / "nowhere")) as server:
        refused = play.until(lambda: _refusal(server), "a server without a token to be refused")
        assert "refuses requests without its token" in refused
    timeline.note("service", "without the right token it says so at /readyz, and that it needs RAY_AUTH_TOKEN")
    assert cluster.pods() == []

    brake = tmp_path / "brake"
    brake.touch()
    asked = spec(
        "miniature",
        steps=STEPS,
        task={"entrypoint": "own:digits", "params": {"label_noise": 0.4, "pace_s": PACE_S, "brake": str(brake)}},
        checkpoint={"every_steps": EVERY, "keep": 2},
        code={"bundle": play.client.upload(CODE)["sha256"]},
    ) | {"workers": {"min": 1, "max": 2}}
    job = Watched(play.client, play.client.submit(asked)["id"])
    timeline.note("user", "submits a job for 1 to 2 workers; there is no worker node")
    play.nodes(2, job)
    play.trains_with(job, 2)

    first = cluster.workers()[0]
    cluster.reclaim(first)
    preemption = play.elastic(job, "preemption")
    assert (preemption["workers_before"], preemption["workers_after"], preemption["steps_lost"]) == (2, 1, 0)
    play.until(lambda: first not in cluster.pods() or None, f"{first} to go", job)
    play.nodes(2, job)
    play.trains_with(job, 2)
    assert job.now()["elastic"]["restarts"] == 0, "a drain is a preemption, no failure"

    second = cluster.workers()[0]
    cluster.kill(second)
    loss = play.elastic(job, "loss")
    assert (loss["workers_before"], loss["workers_after"]) == (2, 1)
    assert loss["steps_lost"] <= 1
    play.until(lambda: second not in cluster.pods() or None, f"{second} to go", job)
    play.nodes(2, job)
    step = play.trains_with(job, 2)
    before = job.now()
    assert (before["attempt"], before["restarts"], before["elastic"]["restarts"]) == (1, 0, 1)
    assert missing(f"{play.server.url}/metrics", OURS) == []
    assert missing(cluster.metrics_url, RAYS) == []
    timeline.note("service", "says all metrics at /metrics that alerts and dashboard ask for, and so does Ray")

    head = play.until(cluster.head, "the head")
    play.until(lambda: job.data("checkpoint") or None, "a checkpoint", job)
    cluster.kill(head)
    play.until(lambda: cluster.head() not in (None, head) or None, "another head", job)
    play.elastic(job, "resume")
    resumed = job.now()
    assert (resumed["attempt"], resumed["restarts"]) == (2, 0), "a lost head is no fault of the job"
    assert any(one["reason"].startswith(CLUSTER_LOST) for one in resumed["transitions"] if one["reason"])
    play.trains_with(job, 2)
    assert resumed["progress"]["step"] >= step - step % EVERY - EVERY

    brake.unlink()
    timeline.note("user", "lets go of the brake: steps take milliseconds from here on")
    play.until(lambda: job.now()["ended_at"], f"{job.id} to end", job)
    ended = job.now()
    play.tell(job)
    assert (ended["state"], ended["restarts"]) == ("SUCCEEDED", 0), ended
    _compare_with_a_calm_run(job, asked, tmp_path)
    timeline.note("test", "the model and all measurements have the bits of a run that nothing happened to")

    play.until(lambda: (cluster.replicas() == 0 and not cluster.pods()) or None, "the cluster to scale to zero")
    timeline.note("cluster", "has no worker node any more")
    assert cluster.calls <= {
        *((verb, "pods") for verb in ("get", "list", "watch", "patch")),
        *((verb, "rayclusters") for verb in ("get", "patch")),
    }, "the autoscaler's Role, as KubeRay makes it, allows no more"
    _keep(timeline, ended)


def _compare_with_a_calm_run(job: Watched, asked: Document, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CODE))
        calm = unbroken({name: value for name, value in asked.items() if name != "code"}, folder / "calm")
    run_of(job, folder).assert_same(calm)


@contextmanager
def stranger(folder: Path, cluster: Miniature, **token: str) -> Iterator[ServerProcess]:
    """Give a server of its own store that has another token, or none."""
    folder.mkdir()
    variables = {**_python_path(), "RAY_AUTH_MODE": "token", **token}
    server = ServerProcess(folder / "state", cluster.dashboard_url, variables=variables)
    try:
        server.start()
        yield server
    finally:
        server.end()


def _word(server: ServerProcess) -> str:
    """Return the status of /readyz, and what it says of what is missing."""
    answer = httpx.get(f"{server.url}/readyz", trust_env=False)
    return f"{answer.status_code} {answer.json().get('detail', '')}"


def _refusal(server: ServerProcess) -> str | None:
    word = _word(server)
    assert word.startswith("503"), word
    return word if "RAY_AUTH_TOKEN" in word else None


def _in_words(event: Document) -> str:
    data = event["data"]
    if event["kind"] == "state":
        return f"is {data['state']}" + (f": {data['reason']}" if data.get("reason") else "")
    cost = f"{data['steps_lost']} steps lost, {data['recovery_seconds']:.2f} s of standing still"
    return (
        f"{data['cause']} at step {data['step']}: {data['workers_before']} -> {data['workers_after']} workers, {cost}"
    )


def _keep(timeline: Timeline, ended: Document) -> None:
    """Write the timeline down, where a file is asked for."""
    path = os.environ.get("SAMPA_TEST_TIMELINE")
    if not path:
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    head = [
        f"# A job on KubeRay in miniature, {time.strftime('%F', time.gmtime())}",
        f"{os.cpu_count()} cores ({platform.machine()}), torch {version('torch')}, ray {version('ray')}, commit "
        f"{commit.stdout.strip() or 'unknown'}; `SAMPA_TEST_TIMELINE=FILE pytest -s tests/deploy/test_miniature.py`.",
        "Ray's autoscaler v2, Jobs API and raylets are real, with token authentication; Kubernetes, operator and "
        f"kubelet are stand-ins. {STEPS} steps of digits, {PACE_S:g} s each at least until the brake is let go of.",
        timeline.table(),
        f"The ledger: {ended['elastic']['steps_lost']} steps lost, {ended['elastic']['recovery_seconds']:.1f} s of "
        f"standing still, {ended['restarts']} restarts of the runner that count against the job.",
        "Not shown: several machines, GPUs, images to be pulled, a real kubelet's and operator's delays.",
    ]
    Path(path).write_text("\n\n".join(head) + "\n")
