"""What the routes of sweeps answer: when all goes well, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sampa.service.room import Node
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Job, Store, Sweep

from ..service.samples import FakeRay, added_trial, begun_trial, running_sweep
from .conftest import SPEC, SWEEP, elastic, metrics
from .fakes import IdleReconciler
from .test_problems import problem
from .test_stream import messages

RECOMMENDED = {"recommended": {"values": {"method.rho": 0.125}}}


OWN = {**SWEEP["base"], "task": {"entrypoint": "mine:build", "params": {"x": 1}}}
DEEP: list[Any] = []
for _ in range(50):
    DEEP = [DEEP]


def over(path: str, domain: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"space": {path: domain}, **changes}


HOSTILE: list[tuple[dict[str, Any], str, str]] = [
    (over("task.params", {"choice": [1, 2]}), "/space/task.params", "must be an object with named fields, but is 1"),
    (over("task.params", {"choice": [None, {}]}), "/space/task.params", "an object with named fields, but is null"),
    (over("task.params", {"uniform": [0, 1]}), "/space/task.params", "an object with named fields, but is 0.0"),
    (over("task.params.x", {"uniform": [-1e308, 1e308]}, base=OWN, metric="f1"), "/space/task.params.x", "wider than"),
    (over("method.rho", {"choice": [10**400, 1]}), "/space/method.rho/choice/0", "up to which whole numbers are exact"),
    (over("method.rho", {"uniform": [False, True]}), "/space/method.rho/uniform/0", "must be a number, but is false"),
    (over("method.rho", {"choice": [0.1, float("nan")]}), "/space/method.rho/choice/1", "is no finite number"),
    (over("epochs", {"integer": [1, 10**30]}), "/space/epochs/integer/1", "up to which whole numbers are exact"),
    (over("", {"uniform": [0, 1]}), "/space/", "is no field's path"),
    (over("method..rho", {"uniform": [0, 1]}), "/space/method..rho", "is no field's path"),
    (over("method/rho", {"uniform": [0, 1]}), "/space", "is no field's path"),
    (over("method.rho\n", {"uniform": [0, 1]}), "/space", "is no field's path"),
    (over("method.\ud800", {"uniform": [0, 1]}), "/space", "half of a surrogate pair"),
    (over("method.lam", {"uniform": [0, 0.1]}), "/space/method.lam", "did you mean method.lambda?"),
    (over("freeze.0", {"choice": ["a", "b"]}), "/space/freeze.0", "since freeze has no fields"),
    (over("code.pip", {"choice": [[], ["timm"]]}), "/space/code.pip", "all trials run the same code"),
    ({"scheduler": {"name": "asha", "grace_epochs": 10**400}}, "/scheduler/grace_epochs", "whole numbers are exact"),
    ({"scheduler": {"name": "median", "min_trials": 2**31}}, "/scheduler/min_trials", "must be less than"),
    ({"metric": "a\0b", "base": OWN}, "/metric", "the character NUL"),
    ({"metric": "split", "base": OWN}, "/metric", "says when something was measured"),
    ({"base": {**OWN, "task": {"entrypoint": "mine:build", "params": {"x": float("inf")}}}}, "/base/task/params/x", ""),
    ({"base": {**OWN, "task": {"entrypoint": "m:b", "params": {"x\udfff": 1}}}}, "/base/task/params", "in its name"),
    ({"baselines": DEEP}, "/baselines" + "/0" * 40, "at most 40 may lie inside each other"),
    ({"trials": 5000, "seeds": 100}, "/seeds", "but at most 10000 can be trained"),
    ({"workers": 1, "base": {**SWEEP["base"], "workers": {"min": 2}}}, "/workers", "fewer than a trial waits for"),
]


@pytest.fixture
def sweep(store: Store) -> Sweep:
    """A sweep whose runner is at work."""
    return running_sweep(store)


@pytest.fixture
def folder(settings: ServiceSettings, sweep: Sweep) -> Path:
    """Where the sweep's report goes."""
    path = settings.job_storage(sweep.id).path
    path.mkdir(parents=True, exist_ok=True)
    return path


