"""Files of jobs that lie on S3, and of jobs that lie here: the same answers; a storage that is away is a problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sampa.api.app import create_app
from sampa.api.auth import token_in
from sampa.api.client import Client
from sampa.api.connection import SampaError
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Job, Store
from sampa.service.sweeps.spec import SweepSpec
from sampa.workers.storage import Storage

from ..service.samples import FakeRay
from .conftest import SWEEP, AppTransport
from .fakes import IdleReconciler

WEIGHTS = bytes(range(256)) * (30 << 10)
NOBODY = "s3://bucket/run?endpoint_override=http://127.0.0.1:1&region=us-east-1"
Ask = Callable[..., httpx.Response]


def application(settings: ServiceSettings, store: Store, storage: str) -> FastAPI:
    changed = ServiceSettings(state_dir=settings.state_dir, ray_address=settings.ray_address, storage=storage)
    return create_app(changed, store, IdleReconciler(), FakeRay())


def asking(app: FastAPI, token: str) -> Ask:
    def get(path: str, **headers: str) -> httpx.Response:
        with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.get(path, headers={"Authorization": f"Bearer {token}", **named})

    return get


@pytest.fixture(params=["local", "s3"])
def app(request: pytest.FixtureRequest, settings: ServiceSettings, store: Store, tmp_path: Path) -> FastAPI:
    if request.param == "local":
        return application(settings, store, str(tmp_path / "elsewhere"))
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    return application(settings, store, s3.address(f"{bucket}/sampa"))


@pytest.fixture
def get(app: FastAPI, settings: ServiceSettings) -> Ask:
    return asking(app, token_in(settings.state_dir))


@pytest.fixture
def files(app: FastAPI, running: Job) -> Storage:
    """Those of the job."""
    found: Storage = app.state.settings.job_storage(running.id)
    return found


@pytest.fixture
def trained(store: Store, running: Job, files: Storage) -> Job:
    """A job that has left its model."""
    files.write("model.safetensors", WEIGHTS)
    return store.move(running.id, State.SUCCEEDED, result={})


def test_a_model_comes_whole_with_its_length_and_version(get: Ask, trained: Job) -> None:
    answer = get(f"/v1/jobs/{trained.id}/model")
    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["accept-ranges"] == "bytes"
    assert "digits-sampa.safetensors" in answer.headers["content-disposition"]
    assert "GMT" in answer.headers["last-modified"]
    again = get(f"/v1/jobs/{trained.id}/model", If_None_Match=answer.headers["etag"])
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=7-", 7, len(WEIGHTS)),
        ("bytes=-5", len(WEIGHTS) - 5, len(WEIGHTS)),
        ("bytes=5000000-99999999999", 5_000_000, len(WEIGHTS)),
    ],
)
def test_a_part_of_a_model(get: Ask, trained: Job, asked: str, start: int, stop: int) -> None:
    answer = get(f"/v1/jobs/{trained.id}/model", Range=asked)
    assert (answer.status_code, answer.content) == (206, WEIGHTS[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(WEIGHTS)}"
    assert answer.headers["content-length"] == str(stop - start)


def test_a_part_of_another_version_is_the_whole_and_one_beyond_the_end_is_none(get: Ask, trained: Job) -> None:
    path = f"/v1/jobs/{trained.id}/model"
    assert get(path, Range="bytes=0-9", If_Range='"other"').content == WEIGHTS
    beyond = get(path, Range=f"bytes={len(WEIGHTS)}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(WEIGHTS)}")


def test_a_model_that_was_removed_is_gone(get: Ask, trained: Job, files: Storage) -> None:
    files.remove("model.safetensors")
    answer = get(f"/v1/jobs/{trained.id}/model")
    assert (answer.status_code, answer.json()["type"]) == (410, "urn:sampa:problem:model-gone")


def test_checkpoints_are_those_that_are_there(get: Ask, store: Store, running: Job, files: Storage) -> None:
    for step in (1, 2):
        data = {"step": step, "bytes": 4, "path": f"checkpoints/step-{step:09d}.ckpt"}
        store.append(running.id, [("checkpoint", data)], attempt=1)
    (files / "checkpoints").write("step-000000002.ckpt", b"here")
    items = get(f"/v1/jobs/{running.id}/checkpoints").json()["items"]
    assert [(item["step"], item["available"]) for item in items] == [(1, False), (2, True)]


def test_a_report_and_its_picture(app: FastAPI, get: Ask, store: Store) -> None:
    sweep = store.sweeps.submit(SweepSpec.model_validate(SWEEP))[0]
    path = f"/v1/sweeps/{sweep.id}/report"
    assert get(path).json()["type"] == "urn:sampa:problem:no-report-yet"
    there = app.state.settings.job_storage(sweep.id)
    there.write("report.json", b'{"recommended": null}')
    there.write("report.png", b"picture")
    assert get(path).json() == {"recommended": None}
    assert (get(f"{path}.png").content, get(f"{path}.png").headers["content-type"]) == (b"picture", "image/png")


class TestAway:
    """A storage that can't be used is a problem that says what to do, and the job stays as it is."""

    PATHS = ("/model", "/checkpoints")

    def problems(self, get: Ask, job: Job) -> list[dict[str, Any]]:
        answers = [get(f"/v1/jobs/{job.id}{path}") for path in self.PATHS]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert [answer.headers["retry-after"] for answer in answers] == ["10", "10"]
        return [answer.json() for answer in answers]

    def test_it_does_not_answer(
        self, s3: object, settings: ServiceSettings, store: Store, running: Job, token: str
    ) -> None:
        done = store.move(running.id, State.SUCCEEDED, result={})
        app = application(settings, store, NOBODY)
        for problem in self.problems(asking(app, token), done):
            assert problem["type"] == "urn:sampa:problem:no-storage"
            assert "see whether it answers, and whether AWS_ENDPOINT_URL" in problem["detail"]
        assert store.job(done.id).state is State.SUCCEEDED
        with (
            Client("http://sampa.test", token, transport=AppTransport(app)) as client,
            pytest.raises(SampaError, match="see whether it answers"),
        ):
            client.model(done.id, settings.state_dir / "model")

    def test_its_bucket_is_missing_or_its_keys_are_wrong(
        self, s3: Any, bucket: str, settings: ServiceSettings, store: Store, running: Job, token: str
    ) -> None:
        done = store.move(running.id, State.SUCCEEDED, result={})
        get = asking(application(settings, store, s3.address("missing/sampa")), token)
        assert all("make the bucket" in problem["detail"] for problem in self.problems(get, done))
        get = asking(application(settings, store, s3.address(f"{bucket}/sampa")), token)
        s3.ask_for_keys(known=False)
        try:
            assert all("AWS_SECRET_ACCESS_KEY" in problem["detail"] for problem in self.problems(get, done))
        finally:
            s3.ask_for_keys(known=True)
