"""The service on KubeRay in miniature: nodes come for a job and are lost, then the head is, then the whole cluster; the
job's numbers stay the same."""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from sampa.api.client import Client
from sampa.service.reconciler import AWAY

from ..acceptance.jobs import CODE, LOOK_S, Document, Watched, run_of, spec, unbroken
from ..api.processes import ServerProcess, until
from .metrics import OURS, RAYS, missing
from .miniature import ON_DEMAND, SPOT, Miniature, Timeline, raycluster, small

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
T = TypeVar("T")
SCRAPE_S = 2.0
STEP_S = 120.0  # in which anything that is waited for has happened
STEPS, EVERY, PACE_S = 240, 10, 1.0
CLUSTER_LOST = "its Ray cluster was lost"
TOLD = ("state", "elastic", "resize", "interrupted", "reconnected")  # of a job's events


class Play:
    """What a test has in its hands: the cluster, the service on it, and what has happened."""

    def __init__(self, cluster: Miniature, server: ServerProcess, client: Client) -> None:
        self.cluster, self.server, self.client, self.timeline = cluster, server, client, cluster.timeline
        self.unsaid = [*RAYS]
        """Which of Ray's metrics it has not said so far; some are there while nodes come, or once they have failed."""
        self._scraped_at, self._told = 0.0, 0

    def until(self, look: Callable[[], T | None], what: str, job: Watched | None = None) -> T:
        """Return what ``look`` finds; a failure tells what all processes said last, and what the job went through."""

        def look_closer() -> T | None:
            self.cluster.check()
            self.scrape()
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
        for event in job.client.events(job.id, self._told, kinds=TOLD):
            self._told = event["seq"]
            self.timeline.note("job", _in_words(event), datetime.fromisoformat(event["time"]).timestamp())

    def scrape(self) -> None:
        """Look which metrics Ray says now, every few seconds as a Prometheus does; without a head, it says none."""
        if not self.unsaid or time.monotonic() - self._scraped_at < SCRAPE_S:
            return
        with suppress(httpx.HTTPError):
            self.unsaid = missing(self.cluster.metrics_url, {name: RAYS[name] for name in self.unsaid})
        self._scraped_at = time.monotonic()

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

    def trains_with(self, job: Watched, *workers: int) -> int:
        """Wait until so many workers train (any of these numbers), and have committed a step since; return the step."""

        def look() -> int | None:
            now = job.now()
            entries = now["elastic"]["workers"]
            fits = entries and entries[-1][1] in workers and now["state"] == "RUNNING"
            return now["progress"]["step"] if fits and now["progress"].get("step", 0) > entries[-1][0] else None

        return self.until(look, f"{job.id} to train with {' or '.join(map(str, workers))} workers", job)

    def is_away(self, job: Watched) -> Document:
        """Wait until the job says that it is interrupted, and return it."""
        return self.until(lambda: job.now() if job.now()["interrupted_at"] else None, f"{job.id} to say so", job)

    def resumes(self, job: Watched, attempt: int) -> Document:
        """Wait until this attempt at the job has gone on from a checkpoint of its run; return the job."""
        self.elastic(job, "resume", attempt - 1)
        resumed = job.now()
        assert (resumed["attempt"], resumed["restarts"]) == (attempt, 0), (
            "what the cluster loses is no fault of the job"
        )
        losses = [one for one in resumed["transitions"] if (one["reason"] or "").startswith(CLUSTER_LOST)]
        assert len(losses) == attempt - 1
        assert resumed["interrupted_at"] is None
        return resumed


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PostgreSQL's, where there is one: then the service tells a cluster of others no URL, and the head has it from
    the Secret."""
    try:
        url: str = request.getfixturevalue("postgres_url")
    except pytest.skip.Exception:
        return f"sqlite:///{tmp_path}/sampa.db"
    return url


@pytest.fixture
def play(tmp_path: Path, store_url: str) -> Iterator[Play]:
    token = secrets.token_hex(32)
    kept = {("sampa-ray-auth", "auth_token"): token, ("sampa-secrets", "SAMPA_STORE_URL"): store_url}
    logs = tmp_path / "logs"
    logs.mkdir()
    with Miniature(logs, Timeline(), _python_path(), small(raycluster()), kept) as cluster:
        told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "SAMPA_STORE_URL": store_url}
        server = ServerProcess(tmp_path / "state", cluster.dashboard_url, variables=_python_path() | told)
        try:
            server.start()
            with server.client() as client:
                yield Play(cluster, server, client)
        finally:
            server.end()


def _python_path() -> dict[str, str]:
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def test_a_job_outlives_its_nodes_its_head_and_its_cluster_which_scales_from_and_to_zero(
    play: Play, tmp_path: Path
) -> None:
    brake = tmp_path / "brake"
    brake.touch()
    asked = spec(
        "miniature",
        steps=STEPS,
        task={"entrypoint": "own:digits", "params": {"label_noise": 0.4, "pace_s": PACE_S, "brake": str(brake)}},
        checkpoint={"every_steps": EVERY, "keep": 2},
        code={"bundle": play.client.upload(CODE)["sha256"]},
    ) | {"workers": {"min": 1, "max": 2, "cpus": 2}}
    job = a_job_is_submitted(play, asked)
    without_the_token_there_is_no_service(play, tmp_path)
    nodes_come(play, job)
    a_node_is_reclaimed(play, job)
    a_node_fails(play, job)
    the_job_is_resized(play, job)
    the_head_fails(play, job)
    the_cluster_is_deleted(play, job)

    brake.unlink()
    play.timeline.note("user", "lets go of the brake: steps take milliseconds from here on")
    play.until(lambda: job.now()["ended_at"], f"{job.id} to end", job)
    ended = job.now()
    play.tell(job)
    assert (ended["state"], ended["restarts"]) == ("SUCCEEDED", 0), ended
    _compare_with_a_calm_run(job, asked, tmp_path)
    play.timeline.note("test", "the model and all measurements have the bits of a run that nothing happened to")

    cluster = play.cluster
    assert play.unsaid == []
    play.timeline.note("head", "has said all of Ray's metrics that they ask for")
    play.until(lambda: (cluster.replicas() == 0 and not cluster.pods()) or None, "the cluster to scale to zero")
    play.timeline.note("cluster", "has no worker node any more")
    assert cluster.calls <= {
        *((verb, "pods") for verb in ("get", "list", "watch", "patch")),
        *((verb, "rayclusters") for verb in ("get", "patch")),
    }, "the autoscaler's Role, as KubeRay makes it, allows no more"
    _keep(play.timeline, ended)


def a_job_is_submitted(play: Play, asked: Document) -> Watched:
    play.until(play.cluster.head, "the head")
    play.until(lambda: _word(play.server).startswith("200") or None, "the service to reach Ray with its token")
    play.timeline.note("service", "is ready: it reaches the Jobs API with the cluster's token")
    assert play.cluster.pods() == []
    play.timeline.note("user", "submits a job for 1 to 2 workers; there is no worker node")
    return Watched(play.client, play.client.submit(asked)["id"])


def without_the_token_there_is_no_service(play: Play, folder: Path) -> None:
    with stranger(folder / "wrong", play.cluster, RAY_AUTH_TOKEN="wrong") as server:
        refused = play.until(lambda: _refusal(server), "a server with a wrong token to be refused")
        assert "refuses the token that it is given" in refused
    with stranger(folder / "none", play.cluster, RAY_AUTH_TOKEN_PATH=str(folder / "nowhere")) as server:
        refused = play.until(lambda: _refusal(server), "a server without a token to be refused")
        assert "refuses requests without its token" in refused
    play.timeline.note(
        "service", "without the right token, another says so at /readyz, and that it needs RAY_AUTH_TOKEN"
    )


def nodes_come(play: Play, job: Watched) -> None:
    """Of each group one: that on demand first, and spot when there are no more."""
    play.nodes(2, job)
    assert [len(play.cluster.workers(group)) for group in (ON_DEMAND, SPOT)] == [1, 1]
    play.trains_with(job, 2)


def a_node_is_reclaimed(play: Play, job: Watched) -> None:
    (lost,) = play.cluster.workers(SPOT)
    play.cluster.reclaim(lost)
    preemption = play.elastic(job, "preemption")
    assert (preemption["workers_before"], preemption["workers_after"], preemption["steps_lost"]) == (2, 1, 0)
    play.until(lambda: lost not in play.cluster.pods() or None, f"{lost} to go", job)
    play.nodes(2, job)
    play.trains_with(job, 2)
    assert job.now()["elastic"]["restarts"] == 0, "a drain is a preemption, no failure"


def a_node_fails(play: Play, job: Watched) -> None:
    (lost,) = play.cluster.workers(ON_DEMAND)
    play.cluster.kill(lost)
    loss = play.elastic(job, "loss")
    assert (loss["workers_before"], loss["workers_after"]) == (2, 1)
    assert loss["steps_lost"] <= 1
    play.until(lambda: lost not in play.cluster.pods() or None, f"{lost} to go", job)
    play.nodes(2, job)
    play.trains_with(job, 2)
    now = job.now()
    assert (now["attempt"], now["restarts"], now["elastic"]["restarts"]) == (1, 0, 1)
    assert missing(f"{play.server.url}/metrics", OURS) == []
    play.timeline.note("service", "says all metrics at /metrics that alerts and dashboard ask for")


def the_job_is_resized(play: Play, job: Watched) -> None:
    joins = [data["cause"] for data in job.data("elastic")].count("join")
    play.timeline.note("user", "resizes the job to 1 worker")
    assert play.client.resize(job.id, 1)["workers"]["wanted"] == 1
    leave = play.elastic(job, "leave")
    assert (leave["workers_before"], leave["workers_after"], leave["steps_lost"]) == (2, 1, 0)
    play.trains_with(job, 1)
    play.timeline.note("user", "resizes the job to 2 workers")
    assert play.client.resize(job.id, 2)["workers"]["wanted"] == 2
    join = play.elastic(job, "join", joins + 1)
    assert (join["workers_before"], join["workers_after"], join["steps_lost"]) == (1, 2, 0)
    play.trains_with(job, 2)
    assert job.data("resize") == [{"workers": 1}, {"workers": 2}]
    assert job.now()["elastic"]["restarts"] == 1, "as before"


def the_head_fails(play: Play, job: Watched) -> None:
    """Another one comes only once the job says that its cluster is away."""
    play.until(lambda: job.data("checkpoint") or None, "a checkpoint", job)
    head, step = play.cluster.head(), job.now()["progress"]["step"]
    assert head is not None
    play.cluster.room_for_a_head = False
    play.cluster.kill(head)
    away = play.is_away(job)
    assert (away["state"], away["attempt"], away["reason"]) == ("RUNNING", 1, AWAY)
    assert job.data("interrupted") == [{"reason": AWAY, "attempt": 1}]
    play.timeline.note("cloud", "has a machine for another head")
    play.cluster.room_for_a_head = True
    play.until(lambda: play.cluster.head() not in (None, head) or None, "another head", job)
    resumed = play.resumes(job, attempt=2)
    assert resumed["progress"]["step"] >= step - step % EVERY - EVERY


def the_cluster_is_deleted(play: Play, job: Watched) -> None:
    """All of its pods end, each with its grace, before there is another one of that name."""
    step = play.trains_with(job, 1, 2)
    play.cluster.delete()
    play.until(lambda: not [*play.cluster.pods("head"), *play.cluster.pods()] or None, "all pods to go", job)
    play.cluster.apply()
    play.until(play.cluster.head, "the head", job)
    resumed = play.resumes(job, attempt=3)
    assert resumed["progress"]["step"] >= step - step % EVERY - EVERY


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
    match event["kind"]:
        case "state":
            return f"is {data['state']}" + (f": {data['reason']}" if data.get("reason") else "")
        case "elastic":
            sizes = f"{data['workers_before']} -> {data['workers_after']} workers"
            cost = f"{data['steps_lost']} steps lost, {data['recovery_seconds']:.2f} s of standing still"
            return f"{data['cause']} at step {data['step']}: {sizes}, {cost}"
        case "resize":
            return f"is to have {data['workers']} workers at most"
        case kind:
            return f"is {kind}: {data['reason']}"


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
        "kubelet are stand-ins. The RayCluster is that of deploy/base, but for at most one node of each group, 20 s "
        f"until an idle node goes, and small object stores. {STEPS} steps of digits, {PACE_S:g} s each at least "
        "until the brake is let go of.",
        timeline.table(),
        f"The ledger: {ended['elastic']['steps_lost']} steps lost, {ended['elastic']['recovery_seconds']:.1f} s of "
        f"standing still, {ended['restarts']} restarts of the runner that count against the job.",
        "Not shown: several machines, GPUs, images to be pulled, a real kubelet's and operator's delays.",
    ]
    Path(path).write_text("\n\n".join(head) + "\n")
