"""Where a service's files lie: as the settings say; and a runner that waits for a storage that is away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sampa.service import runner
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Store
from sampa.service.told import Told
from sampa.workers.storage import Storage

from .samples import spec_of, wait_until
from .test_runner import GOOD, FakeTrain


def test_files_lie_in_the_state_directory_unless_something_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAMPA_STORAGE", raising=False)
    settings = ServiceSettings.from_environment(state_dir=tmp_path)
    assert settings.job_storage("a").path == tmp_path / "jobs" / "a"
    monkeypatch.setenv("SAMPA_STORAGE", f"file://{tmp_path}/shared")
    shared = ServiceSettings.from_environment(state_dir=tmp_path)
    assert shared.job_storage("a").path == tmp_path / "shared" / "jobs" / "a"
    monkeypatch.setenv("SAMPA_STORAGE", "s3://bucket/sampa?region=eu-central-1")
    storage = ServiceSettings.from_environment(state_dir=tmp_path).job_storage("a")
    assert (str(storage), storage.path) == ("s3://bucket/sampa/jobs/a", None)


@pytest.mark.parametrize("wrong", ["s3://", "http://bucket/x", "s3://key:secret@bucket"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValidationError, match="storage"):
        ServiceSettings(state_dir=tmp_path, storage=wrong)


@pytest.fixture
def job_id(store: Store) -> str:
    store.submit(spec_of())
    job = store.claim(max_running=1)
    assert job is not None
    return job.id


def lines(store: Store, job_id: str) -> list[str]:
    return [event.data["line"] for event in store.events(job_id, kinds=("log",))]


def start(store: Store, job_id: str, address: str, train: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run it beside the test; return where its exit code will be."""
    monkeypatch.setattr(runner, "LOOK_S", 0.05)
    codes: list[int] = []

    def run() -> None:
        codes.append(runner.run(store, lambda: Storage.at(address) / job_id, job_id, 1, train, Told([])))

    threading.Thread(target=run, daemon=True).start()
    return codes


def test_a_job_waits_for_its_storage_and_is_trained_when_it_is_there(
    s3: Any, store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, bucket = FakeTrain(end=GOOD), f"made-later-{job_id}"
    codes = start(store, job_id, s3.address(f"{bucket}/jobs"), train, monkeypatch)
    wait_until(lambda: bool(lines(store, job_id)))
    (line,) = lines(store, job_id)
    assert line.startswith(f"waiting for the storage: can't write .storage-check to s3://{bucket}/jobs/")
    assert line.endswith("make the bucket, or name another one in SAMPA_STORAGE")
    assert (store.job(job_id).state, train.called_with) == (State.STARTING, {})
    s3.make(bucket)
    wait_until(lambda: bool(codes))
    assert (codes, store.job(job_id).state) == ([0], State.SUCCEEDED)
    assert len(lines(store, job_id)) == 1, "it says so once"
    assert str(train.called_with["directory"]) == f"s3://{bucket}/jobs/{job_id}"


def test_a_job_that_waits_for_its_storage_can_be_cancelled(
    s3: Any, store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = start(store, job_id, s3.address("never-made/jobs"), FakeTrain(end=GOOD), monkeypatch)
    wait_until(lambda: bool(lines(store, job_id)))
    store.cancel(job_id)
    wait_until(lambda: bool(codes))
    assert (codes, store.job(job_id).state) == ([0], State.CANCELLED)