class TestSubmit:
    def test_a_sweep_is_created_and_can_be_found(self, http: httpx.Client, reconciler: IdleReconciler) -> None:
        answer = http.post("/v1/sweeps", json=SWEEP)
        assert answer.status_code == 201
        sweep = answer.json()
        assert answer.headers["location"] == f"/v1/sweeps/{sweep['id']}"
        assert (sweep["state"], sweep["spec"]["search"], sweep["progress"]) == ("QUEUED", "tpe", {})
        assert reconciler.woken == 1
        found = http.get(answer.headers["location"])
        assert found.headers["etag"] == answer.headers["etag"]
        shown = found.json()
        assert [entry["state"] for entry in shown.pop("transitions")] == ["QUEUED"]
        assert shown == sweep

    def test_a_spec_that_was_shown_can_be_submitted_again(self, http: httpx.Client) -> None:
        spec = http.post("/v1/sweeps", json=SWEEP).json()["spec"]
        assert http.post("/v1/sweeps", json=spec).json()["spec"] == spec

    def test_a_repeated_key_returns_the_first_sweep(self, http: httpx.Client, store: Store) -> None:
        first, again = (http.post("/v1/sweeps", json=SWEEP, headers={"Idempotency-Key": "once"}) for _ in range(2))
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.headers["idempotency-replayed"] == "true"
        assert (again.headers["location"], again.json()) == (first.headers["location"], first.json())
        assert len(store.sweeps.list()) == 1
        answer = http.post("/v1/sweeps", json={**SWEEP, "seed": 1}, headers={"Idempotency-Key": "once"})
        assert "once" in problem(answer, 422, "key-reused")["detail"]

    @pytest.mark.parametrize(
        ("change", "pointer", "words"),
        [
            ({"space": {"method.rho": {"loguniform": [0, 1]}}}, "/space/method.rho", "which has no logarithm"),
            ({"space": {"method.roh": {"uniform": [0, 1]}}}, "/space/method.roh", "did you mean method.rho?"),
            ({"space": {"method.rho": {"choice": [0.1]}}}, "/space/method.rho", "a constant"),
            ({"space": {"method.rho": {"uniform": ["a", 1]}}}, "/space/method.rho/uniform/0", "must be a valid number"),
            ({"base": {**SWEEP["base"], "batch_size": 0}}, "/base/batch_size", "base.batch_size must be at least 1"),
            ({"trails": 3}, "/trails", "did you mean trials?"),
            ({"metric": "acuracy"}, "/metric", "is not among what digits reports"),
        ],
    )
    def test_a_sweep_that_is_not_valid_names_the_field(
        self, http: httpx.Client, store: Store, change: dict[str, Any], pointer: str, words: str
    ) -> None:
        document = problem(http.post("/v1/sweeps", json={**SWEEP, **change}), 422, "invalid-sweep")
        assert words in document["detail"]
        assert document["errors"][0]["pointer"] == pointer
        assert store.sweeps.list() == []

    @pytest.mark.parametrize(("change", "pointer", "words"), HOSTILE)
    def test_what_no_trial_could_mean_is_no_fault_of_the_server(
        self, http: httpx.Client, change: dict[str, Any], pointer: str, words: str
    ) -> None:
        headers = {"Content-Type": "application/json"}
        answer = http.post("/v1/sweeps", content=json.dumps({**SWEEP, **change}), headers=headers)
        document = problem(answer, 422, "invalid-sweep")
        assert words in document["detail"]
        assert document["errors"][0]["pointer"] == pointer

    def test_code_that_is_not_there_is_named_in_its_place(self, http: httpx.Client) -> None:
        base = {**SWEEP["base"], "code": {"bundle": "0" * 64}}
        document = problem(http.post("/v1/sweeps", json={**SWEEP, "base": base}), 422, "invalid-sweep")
        assert document["errors"][0]["pointer"] == "/base/code/bundle"

    def test_what_could_never_run_is_refused_with_what_the_cluster_has(
        self, http: httpx.Client, store: Store, launcher: FakeRay
    ) -> None:
        greedy = {**SWEEP, "base": {**SWEEP["base"], "workers": {"gpus": 1}}}
        launcher.nodes = [Node(2, 0)]
        document = problem(http.post("/v1/sweeps", json=greedy), 422, "no-room")
        assert document["errors"][0]["pointer"] == "/base/workers"
        assert "a worker of 1 processor and 1 GPU" in document["detail"]
        assert "1 with 2 processors and 0 GPUs" in document["detail"]
        assert store.sweeps.list() == []
        assert http.post("/v1/sweeps", json=SWEEP).status_code == 201
        launcher.nodes = None
        assert http.post("/v1/sweeps", json=greedy).status_code == 201, (
            "nobody knows what the cluster has, or will have"
        )


