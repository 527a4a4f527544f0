"""What the routes of jobs answer when all goes well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sampa.api.app import create_app
from sampa.service.launcher import Launcher, RayJobs
from sampa.service.room import Node, NodeGroup
from sampa.service.settings import ServiceSettings
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Job, Store

from ..service.samples import FakeRay
from .conftest import SPEC, AppTransport, elastic, metrics
from .fakes import IdleReconciler
from .test_problems import problem


def submit_many(store: Store, count: int, name: str = "a") -> list[str]:
    """Return the ids of new jobs, newest first."""
    return [store.submit(JobSpec.model_validate({**SPEC, "name": name}))[0].id for _ in range(count)][::-1]


def test_a_job_is_created_and_can_be_found(http: httpx.Client, reconciler: IdleReconciler) -> None:
    answer = http.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "QUEUED"
    assert job["spec"]["method"]["lambda"] == 0.2
    assert reconciler.woken == 1
    shown = http.get(answer.headers["location"]).json()
    assert [entry["state"] for entry in shown.pop("transitions")] == ["QUEUED"]
    nothing = {"restarts": 0, "steps_lost": 0, "samples_replayed": 0, "recovery_seconds": 0.0, "workers": []}
    assert shown.pop("elastic") == nothing
    assert shown == job


def test_a_job_shows_all_its_fields(http: httpx.Client, job: Job) -> None:
    assert http.get(f"/v1/jobs/{job.id}").json().keys() == {
        *("id", "name", "state", "reason", "attempt", "restarts", "created_at", "updated_at", "started_at", "ended_at"),
        *("interrupted_at", "progress", "transitions", "spec", "result", "workers", "elastic", "sweep_id"),
    }


def test_a_job_whose_ray_is_away_says_so(http: httpx.Client, store: Store, running: Job) -> None:
    before = http.get(f"/v1/jobs/{running.id}")
    store.interrupt(running.id, 1, "Ray does not answer")
    headers = {"If-None-Match": before.headers["etag"]}
    away = http.get(f"/v1/jobs/{running.id}", headers=headers).json()
    assert (away["state"], away["reason"]) == ("RUNNING", "Ray does not answer")
    [event] = http.get(f"/v1/jobs/{running.id}/events", params={"kind": "interrupted"}).json()["items"]
    assert event["data"] == {"reason": "Ray does not answer", "attempt": 1}
    assert away["interrupted_at"] is not None
    assert before.json()["interrupted_at"] is None


def test_a_spec_that_was_shown_can_be_submitted_again(http: httpx.Client, job: Job) -> None:
    spec = http.get(f"/v1/jobs/{job.id}").json()["spec"]
    assert http.post("/v1/jobs", json=spec).json()["spec"] == spec


def test_a_repeated_key_returns_the_first_job(http: httpx.Client, store: Store) -> None:
    headers = {"Idempotency-Key": "once"}
    first = http.post("/v1/jobs", json=SPEC, headers=headers)
    again = http.post("/v1/jobs", json=SPEC, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == first.json()
    assert len(store.jobs()) == 1


def test_a_key_with_another_body_is_refused(http: httpx.Client, store: Store) -> None:
    headers = {"Idempotency-Key": "once"}
    http.post("/v1/jobs", json=SPEC, headers=headers)
    answer = http.post("/v1/jobs", json={**SPEC, "seed": 1}, headers=headers)
    assert "once" in problem(answer, 422, "key-reused")["detail"]
    assert len(store.jobs()) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201])
def test_a_key_that_is_no_key_is_refused(http: httpx.Client, key: str) -> None:
    answer = http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key})
    assert "Idempotency-Key" in problem(answer, 422, "invalid-request")["detail"]


GREEDY = {**SPEC, "workers": {"gpus": 1}}


def test_what_could_never_run_is_refused_with_what_the_cluster_has(
    http: httpx.Client, store: Store, reconciler: IdleReconciler, launcher: FakeRay
) -> None:
    launcher.nodes = [Node(2, 0)]
    document = problem(http.post("/v1/jobs", json=GREEDY), 422, "no-room")
    assert document["errors"][0]["pointer"] == "/workers"
    assert document["detail"] == (
        "workers: there must be room for a worker of 1 processor and 1 GPU, but the nodes of the cluster have room for "
        "0 (1 with 2 processors and 0 GPUs); ask for less, or add nodes."
    )
    assert (store.jobs(), reconciler.woken) == ([], 0)
    assert http.post("/v1/jobs", json=SPEC).status_code == 201


def test_only_the_fewest_workers_must_have_room_and_a_job_may_be_resized_beyond_it(
    http: httpx.Client, launcher: FakeRay
) -> None:
    launcher.nodes = [Node(2, 0)]
    elastic_job = {**SPEC, "pairs": 4, "workers": {"min": 2, "max": 8}}
    path = http.post("/v1/jobs", json=elastic_job).headers["location"]
    assert http.post(f"{path}/resize", json={"workers": 4}).json()["workers"]["wanted"] == 4
    problem(http.post("/v1/jobs", json={**elastic_job, "workers": {"min": 3}}), 422, "no-room")


@pytest.mark.parametrize("of", [lambda: None, FakeRay, lambda: RayJobs("http://127.0.0.1:1")])
def test_the_settings_know_better_than_ray_what_the_cluster_can_have(
    settings: ServiceSettings, store: Store, reconciler: IdleReconciler, token: str, of: Callable[[], Launcher | None]
) -> None:
    """Also where nobody else knows: without a launcher, with one that can't tell, and with a Ray that is away."""
    ray = of()

    def submit(nodes: list[NodeGroup] | None) -> httpx.Response:
        app = create_app(settings.model_copy(update={"nodes": nodes}), store, reconciler, ray)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test", headers=headers) as client:
            return client.post("/v1/jobs", json=GREEDY)

    assert submit(None).status_code == 201
    small = NodeGroup(cpus=2, count=12)
    assert "(12 with 2 processors and 0 GPUs)" in problem(submit([small]), 422, "no-room")["detail"]
    if isinstance(ray, FakeRay):
        ray.nodes = [Node(2, 0)]  # the others aren't there yet
    assert submit([small, NodeGroup(cpus=8, gpus=1, count=1)]).status_code == 201


