"""The Python client covers every endpoint and turns every error into one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest
from sampa.api.client import Client, SampaError, ServerUnreachable
from sampa.service.settings import ServiceSettings
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Job, Store

from ..service.samples import added_trial, begun_trial, running_sweep
from .conftest import SPEC, SWEEP, AppTransport, metrics


def test_a_job_goes_in_and_its_record_comes_back(client: Client, store: Store) -> None:
    job = client.submit(SPEC)
    assert client.job(job["id"])["state"] == "QUEUED"
    assert [one["id"] for one in client.jobs()] == [job["id"]]
    assert client.cancel(job["id"])["state"] == "CANCELLED"
    assert client.live()
    assert client.ready()["status"] == "ok"
    assert client.openapi()["info"]["title"] == "sampa"


def test_a_job_is_steered(client: Client, store: Store) -> None:
    job_id = client.submit(SPEC)["id"]
    assert client.pause(job_id)["state"] == "PAUSED"
    assert client.resize(job_id, 1)["workers"] == {"wanted": 1, "now": 0}
    assert client.resume(job_id)["state"] == "QUEUED"
    with pytest.raises(SampaError, match=r"at most 2 x pairs = 2") as caught:
        client.resize(job_id, 3)
    assert caught.value.status == 422
    client.cancel(job_id)
    with pytest.raises(SampaError, match="is CANCELLED and can't be paused") as caught:
        client.pause(job_id)
    assert caught.value.status == 409


def test_a_sweep_is_submitted_steered_and_read(client: Client, store: Store) -> None:
    sweep_id = client.sweeps.submit(SWEEP)["id"]
    assert [one["id"] for one in client.sweeps.list(["QUEUED"], "rho")] == [sweep_id]
    assert client.sweeps.pause(sweep_id)["state"] == "PAUSED"
    assert client.sweeps.resume(sweep_id)["state"] == "QUEUED"
    assert client.sweeps.extend(sweep_id, trials=300, gradients=None)["spec"]["trials"] == 300
    assert client.sweeps.retry(sweep_id)["state"] == "QUEUED"
    assert [event["kind"] for event in client.sweeps.events(sweep_id, kinds=["extend"])] == ["extend"]
    assert client.sweeps.cancel(sweep_id)["state"] == "CANCELLED"
    assert [event["seq"] for event in client.sweeps.follow(sweep_id, after=3)] == [4, 5]
    assert client.sweeps.get(sweep_id)["transitions"][-1]["state"] == "CANCELLED"


def test_all_trials_are_walked(client: Client, store: Store) -> None:
    sweep = running_sweep(store, trials=300)
    for number in range(210):
        added_trial(store, sweep, number)
    assert [trial["number"] for trial in client.sweeps.trials(sweep.id)] == list(range(210))
    assert list(client.sweeps.trials(sweep.id, ["RUNNING"])) == []
    trial = begun_trial(store, sweep, 7)
    assert client.sweeps.trial(sweep.id, 7)["id"] == trial.id
    assert [event["seq"] for event in client.sweeps.events(sweep.id, after=1, trial=7)] == [2, 3]


def test_a_report_its_plot_and_the_jobs_of_what_it_recommends(
    client: Client, store: Store, settings: ServiceSettings, tmp_path: Path
) -> None:
    sweep = running_sweep(store)
    with pytest.raises(SampaError, match="once some of its trials have ended"):
        client.sweeps.report(sweep.id)
    folder = settings.job_storage(sweep.id).path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text('{"recommended": {"values": {"method.rho": 0.1}}}')
    (folder / "report.png").write_bytes(b"PNG")
    assert client.sweeps.report(sweep.id)["recommended"]["values"] == {"method.rho": 0.1}
    assert client.sweeps.picture(sweep.id, tmp_path / "a.png").read_bytes() == b"PNG"
    jobs = client.sweeps.promote(sweep.id, key="once", seeds=2)
    assert client.sweeps.promote(sweep.id, key="once", seeds=2) == jobs
    assert [job["spec"]["seed"] for job in jobs] == [1, 2]


def test_all_pages_are_walked(client: Client, store: Store) -> None:
    spec = JobSpec.model_validate(SPEC)
    ids = [store.submit(spec)[0].id for _ in range(203)][::-1]
    assert [job["id"] for job in client.jobs()] == ids
    assert [job["id"] for job in client.jobs(limit=201)] == ids[:201]
    assert [job["id"] for job in client.jobs(["QUEUED"], "digits-sampa", limit=2)] == ids[:2]


def test_all_events_and_metrics_are_walked(client: Client, store: Store, running: Job) -> None:
    store.append(running.id, metrics(range(1, 1201)), attempt=1)
    assert [event["seq"] for event in client.events(running.id)] == list(range(1, 1204))
    assert [event["seq"] for event in client.events(running.id, after=1, kinds=["state"])] == [2, 3]
    assert [item["step"] for item in client.metrics(running.id)] == list(range(1, 1201))


def test_a_model_is_written_whole(
    client: Client, store: Store, running: Job, settings: ServiceSettings, tmp_path: Path
) -> None:
    with pytest.raises(SampaError, match="RUNNING"):
        client.model(running.id, tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("model*"))
    source = settings.job_storage(running.id).path / "model.safetensors"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"x" * 100_000)
    store.move(running.id, State.SUCCEEDED)
    assert client.model(running.id, tmp_path / "model.safetensors").read_bytes() == source.read_bytes()
    assert client.checkpoints(running.id) == []


def test_a_problem_is_its_one_sentence(client: Client) -> None:
    with pytest.raises(SampaError, match=r"method\.rho must be at least 0, but is -1") as caught:
        client.submit({**SPEC, "method": {"name": "sampa", "rho": -1}})
    assert caught.value.status == 422
    assert caught.value.problem["errors"][0]["pointer"] == "/method/rho"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status, again.problem) == (str(caught.value), 422, caught.value.problem)


def test_a_lost_answer_is_asked_for_again_and_stored_once(transport: AppTransport, token: str, store: Store) -> None:
    lost: list[Any] = []

    class Losing(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = transport.handle_request(request)
            if not lost:
                lost.append(answer)
                raise httpx.ReadError("connection reset")
            return answer

    with Client("http://sampa.test", token, transport=Losing()) as losing:
        job = losing.submit(SPEC)
    assert len(lost) == 1
    assert [one.id for one in store.jobs()] == [job["id"]]


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(ServerUnreachable, match="no server answers at"):
        client.live()
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(ServerUnreachable):
        list(client.follow("x", patience_s=0))


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_is_told_apart(status: int) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="<html>hello</html>"))
    with Client("http://x", "t", transport=transport) as client, pytest.raises(SampaError, match="sampa server"):
        client.job("x")


def test_a_stream_that_breaks_is_taken_up_again(
    transport: AppTransport, token: str, store: Store, running: Job
) -> None:
    store.append(running.id, metrics(range(1, 40)), attempt=1)
    store.move(running.id, State.SUCCEEDED)
    asked: list[Any] = []

    class Cutting(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(int(request.headers["last-event-id"]))
            answer = transport.handle_request(request)
            most = 700 if len(asked) < 5 else len(answer.content)
            return httpx.Response(200, headers=answer.headers, content=answer.content[:most])

    with Client("http://sampa.test", token, transport=Cutting()) as cutting:
        assert [event["seq"] for event in cutting.follow(running.id)] == list(range(1, 44))
    assert asked == sorted(set(asked))
    assert len(asked) == 5