class TestReading:
    def test_sweeps_are_listed_in_pages_and_filtered(self, http: httpx.Client, store: Store, job: Job) -> None:
        ids = [http.post("/v1/sweeps", json={**SWEEP, "name": name}).json()["id"] for name in "aba"]
        first = http.get("/v1/sweeps", params={"limit": 2})
        rest = http.get(first.headers["link"].split(">")[0].removeprefix("<")).json()
        assert [one["id"] for one in first.json()["items"] + rest["items"]] == ids[::-1]
        assert rest["next"] is None
        store.sweeps.cancel(ids[0])
        found = http.get("/v1/sweeps", params={"name": "a", "state": "CANCELLED"}).json()["items"]
        assert [one["id"] for one in found] == [ids[0]]
        cursor = http.get("/v1/jobs", params={"cursor": first.json()["next"]})
        assert "filters" in problem(cursor, 400, "wrong-cursor")["detail"]

    def test_a_sweep_that_has_not_changed_is_not_sent_again(
        self, http: httpx.Client, store: Store, sweep: Sweep
    ) -> None:
        tag = {"If-None-Match": http.get(f"/v1/sweeps/{sweep.id}").headers["etag"]}
        assert http.get(f"/v1/sweeps/{sweep.id}", headers=tag).status_code == 304
        store.append(sweep.id, [], attempt=1, progress={"trials": 5, "ended": 1})
        changed = http.get(f"/v1/sweeps/{sweep.id}", headers=tag)
        assert (changed.status_code, changed.json()["progress"]["ended"]) == (200, 1)

    def test_trials_are_listed_by_number_in_pages_and_filtered(
        self, http: httpx.Client, store: Store, sweep: Sweep
    ) -> None:
        for number in range(4):
            added_trial(store, sweep, number)
        begun_trial(store, sweep, 2)

        def page(**params: Any) -> tuple[list[int], int | None]:
            found = http.get(f"/v1/sweeps/{sweep.id}/trials", params=params).json()
            return [trial["number"] for trial in found["items"]], found["next"]

        assert page() == ([0, 1, 2, 3], None)
        assert page(limit=2) == ([0, 1], 1)
        assert page(after=1, limit=2) == ([2, 3], None)
        assert page(state="RUNNING") == ([2], None)

    def test_a_trial_shows_its_part_its_past_and_what_it_trains(
        self, http: httpx.Client, store: Store, sweep: Sweep
    ) -> None:
        trial = begun_trial(store, sweep, 1)
        store.append(trial.id, [elastic("start", 0, 0, 2)], attempt=1, progress={"step": 1, "workers": 2})
        shown = http.get(f"/v1/sweeps/{sweep.id}/trials/1").json()
        part = ("number", "configuration", "baseline", "values", "seed")
        assert [shown[name] for name in part] == [1, 0, None, {"method.rho": 0.1}, 0]
        assert (shown["sweep_id"], shown["name"], shown["spec"]["method"]["rho"]) == (sweep.id, "rho-1", 0.1)
        assert shown["workers"] == {"wanted": 2, "now": 2}
        assert [entry["state"] for entry in shown["transitions"]] == ["QUEUED", "STARTING", "RUNNING"]
        assert shown["elastic"]["workers"] == [[0, 2]]
        added_trial(store, sweep, 0)
        baseline = http.get(f"/v1/sweeps/{sweep.id}/trials/0").json()
        assert [baseline[name] for name in part] == [0, None, "sgd", {}, 0]

    def test_a_trial_is_no_job_but_what_a_job_tells_it_tells_by_its_id(
        self, http: httpx.Client, store: Store, sweep: Sweep
    ) -> None:
        trial = begun_trial(store, sweep)
        store.append(trial.id, metrics(range(1, 3)), attempt=1)
        assert http.get("/v1/jobs").json()["items"] == []
        assert http.get(f"/v1/jobs/{trial.id}").json()["sweep_id"] == sweep.id
        assert len(http.get(f"/v1/jobs/{trial.id}/metrics").json()["items"]) == 2
        assert http.get(f"/v1/jobs/{trial.id}/checkpoints").json()["items"] == []
        problem(http.get(f"/v1/jobs/{trial.id}/model"), 409, "no-model-yet")
        problem(http.get(f"/v1/jobs/{sweep.id}"), 404, "no-such-job")
        problem(http.get(f"/v1/sweeps/{trial.id}"), 404, "no-such-sweep")

    @pytest.mark.parametrize("what", ["", "/events", "/trials", "/trials/0", "/trials/0/events", "/report"])
    def test_an_unknown_sweep_is_a_problem(self, http: httpx.Client, what: str) -> None:
        assert "nobody" in problem(http.get(f"/v1/sweeps/nobody{what}"), 404, "no-such-sweep")["detail"]

    @pytest.mark.parametrize("what", ["", "/events"])
    def test_an_unknown_trial_is_a_problem(self, http: httpx.Client, sweep: Sweep, what: str) -> None:
        answer = http.get(f"/v1/sweeps/{sweep.id}/trials/7{what}")
        assert "has no trial 7 yet" in problem(answer, 404, "no-such-trial")["detail"]

    @pytest.mark.parametrize(
        "what", ["trials?after=1e", "trials/1e", "trials/1e/events", "events?after=1e", "trials/-1"]
    )
    def test_a_number_that_no_trial_or_event_has_is_named(self, http: httpx.Client, sweep: Sweep, what: str) -> None:
        answer = http.get(f"/v1/sweeps/{sweep.id}/{what.replace('1e', str(10**30))}")
        assert "must be" in problem(answer, 422, "invalid-request")["detail"]