def test_pages_show_every_job_once_while_new_ones_come(http: httpx.Client, store: Store) -> None:
    expected = submit_many(store, 7)
    seen: list[str] = []
    path: str | None = "/v1/jobs?limit=3"
    while path:
        answer = http.get(path)
        seen += [job["id"] for job in answer.json()["items"]]
        submit_many(store, 1)
        link = answer.headers.get("link")
        assert (link is None) == (answer.json()["next"] is None)
        path = link.split(">")[0].removeprefix("<") if link else None
    assert seen == expected


def test_jobs_are_filtered_by_state_and_name(http: httpx.Client, store: Store) -> None:
    queued, cancelled = submit_many(store, 2, "mine")
    submit_many(store, 1, "other")
    store.cancel(cancelled)

    def ids(**params: Any) -> list[str]:
        return [job["id"] for job in http.get("/v1/jobs", params=params).json()["items"]]

    assert ids(name="mine") == [queued, cancelled]
    assert ids(name="mine", state="CANCELLED") == [cancelled]
    assert ids(name="mine", state=["CANCELLED", "QUEUED"]) == [queued, cancelled]
    assert ids(state="RUNNING") == []


def test_a_cursor_keeps_its_filters(http: httpx.Client, store: Store) -> None:
    submit_many(store, 3)
    first = http.get("/v1/jobs", params={"limit": 1, "state": "QUEUED"}).json()
    answer = http.get("/v1/jobs", params={"limit": 1, "cursor": first["next"]})
    assert "filters" in problem(answer, 400, "wrong-cursor")["detail"]
    same = http.get("/v1/jobs", params={"limit": 2, "state": "QUEUED", "cursor": first["next"]})
    assert len(same.json()["items"]) == 2


@pytest.mark.parametrize("cursor", ["", "x", "%%%", "bnVsbA", "WyJ4IiwieSIsInoiXQ", "WzEsMiwzXQ", "é"])
def test_a_made_up_cursor_is_refused(http: httpx.Client, cursor: str) -> None:
    problem(http.get("/v1/jobs", params={"cursor": cursor}), 400, "wrong-cursor")


