"""The command line: it finds its server by itself, its errors are one sentence, its exit codes tell what happened."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from sampa.api.cli import app
from sampa.api.cli_sweeps import COMMANDS
from sampa.api.client import Client, SampaError
from sampa.api.follow import Followed, follow
from sampa.api.found import find_server, write_down
from sampa.service.states import State
from sampa.service.store import Job, Store
from typer.testing import CliRunner, Result

from .conftest import elastic, metrics
from .processes import ServerProcess, run_job, server_process, until
from .test_jobfile import GOOD
from .test_packing import lay

RESULT = {"metrics": {"final": {"accuracy": 0.96}}, "seconds": 3.5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("cli")) as server:
        server.start()
        yield server


@pytest.fixture
def shared(server: ServerProcess) -> Iterator[Store]:
    store = server.store()
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def ended(server: ServerProcess, shared: Store) -> Job:
    """A job that has succeeded, with a model and a checkpoint that is gone."""
    job = run_job(shared, "ended")
    evaluation = ("evaluation", {"step": 3, "split": "test", "loss": 0.25, "accuracy": 0.96})
    checkpoint = ("checkpoint", {"step": 3, "path": "checkpoints/3", "bytes": 10})
    log = ("log", {"worker": 0, "line": "[bold]hello[/bold]"})
    task = ("task", {"steps": 3, "epochs": 1})
    events = [task, *metrics(range(1, 4)), evaluation, checkpoint, log]
    shared.append(job.id, events, attempt=1, progress={"step": 3, "steps": 3})
    folder = server.state_dir / "jobs" / job.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    return shared.move(job.id, State.SUCCEEDED, attempt=1, result=RESULT)


def good(done: Result) -> str:
    """Return what a command printed, if all went well."""
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def complaint(done: Result, code: int) -> str:
    """Return the one sentence of a command that failed."""
    assert done.exit_code == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.strip().removeprefix("error: ")


def test_every_command_shows_what_it_knows(server: ServerProcess, ended: Job, tmp_path: Path) -> None:
    assert "ended" in good(server.run("jobs", "--name", "ended", "--state", "succeeded"))
    assert json.loads(good(server.run("jobs", "--json", "--limit", "1")))[0]["id"] == ended.id
    shown = good(server.run("show", ended.id))
    assert "SUCCEEDED" in shown
    assert "accuracy 0.96" in shown
    assert json.loads(good(server.run("show", ended.id, "--json")))["result"] == RESULT
    assert [line.split()[0] for line in good(server.run("events", ended.id)).splitlines()] == [
        str(number) for number in range(1, 12)
    ]
    events = [json.loads(line) for line in good(server.run("events", ended.id, "--after", "9", "--json")).splitlines()]
    assert [event["seq"] for event in events] == [10, 11]
    assert good(server.run("metrics", ended.id)).splitlines()[-1].startswith("evaluation  step 3")
    assert json.loads(good(server.run("metrics", ended.id, "--json")).splitlines()[0])["loss"] == 1.0
    assert "checkpoints/3" in good(server.run("checkpoints", ended.id))
    assert good(server.run("model", ended.id, "--out", str(tmp_path / "new"))).strip().endswith("model.safetensors")
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == b"weights"
    assert good(server.run("cancel", ended.id)) == f"job {ended.id} SUCCEEDED\n"


def test_a_job_is_paused_resized_and_resumed(server: ServerProcess, shared: Store) -> None:
    job = run_job(shared, "steered")
    assert good(server.run("pause", job.id)) == f"job {job.id} PAUSING\n"
    waiting = server.start_command("pause", job.id, "--wait")
    assert good(server.run("resize", job.id, "--workers", "1")) == f"job {job.id} PAUSING with at most 1 workers\n"
    assert "can't be resumed; wait until" in complaint(server.run("resume", job.id), 2)
    shared.move(job.id, State.PAUSED, attempt=1)
    assert waiting.communicate(timeout=30) == (f"job {job.id} PAUSED\n", "")
    assert good(server.run("resume", job.id)).startswith(f"job {job.id} ")
    assert "at most 2 x pairs = 2" in complaint(server.run("resize", job.id, "--workers", "3"), 2)
    assert server.run("resize", job.id, "--workers", "0").exit_code == 2
    shared.cancel(job.id)


def test_what_changes_of_workers_have_cost_is_told(server: ServerProcess, shared: Store) -> None:
    job = run_job(shared, "elastic")
    lost = {"steps_lost": 1, "samples_replayed": 64, "recovery_seconds": 0.4, "detail": "worker 1 ended"}
    changes = [elastic("start", 0, 0, 2), elastic("loss", 7, 2, 1, **lost)]
    shared.append(job.id, changes, attempt=1, progress={"step": 8, "workers": 1})
    shared.resize(job.id, 1)
    shown = good(server.run("show", job.id))
    assert "workers   1 of at most 1" in shown
    assert "changes   2 from step 0, 1 from step 7" in shown
    assert "cost      1 restarts, 1 steps lost (64 samples), 0.4 s of standing still" in shown
    *_, loss, resize = good(server.run("events", job.id)).splitlines()
    assert "loss at step 7: 2 -> 1 workers, 1 steps lost (64 samples), 0.4 s of standing still; worker 1 ended" in loss
    assert resize.endswith("resize      at most 1 workers from now on")
    shared.cancel(job.id)


def test_following_a_job_that_has_ended_tells_how(server: ServerProcess, ended: Job) -> None:
    lines = good(server.run("events", ended.id, "--follow")).splitlines()
    assert len(lines) == 12
    assert lines[-1] == f"job {ended.id} SUCCEEDED"
    assert "[bold]hello[/bold]" in lines[9]
    stream = good(server.run("events", ended.id, "--follow", "--json")).splitlines()
    assert [json.loads(line)["seq"] for line in stream] == list(range(1, 12))


def test_submit_and_follow_shows_the_run_and_fails_with_it(server: ServerProcess, shared: Store, file: Path) -> None:
    process = server.start_command("submit", str(file), "--follow")
    job = until(lambda: next(iter(shared.jobs([State.STARTING])), None), "the job to be launched")
    until(lambda: shared.job(job.id).launched or None, "the job to be launched")
    shared.move(job.id, State.RUNNING, attempt=1)
    shared.append(job.id, metrics(range(1, 3)), attempt=1)
    shared.move(job.id, State.FAILED, attempt=1, reason="the loss became NaN at step 2")
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, "")
    assert output.splitlines()[-1] == f"job {job.id} FAILED: the loss became NaN at step 2"
    assert "loss 0.5" in output


def test_ctrl_c_stops_following_and_not_the_job(server: ServerProcess, shared: Store, file: Path) -> None:
    process = server.start_command("submit", str(file), "--follow")
    assert process.stdout is not None
    job_id = process.stdout.readline().split()[1]
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"sampa events {job_id} --follow --after " in errors
    assert f"sampa cancel {job_id}" in errors
    assert "Traceback" not in errors
    assert shared.job(job_id).state in (State.QUEUED, State.STARTING)
    shared.cancel(job_id)


def test_a_repeated_key_submits_nothing_new(server: ServerProcess, shared: Store, file: Path) -> None:
    first, again = (good(server.run("submit", str(file), "--key", "mine")).split()[1] for _ in range(2))
    assert first == again
    shared.cancel(first)


@pytest.fixture
def own(file: Path) -> Path:
    """A job whose task is in a module of the user's own."""
    file.write_text(GOOD.replace("entrypoint: digits", "entrypoint: mine:build").replace("{label_noise: 0.4}", "{}"))
    return file