class TestEvents:
    def test_a_sweep_and_a_trial_are_heard_in_pages(self, http: httpx.Client, store: Store, sweep: Sweep) -> None:
        trial = begun_trial(store, sweep)
        store.append(trial.id, metrics(range(1, 3)), attempt=1)
        own = http.get(f"/v1/sweeps/{sweep.id}/events", params={"after": 1}).json()
        assert ([event["data"]["state"] for event in own["items"]], own["last"]) == (["STARTING", "RUNNING"], 3)
        of_trial = http.get(f"/v1/sweeps/{sweep.id}/trials/1/events", params={"kind": "metrics"}).json()
        assert ([event["seq"] for event in of_trial["items"]], of_trial["last"]) == ([4, 5], 5)

    def test_a_stream_of_a_reopened_sweep_goes_on_with_the_next_numbers(
        self, http: httpx.Client, store: Store, sweep: Sweep
    ) -> None:
        store.move(sweep.id, State.SUCCEEDED, attempt=1)
        *first, end = messages(http.get(f"/v1/sweeps/{sweep.id}/events?stream=true").text)
        assert json.loads(end["data"]) == {"state": "SUCCEEDED", "last": 4}
        http.post(f"/v1/sweeps/{sweep.id}/extend", json={"trials": 8})
        http.post(f"/v1/sweeps/{sweep.id}/cancel")
        headers = {"Accept": "text/event-stream", "Last-Event-ID": first[-1]["id"]}
        *more, end = messages(http.get(f"/v1/sweeps/{sweep.id}/events", headers=headers).text)
        assert [(event["id"], event["event"]) for event in more] == [("5", "extend"), ("6", "state"), ("7", "state")]
        assert json.loads(end["data"]) == {"state": "CANCELLED", "last": 7}

    def test_a_stream_of_a_trial_ends_with_it(self, http: httpx.Client, store: Store, sweep: Sweep) -> None:
        trial = begun_trial(store, sweep)
        store.move(trial.id, State.STOPPED, attempt=1, reason="not among the best third at epoch 2")
        *events, end = messages(http.get(f"/v1/sweeps/{sweep.id}/trials/1/events?stream=true&after=3").text)
        assert [json.loads(event["data"])["data"]["state"] for event in events] == ["STOPPED"]
        assert json.loads(end["data"])["state"] == "STOPPED"


