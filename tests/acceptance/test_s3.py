"""A service whose files lie on S3: a job whose runner is killed resumes there, with the bits of a calm one here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sampa.workers.storage import Storage

from ..api.processes import ServerProcess
from .conftest import served
from .jobs import CODE, EVERY, Run, Watched, assert_numbered, kill, run_of, spec, unbroken


@pytest.fixture
def address(s3: Any, bucket: str) -> str:
    found: str = s3.address(f"{bucket}/sampa")
    return found


@pytest.fixture
def server_on_s3(address: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service of its own, which finds the keys in its environment."""
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served", SAMPA_STORAGE=address) as server:
        yield server


def test_a_run_on_s3_has_the_bits_of_one_here(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CODE))
    asked = spec("alone", pace_s=0.0)
    there = Storage.at(s3.address(bucket)) / "run"
    unbroken(asked, there).assert_same(unbroken(asked, tmp_path))
    assert len((there / "checkpoints").names()) == 2


@pytest.mark.ray
@pytest.mark.long
def test_a_job_whose_runner_is_killed_resumes_from_s3_with_the_same_bits(
    server_on_s3: ServerProcess, s3: Any, bucket: str, calm: Run, tmp_path: Path
) -> None:
    with server_on_s3.client() as client:
        job = Watched(client, client.submit(spec("on-s3", workers=2, pace_s=0.05))["id"])
        job.between_checkpoints()
        (runner,) = job.runners()
        kill(runner.pid)
        ended = job.ended(240.0)
        assert (ended["state"], ended["attempt"], ended["restarts"]) == ("SUCCEEDED", 2, 1)
        start, resume = (data for data in job.data("elastic") if data["cause"] in {"start", "resume"})
        assert resume["step"] > start["step"]
        assert resume["step"] % EVERY == 0
        assert_numbered(job.events())
        run_of(job, tmp_path).assert_same(calm)
        checkpoints = client.checkpoints(job.id)
        assert sum(one["available"] for one in checkpoints) == 2
        folder = f"{bucket}/sampa/jobs/{job.id}"
        found = {info.path.removeprefix(f"{folder}/") for info in files_below(s3, folder)}
        assert {"model.safetensors", "result.json"} < found
        assert sum(name.startswith("checkpoints/step-") for name in found) == 2
        assert not (server_on_s3.state_dir / "jobs").exists(), "nothing of it lies here"


def files_below(s3: Any, folder: str) -> list[Any]:
    from pyarrow import fs

    found = s3.filesystem().get_file_info(fs.FileSelector(folder, recursive=True))
    return [info for info in found if info.is_file]