def test_a_job_that_has_not_changed_is_not_sent_again(http: httpx.Client, store: Store, job: Job) -> None:
    etag = http.get(f"/v1/jobs/{job.id}").headers["etag"]
    same = http.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (same.status_code, same.content) == (304, b"")
    store.cancel(job.id)
    changed = http.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_cancelling_twice_is_no_error(http: httpx.Client, job: Job) -> None:
    first, again = (http.post(f"/v1/jobs/{job.id}/cancel") for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["state"] == again.json()["state"] == "CANCELLED"
    assert first.json() == again.json()


def test_a_running_job_is_on_its_way_to_cancelled(http: httpx.Client, running: Job) -> None:
    assert http.post(f"/v1/jobs/{running.id}/cancel").json()["state"] == "CANCELLING"
    assert http.post(f"/v1/jobs/{running.id}/cancel").json()["state"] == "CANCELLING"


def test_a_job_that_has_ended_stays_as_it_is_when_cancelled(http: httpx.Client, store: Store, running: Job) -> None:
    store.move(running.id, State.SUCCEEDED, result={"steps": 3})
    answer = http.post(f"/v1/jobs/{running.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "SUCCEEDED")


def test_pausing_and_resuming_twice_is_no_error(
    http: httpx.Client, store: Store, job: Job, reconciler: IdleReconciler
) -> None:
    def ask(what: str) -> str:
        answer = http.post(f"/v1/jobs/{job.id}/{what}")
        assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job.id}")
        return str(answer.json()["state"])

    assert [ask(what) for what in ("pause", "pause", "resume", "resume")] == ["PAUSED", "PAUSED", "QUEUED", "QUEUED"]
    assert reconciler.woken == 4
    store.claim(max_running=1)
    assert [ask(what) for what in ("resume", "pause", "pause")] == ["STARTING", "PAUSING", "PAUSING"]


@pytest.mark.parametrize(
    ("what", "body", "words"),
    [
        ("pause", None, "is SUCCEEDED and can't be paused; it has ended; submit it again as a new job"),
        ("resume", None, "is SUCCEEDED and can't be resumed; it has ended; submit it again as a new job"),
        ("resize", {"workers": 1}, "is SUCCEEDED and can't be resized; it has ended; submit it again as a new job"),
    ],
)
def test_a_job_that_has_ended_can_not_be_steered(
    http: httpx.Client, store: Store, running: Job, what: str, body: Any, words: str
) -> None:
    store.move(running.id, State.SUCCEEDED, result={"steps": 3})
    document = problem(http.post(f"/v1/jobs/{running.id}/{what}", json=body), 409, "wrong-state")
    assert (document["detail"], document["state"]) == (f"job {running.id} {words}", "SUCCEEDED")


def test_a_job_on_its_way_to_paused_or_cancelled_can_not_be_resumed(http: httpx.Client, running: Job) -> None:
    http.post(f"/v1/jobs/{running.id}/pause")
    answer = http.post(f"/v1/jobs/{running.id}/resume")
    assert "is PAUSING and can't be resumed; wait until" in problem(answer, 409, "wrong-state")["detail"]
    http.post(f"/v1/jobs/{running.id}/cancel")
    for what in ("pause", "resume"):
        answer = http.post(f"/v1/jobs/{running.id}/{what}")
        assert "is CANCELLING and can't be" in problem(answer, 409, "wrong-state")["detail"]


def test_a_job_is_resized_and_shows_what_it_has_and_what_it_is_to_have(
    http: httpx.Client, store: Store, running: Job
) -> None:
    def resize(workers: int) -> dict[str, int]:
        answer = http.post(f"/v1/jobs/{running.id}/resize", json={"workers": workers})
        assert (answer.status_code, answer.json()["state"]) == (202, "RUNNING")
        count: dict[str, int] = answer.json()["workers"]
        return count

    store.append(running.id, [elastic("start", 0, 0, 2)], attempt=1, progress={"step": 1, "workers": 2})
    assert [resize(workers) for workers in (1, 1, 2)] == [{"wanted": wanted, "now": 2} for wanted in (1, 1, 2)]
    events = http.get(f"/v1/jobs/{running.id}/events", params={"kind": "resize"}).json()["items"]
    assert [event["data"] for event in events] == [{"workers": 1}, {"workers": 2}]
    store.move(running.id, State.PAUSING)
    store.move(running.id, State.PAUSED)
    assert http.get(f"/v1/jobs/{running.id}").json()["workers"] == {"wanted": 2, "now": 0}


def test_what_changes_of_workers_have_cost_is_summed_up_over_all_attempts(
    http: httpx.Client, store: Store, running: Job
) -> None:
    lost = {"steps_lost": 1, "samples_replayed": 64, "recovery_seconds": 0.4}
    store.append(running.id, [elastic("start", 0, 0, 2), elastic("loss", 7, 2, 1, **lost)], attempt=1)
    store.move(running.id, State.STARTING, next_attempt=True)
    resumed = {"steps_lost": 3, "samples_replayed": 192, "recovery_seconds": 5.0}
    store.append(running.id, [elastic("resume", 5, 0, 2, **resumed), elastic("leave", 9, 2, 1)], attempt=2)
    assert http.get(f"/v1/jobs/{running.id}").json()["elastic"] == {
        "restarts": 2,
        "steps_lost": 4,
        "samples_replayed": 256,
        "recovery_seconds": 5.4,
        "workers": [[0, 2], [7, 1], [5, 2], [9, 1]],
    }


def test_events_come_in_pages_without_gap(http: httpx.Client, store: Store, running: Job) -> None:
    store.append(running.id, metrics(range(1, 8)), attempt=1)
    seen, after = [], 0
    while items := (page := http.get(f"/v1/jobs/{running.id}/events?after={after}&limit=4").json())["items"]:
        seen += [event["seq"] for event in items]
        after = page["last"]
    assert seen == list(range(1, 11))
    assert after == 10


def test_events_are_filtered_by_kind_and_last_says_what_was_looked_at(
    http: httpx.Client, store: Store, running: Job
) -> None:
    store.append(running.id, metrics(range(1, 3)), attempt=1)
    page = http.get(f"/v1/jobs/{running.id}/events", params={"kind": "state"}).json()
    assert [event["data"]["state"] for event in page["items"]] == ["QUEUED", "STARTING", "RUNNING"]
    assert page["last"] == 5
    page = http.get(f"/v1/jobs/{running.id}/events", params={"kind": "state", "limit": 2}).json()
    assert page["last"] == 2


def test_metrics_are_flat_and_come_in_pages(http: httpx.Client, store: Store, running: Job) -> None:
    evaluation = ("evaluation", {"step": 2, "epoch": 1, "split": "test", "loss": 0.5, "accuracy": 0.9})
    store.append(running.id, [*metrics(range(1, 3)), ("log", {"worker": 0, "line": "x"}), evaluation], attempt=1)
    first = http.get(f"/v1/jobs/{running.id}/metrics", params={"limit": 2}).json()
    assert [item["step"] for item in first["items"]] == [1, 2]
    assert first["items"][0] == {"seq": 4, "kind": "metrics", "step": 1, "epoch": 0, "loss": 1.0, "lr": 0.05}
    rest = http.get(f"/v1/jobs/{running.id}/metrics", params={"after": first["next"]}).json()
    assert [(item["kind"], item["accuracy"]) for item in rest["items"]] == [("evaluation", 0.9)]
    assert rest["next"] is None


def test_checkpoints_say_whether_they_are_still_there(
    http: httpx.Client, store: Store, running: Job, settings: ServiceSettings
) -> None:
    folder = settings.job_storage(running.id).path / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "2").write_bytes(b"whole")
    written = [("checkpoint", {"step": step, "path": f"checkpoints/{step}", "bytes": 10}) for step in (1, 2)]
    store.append(running.id, written, attempt=1)
    items = http.get(f"/v1/jobs/{running.id}/checkpoints").json()["items"]
    assert [(item["step"], item["available"]) for item in items] == [(1, False), (2, True)]