class TestSteering:
    def test_each_is_accepted_and_repeating_it_is_no_error(
        self, http: httpx.Client, store: Store, reconciler: IdleReconciler
    ) -> None:
        sweep_id = http.post("/v1/sweeps", json=SWEEP).json()["id"]

        def ask(what: str, body: Any = None) -> str:
            answer = http.post(f"/v1/sweeps/{sweep_id}/{what}", json=body)
            assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/sweeps/{sweep_id}")
            return str(answer.json()["state"])

        assert [ask(what) for what in ("pause", "pause", "resume", "resume")] == ["PAUSED", "PAUSED"] + ["QUEUED"] * 2
        assert [ask("extend", {"trials": 8}) for _ in range(2)] == ["QUEUED"] * 2
        assert [ask(what) for what in ("retry", "cancel", "cancel")] == ["QUEUED", "CANCELLED", "CANCELLED"]
        assert ask("extend", {"trials": 8}) == "QUEUED", "a sweep that was cancelled goes on"
        assert reconciler.woken == 11

    def test_failed_trials_are_retried(self, http: httpx.Client, store: Store, sweep: Sweep) -> None:
        trial = begun_trial(store, sweep)
        store.move(trial.id, State.FAILED, attempt=1, reason="the loss became NaN at step 3")
        store.move(sweep.id, State.SUCCEEDED, attempt=1)
        assert http.post(f"/v1/sweeps/{sweep.id}/retry").json()["state"] == "QUEUED"
        assert http.get(f"/v1/sweeps/{sweep.id}/trials/1").json()["state"] == "QUEUED"

    def test_what_its_state_does_not_allow_is_refused(self, http: httpx.Client, store: Store, sweep: Sweep) -> None:
        http.post(f"/v1/sweeps/{sweep.id}/cancel")
        for what, body in (("pause", None), ("resume", None), ("retry", None), ("extend", {"trials": 8})):
            document = problem(http.post(f"/v1/sweeps/{sweep.id}/{what}", json=body), 409, "wrong-state")
            assert f"sweep {sweep.id} is CANCELLING and can't be" in document["detail"]
            assert document["state"] == "CANCELLING"

    @pytest.mark.parametrize(
        ("body", "pointer", "words"),
        [
            ({}, "", "give trials, budget.wall_s or budget.gradients"),
            ({"trials": 10_001}, "/trials", "trials must be at most 10000"),
            ({"trials": 10_000}, "/trials", "are 10001 trials, but at most 10000 can be trained"),
            ({"budget": {"gradients": 10**400}}, "/budget/gradients", "must be at most"),
            ({"trials": 3}, "/trials", "must be at least 4, which it has already, but is 3"),
            ({"trials": 0}, "/trials", "trials must be at least 1, but is 0"),
            ({"budget": {"wall_s": 60}}, "/budget/wall_s", "has no limit that could be raised"),
            ({"budget": {"wals": 60}}, "/budget/wals", "did you mean wall_s?"),
        ],
    )
    def test_an_extension_that_can_not_be_names_the_field(
        self, http: httpx.Client, store: Store, sweep: Sweep, body: Any, pointer: str, words: str
    ) -> None:
        document = problem(http.post(f"/v1/sweeps/{sweep.id}/extend", json=body), 422, "invalid-request")
        assert words in document["detail"]
        assert document["errors"][0]["pointer"] == pointer
        assert store.sweeps.get(sweep.id) == sweep

    @pytest.mark.parametrize(("what", "body"), [("cancel", None), ("pause", None), ("resize", {"workers": 1})])
    def test_a_trial_is_not_steered_by_itself(
        self, http: httpx.Client, store: Store, sweep: Sweep, what: str, body: Any
    ) -> None:
        trial = begun_trial(store, sweep)
        document = problem(http.post(f"/v1/jobs/{trial.id}/{what}", json=body), 409, "part-of-sweep")
        assert document["sweep_id"] == sweep.id
        assert "steer the sweep instead" in document["detail"]