def test_submit_brings_code_and_packages(server: ServerProcess, shared: Store, own: Path, tmp_path: Path) -> None:
    code = lay(tmp_path / "code", {"mine.py": "", "api/__init__.py": "", "notes.log": "", ".gitignore": "*.log"})
    (tmp_path / "requirements.txt").write_text("einops==0.8.1  # for patches\n")
    options = ("--code", str(code), "--pip", str(tmp_path / "requirements.txt"))
    first, again = (good(server.run("submit", str(own), *options)).split()[1] for _ in range(2))
    spec = shared.job(first).spec
    assert spec.bundle is not None
    assert (shared.bundles.get(spec.bundle).files, spec.pip) == (3, ["einops==0.8.1"])
    assert shared.job(again).spec == spec
    assert f"code      bundle {spec.bundle[:12]}  pip einops==0.8.1\n" in good(server.run("show", first))
    for job_id in (first, again):
        shared.cancel(job_id)


def test_code_that_can_not_be_sent_is_one_sentence_and_code_2(
    server: ServerProcess, shared: Store, own: Path, tmp_path: Path
) -> None:
    code = lay(tmp_path / "code", {"other.py": ""})
    before = len(shared.jobs())
    for command in (["submit", str(own)], ["train", str(own), "--out", str(tmp_path / "x")], ["drill", str(own)]):
        sentence = complaint(server.run(*command, "--code", str(code)), 2)
        assert sentence.startswith(f"task.entrypoint is mine:build, but {code} has neither mine.py nor mine/")
        assert "does not exist" in complaint(server.run(*command, "--code", str(tmp_path / "nowhere")), 2)
        assert "can't be read" in complaint(server.run(*command, "--pip", str(tmp_path / "nowhere.txt")), 2)
    own.write_text(f"{own.read_text()}code: {{bundle: '{'0' * 64}'}}\n")
    assert "give the directory with --code" in complaint(server.run("train", str(own), "--out", "x"), 2)
    assert f"code.bundle {'0' * 64} is not on this server" in complaint(server.run("submit", str(own)), 2)
    assert len(shared.jobs()) == before