def test_there_is_no_model_before_the_end(http: httpx.Client, running: Job) -> None:
    document = problem(http.get(f"/v1/jobs/{running.id}/model"), 409, "no-model-yet")
    assert document["state"] == "RUNNING"
    assert "RUNNING" in document["detail"]


def test_a_failed_job_has_no_model_and_says_why(http: httpx.Client, store: Store, running: Job) -> None:
    store.move(running.id, State.FAILED, reason="the loss became NaN at step 3")
    answer = http.get(f"/v1/jobs/{running.id}/model")
    assert "the loss became NaN at step 3" in problem(answer, 409, "no-model-yet")["detail"]


@pytest.fixture
def trained(store: Store, running: Job, settings: ServiceSettings) -> Path:
    """The model of a job that has succeeded."""
    path = settings.job_storage(running.id).path / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(range(256)) * 1000)
    store.move(running.id, State.SUCCEEDED, result={"steps": 3})
    return path


def test_a_model_is_downloaded_whole_or_in_part(http: httpx.Client, running: Job, trained: Path) -> None:
    answer = http.get(f"/v1/jobs/{running.id}/model")
    assert answer.content == trained.read_bytes()
    assert answer.headers["content-disposition"] == 'attachment; filename="digits-sampa.safetensors"'
    part = http.get(f"/v1/jobs/{running.id}/model", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    same = http.get(f"/v1/jobs/{running.id}/model", headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_a_model_that_was_removed_is_gone(http: httpx.Client, running: Job, trained: Path) -> None:
    trained.unlink()
    problem(http.get(f"/v1/jobs/{running.id}/model"), 410, "model-gone")