class TestReport:
    def test_there_is_none_before_trials_have_ended(self, http: httpx.Client, store: Store, sweep: Sweep) -> None:
        for what in ("report", "report.png"):
            document = problem(http.get(f"/v1/sweeps/{sweep.id}/{what}"), 404, "no-report-yet")
            assert "once some of its trials have ended" in document["detail"]
        store.move(sweep.id, State.FAILED, attempt=1)
        assert "ended FAILED without one" in http.get(f"/v1/sweeps/{sweep.id}/report").json()["detail"]

    def test_it_and_its_plot_are_sent_as_they_were_written(
        self, http: httpx.Client, sweep: Sweep, folder: Path
    ) -> None:
        (folder / "report.json").write_text(json.dumps(RECOMMENDED))
        (folder / "report.png").write_bytes(b"\x89PNG")
        answer = http.get(f"/v1/sweeps/{sweep.id}/report")
        assert (answer.json(), answer.headers["content-type"]) == (RECOMMENDED, "application/json")
        tag = {"If-None-Match": answer.headers["etag"]}
        assert http.get(f"/v1/sweeps/{sweep.id}/report", headers=tag).status_code == 304
        picture = http.get(f"/v1/sweeps/{sweep.id}/report.png")
        assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG", "image/png")


class TestPromote:
    @pytest.fixture
    def promote(self, http: httpx.Client, sweep: Sweep, folder: Path) -> Callable[..., httpx.Response]:
        (folder / "report.json").write_text(json.dumps(RECOMMENDED))
        return lambda body=None, **headers: http.post(f"/v1/sweeps/{sweep.id}/promote", json=body, headers=headers)

    def test_jobs_of_the_recommended_configuration_get_fresh_seeds(
        self, promote: Callable[..., httpx.Response], http: httpx.Client, reconciler: IdleReconciler
    ) -> None:
        answer = promote()
        assert answer.status_code == 201
        jobs = answer.json()["items"]
        assert [job["spec"]["seed"] for job in jobs] == [1, 2, 3], "the sweep has trained with 0"
        assert {(job["name"], job["state"], job["spec"]["method"]["rho"]) for job in jobs} == {("rho", "QUEUED", 0.125)}
        assert {job["spec"]["epochs"] for job in jobs} == {SPEC["epochs"]}
        assert [job["id"] for job in http.get("/v1/jobs").json()["items"]] == [job["id"] for job in jobs][::-1]
        assert reconciler.woken == 1

    def test_length_name_and_number_are_chosen(self, promote: Callable[..., httpx.Response]) -> None:
        (job,) = promote({"name": "long", "steps": 500, "seeds": 1}).json()["items"]
        assert (job["name"], job["spec"]["steps"], job["spec"]["epochs"]) == ("long", 500, None)

    def test_a_repeated_key_makes_no_more_jobs(self, promote: Callable[..., httpx.Response], store: Store) -> None:
        first, again = (promote({"seeds": 2}, **{"Idempotency-Key": "once"}) for _ in range(2))
        assert (first.status_code, again.status_code, len(store.jobs())) == (201, 200, 2)
        assert (again.headers["idempotency-replayed"], again.json()) == ("true", first.json())
        problem(promote({"epochs": 9}, **{"Idempotency-Key": "once"}), 422, "key-reused")

    def test_what_makes_no_job_is_refused_and_makes_none(
        self, promote: Callable[..., httpx.Response], store: Store
    ) -> None:
        problem(promote({"epochs": 3, "steps": 3}), 422, "invalid-request")
        assert "seeds must be at least 1" in problem(promote({"seeds": 0}), 422, "invalid-request")["detail"]
        assert store.jobs() == []

    def test_what_could_never_run_is_refused_here_too(
        self, promote: Callable[..., httpx.Response], store: Store, launcher: FakeRay
    ) -> None:
        launcher.nodes = [Node(0.5, 0)]
        assert "(1 with 0.5 processors and 0 GPUs)" in problem(promote(), 422, "no-room")["detail"]
        assert store.jobs() == []

    def test_without_a_recommendation_there_is_nothing_to_promote(
        self, http: httpx.Client, sweep: Sweep, folder: Path
    ) -> None:
        problem(http.post(f"/v1/sweeps/{sweep.id}/promote"), 404, "no-report-yet")
        (folder / "report.json").write_text(json.dumps({"recommended": None, "why_not": "only 1 trial can be used"}))
        document = problem(http.post(f"/v1/sweeps/{sweep.id}/promote"), 409, "no-recommendation")
        assert "recommends nothing: only 1 trial can be used; extend the sweep" in document["detail"]
