"""Our own Ray: what is known of it without starting one, and one real life of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from sampa.service import local_ray
from sampa.service.backends import launcher_of
from sampa.service.launcher import OVER, RayJobs, RayUnreachable, TokenRefused
from sampa.service.local_ray import LocalRay, LocalRayJobs, RayNotStarted
from sampa.service.settings import ServiceSettings

from .samples import wait_until

STARTER = """
import os, signal, sys
from pathlib import Path
from sampa.service import local_ray
local_ray.find_or_start(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""

USER = """
import sys, time
from pathlib import Path
from sampa.service.local_ray import LocalRayJobs
user = LocalRayJobs(Path(sys.argv[1]))
print("here", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _leave_no_logs(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(local_ray.temp_dir_of(tmp_path), ignore_errors=True)


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def remember(state_dir: Path, process: psutil.Process, started: float) -> LocalRay:
    (state_dir / "ray.token").write_text("secret")
    ray = LocalRay(process.pid, started, "http://127.0.0.1:1", str(state_dir / "ray.token"))
    (state_dir / "ray.json").write_text(json.dumps(vars(ray)))
    return ray


def test_where_none_was_started_none_is_found(tmp_path: Path) -> None:
    assert local_ray.find(tmp_path) is None
    (tmp_path / "ray.json").write_text("no json")
    assert local_ray.find(tmp_path) is None


def test_the_last_of_those_who_need_it_is_alone(tmp_path: Path) -> None:
    first, second = LocalRayJobs(tmp_path), LocalRayJobs(tmp_path)
    with subprocess.Popen([sys.executable, "-c", USER, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        assert not first.alone()
        assert not second.alone()
        other.kill()
    assert second.alone()


def test_one_that_does_not_answer_is_not_found(tmp_path: Path, sleeper: psutil.Process) -> None:
    remember(tmp_path, sleeper, sleeper.create_time())
    assert local_ray.find(tmp_path) is None


def test_it_starts_without_what_is_the_apis_alone_or_of_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAMPA_TOKEN", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "secret")
    assert not {"SAMPA_TOKEN", "RAY_ADDRESS"} & local_ray._environment(Path("token")).keys()


def test_another_process_with_the_same_number_is_neither_taken_for_ray_nor_ended(
    tmp_path: Path, sleeper: psutil.Process
) -> None:
    ray = remember(tmp_path, sleeper, sleeper.create_time() - 100)
    assert local_ray.find(tmp_path) is None
    local_ray.stop(ray)
    assert sleeper.is_running()


def test_stopping_ends_the_process_and_its_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as parent:
        process = psutil.Process(parent.pid)
        wait_until(process.children)
        [child] = process.children()
        local_ray.stop(remember(tmp_path, process, process.create_time()), deadline_s=0.5)
        assert not child.is_running()
        assert not process.is_running()


def test_stopping_removes_what_jobs_had_installed_and_keeps_the_logs(tmp_path: Path, sleeper: psutil.Process) -> None:
    session = local_ray.temp_dir_of(tmp_path) / "session_2026-11-24"
    for part in ("runtime_resources/pip/0123", "logs"):
        (session / part).mkdir(parents=True)
    local_ray.stop(remember(tmp_path, sleeper, sleeper.create_time()))
    assert [path.name for path in session.iterdir()] == ["logs"]


def test_a_ray_that_ends_at_once_is_said_not_to_have_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "print('no room for it'); raise SystemExit(3)"
    monkeypatch.setattr(local_ray, "_command", lambda _: ([sys.executable, "-c", words], "http://127.0.0.1:1"))
    with pytest.raises(RayNotStarted, match=r"it ended with 'no room for it'. Its output is in .*ray.log; or give"):
        local_ray.find_or_start(tmp_path)


def test_a_ray_that_never_answers_is_ended_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local_ray, "_command", lambda _: ([sys.executable, "-c", "import time; time.sleep(60)"], "http://127.0.0.1:1")
    )
    with pytest.raises(RayNotStarted, match=r"no answer within 0.5 s"):
        local_ray.find_or_start(tmp_path, deadline_s=0.5)
    assert not psutil.pid_exists(json.loads((tmp_path / "ray.json").read_text())["pid"])


def test_a_temporary_directory_that_is_not_ours_to_use_is_named(tmp_path: Path) -> None:
    local_ray.temp_dir_of(tmp_path).symlink_to(tmp_path)
    with pytest.raises(RayNotStarted, match=r"sampa-ray-.* can't be made anew .*; remove it"):
        local_ray.find_or_start(tmp_path)
    local_ray.temp_dir_of(tmp_path).unlink()


def test_the_settings_say_which_ray_is_used(tmp_path: Path) -> None:
    given = launcher_of(ServiceSettings(state_dir=tmp_path, ray_address="http://head:8265/"))
    assert isinstance(given, RayJobs)
    assert given.url == "http://head:8265"
    given.close()
    ours = launcher_of(ServiceSettings(state_dir=tmp_path))
    assert isinstance(ours, LocalRayJobs)
    with pytest.raises(RayUnreachable, match="has not been started"):
        ours.status("a-1")


@pytest.mark.ray
def test_a_real_one_outlives_who_started_it_is_found_again_runs_jobs_and_ends_as_a_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", STARTER, str(tmp_path)], check=False, timeout=120)
    ray = local_ray.find_or_start(tmp_path)
    tree = [psutil.Process(ray.pid), *psutil.Process(ray.pid).children(recursive=True)]
    try:
        assert ray == local_ray.find(tmp_path)
        assert (tmp_path / "ray.token").stat().st_mode & 0o077 == 0
        with closing(RayJobs(ray.dashboard_url, "wrong")) as stranger, pytest.raises(TokenRefused):
            stranger.check()
        with closing(ray.jobs()) as jobs:
            _run_jobs(jobs, tmp_path)
    finally:
        local_ray.stop(ray)
    assert [process for process in tree if process.is_running()] == []
    assert local_ray.find(tmp_path) is None


def _run_jobs(jobs: RayJobs, tmp_path: Path) -> None:
    python, mark = sys.executable, tmp_path / "mark"
    code = f"import os, pathlib; pathlib.Path({str(mark)!r}).write_text(os.environ['NAME'])"
    (tmp_path / "job.py").write_text(code)
    jobs.submit("quick", f"exec {python} {tmp_path}/job.py", {"NAME": "value"})
    jobs.submit("quick", "false", {})
    jobs.submit("slow", f"exec {python} -c 'import time; time.sleep(100)'", {})
    jobs.submit("bad", f"exec {python} -c 'raise SystemExit(3)'", {})
    wait_until(lambda: jobs.status("quick") in OVER, 60)
    assert jobs.status("quick") == "SUCCEEDED"
    assert mark.read_text() == "value"
    wait_until(lambda: jobs.status("bad") == "FAILED", 60)
    wait_until(lambda: jobs.status("slow") == "RUNNING", 60)
    jobs.stop("slow")
    wait_until(lambda: jobs.status("slow") == "STOPPED", 60)
    assert jobs.status("unknown") is None
    jobs.stop("unknown")