def test_a_bundle_that_is_far_too_large_is_refused_before_all_of_it_is_sent(
    server: ServerProcess, tmp_path: Path
) -> None:
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(101 << 20)
    with server.client() as client, pytest.raises(SampaError, match="more than 100 MiB when packed") as caught:
        client.upload(tmp_path / "large.zip")
    assert caught.value.status == 413


def test_bad_input_is_one_sentence_and_code_2(server: ServerProcess, file: Path) -> None:
    file.write_text(GOOD.replace("rho: 0.1", "rho: -1"))
    assert complaint(server.run("submit", str(file)), 2) == f"{file}:5: method.rho must be at least 0, but is -1"
    assert complaint(server.run("train", str(file), "--out", "x"), 2).startswith(f"{file}:5: method.rho")
    assert "there is no job nobody" in complaint(server.run("show", "nobody"), 2)
    assert "there is no job nobody" in complaint(server.run("events", "nobody", "--follow"), 2)
    assert "state" in complaint(server.run("jobs", "--state", "done"), 2)
    assert "token" in complaint(server.run("jobs", "--token", "wrong"), 2)
    assert server.run("jobs", "--limit", "0").exit_code == 2
    assert server.run("shwo").exit_code == 2


def test_a_server_that_is_not_there_is_one_sentence_and_code_3(server: ServerProcess, file: Path) -> None:
    steering = (["cancel", "x"], ["pause", "x"], ["resume", "x"], ["resize", "x", "--workers", "1"])
    for command in (["jobs"], ["submit", str(file)], ["show", "x"], *steering):
        sentence = complaint(server.run(*command, "--url", "http://127.0.0.1:9"), 3)
        assert "no server answers at http://127.0.0.1:9" in sentence
        assert "sampa serve" in sentence


def test_the_version_and_the_help_are_there() -> None:
    def shown(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0
        return done.output

    assert shown("--version").startswith("sampa ")
    commands = shown("--help")
    names = ("serve", "train", "submit", "jobs", "show", "events", "metrics", "checkpoints", "model", "cancel")
    names += ("pause", "resume", "resize", *COMMANDS)
    assert all(f"\n  {name} " in commands for name in names)
    for name in names[2:]:
        assert all(option in shown(name, "--help") for option in ("--url", "--token", "--state-dir"))


def test_the_server_of_the_state_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_down(tmp_path, "http://127.0.0.1:1234")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("SAMPA_STATE_DIR", str(tmp_path))
    found = find_server(None, None, None)
    assert (found.url, found.token) == ("http://127.0.0.1:1234", "secret")
    given = find_server("http://x", "t", tmp_path)
    assert (given.url, given.token) == ("http://x", "t")
    assert find_server("http://elsewhere", None, None).token == "", "a secret goes to its own server only"
    assert find_server("http://elsewhere", None, tmp_path).token == "secret"


def test_a_terminal_shows_a_bar_with_loss_and_accuracy(client: Client, store: Store, running: Job) -> None:
    evaluation = ("evaluation", {"step": 3, "split": "test", "loss": 0.25, "accuracy": 0.96})
    store.append(running.id, [("task", {"steps": 3}), *metrics(range(1, 4)), evaluation], attempt=1)
    store.move(running.id, State.SUCCEEDED)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    assert follow(client, running.id, Followed(), console).exit_code == 0
    shown = screen.getvalue()
    assert "3/3" in shown
    assert "loss 0.3333  test loss 0.25  test accuracy 0.96" in shown
    assert f"job {running.id} SUCCEEDED" in shown
