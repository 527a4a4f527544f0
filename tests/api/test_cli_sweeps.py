"""The commands of sweeps: what they send, what they show, and how they end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sampa.api.printing import event_line
from sampa.api.sweep_printing import describe_report
from sampa.service.states import State
from sampa.service.store import Store, Sweep

from ..service.samples import begun_trial, sweep_spec_of
from .processes import ServerProcess, server_process, until
from .test_cli import complaint, good
from .test_packing import lay

GOOD = """\
name: rho
base:
  task: {entrypoint: digits, params: {label_noise: 0.4}}
  method: {name: sampa, lambda: 0.0}
  optimizer:
    name: sgd
    lr: 5e-2
  epochs: 1
  batch_size: 64
space:
  method.rho: {loguniform: [0.01, 0.5]}
trials: 4
baselines: [sgd]
"""
REPORT: dict[str, Any] = {
    "metric": "accuracy",
    "mode": "max",
    "margin": 0.005,
    "trials": {
        "total": 5,
        "failed": [{"number": 4, "configuration": 3, "baseline": None, "seed": 0, "reason": "the loss became NaN"}],
    },
    "values": {
        "method.rho": [
            {"value": 0.05, "mean": 0.95, "interval": [0.94, 0.96], "n": 3, "collapsed": 0, "state": "full"},
            {"value": 0.4, "mean": None, "interval": None, "n": 3, "collapsed": 2, "state": "full"},
        ]
    },
    "recommended": {
        "values": {"method.rho": 0.0983},
        "mean": 0.9651,
        "interval": [0.961, 0.969],
        "intervals": {"method.rho": [0.07, 0.13]},
    },
    "why_not": None,
    "baselines": {
        "sgd": {"mean": 0.931, "interval": [0.925, 0.937], "n": 3, "collapsed": 0, "seconds": 10.5, "gradients": 480},
        "sam": {"mean": None, "interval": None, "n": 0, "collapsed": 0, "seconds": None, "gradients": None},
    },
    "advantage": {"sgd": {"probability": 0.998}},
    "verdict": "SAMPa is worth it here: it beats SGD by 3.4 points.",
    "collapse": {"sentence": "From rho 0.2 on, runs fall apart."},
    "notes": ["Only one seed was trained."],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("cli-sweeps")) as server:
        server.start()
        yield server


@pytest.fixture
def shared(server: ServerProcess) -> Iterator[Store]:
    store = server.store()
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    return path


def taken(store: Store, sweep_id: str) -> Sweep:
    """Play the runner of a sweep that was submitted: return it as soon as it is RUNNING."""
    until(lambda: store.sweeps.get(sweep_id).launched or None, "the reconciler to launch the sweep")
    store.move(sweep_id, State.RUNNING, attempt=1)
    return store.sweeps.get(sweep_id)


@pytest.fixture
def running(shared: Store) -> Iterator[Sweep]:
    sweep = taken(shared, shared.sweeps.submit(sweep_spec_of("mine"))[0].id)
    yield sweep
    shared.sweeps.cancel(sweep.id)


@pytest.fixture
def reported(server: ServerProcess, running: Sweep) -> Sweep:
    """A sweep with a report."""
    folder = server.state_dir / "jobs" / running.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "report.png").write_bytes(b"\x89PNG")
    return running


def test_every_command_shows_what_it_knows(server: ServerProcess, shared: Store, running: Sweep) -> None:
    trial = begun_trial(shared, running)
    shared.append(trial.id, [("log", {"worker": 0, "line": "hello"})], attempt=1, progress={"step": 3, "accuracy": 0.9})
    progress = {"trials": 5, "ended": 2, "running": 1, "failed": 1, "best": 0.951}
    shared.append(running.id, [], attempt=1, progress=progress)
    listed = good(server.run("sweeps", "--name", "mine", "--state", "running"))
    assert "2/5" in listed
    assert json.loads(good(server.run("sweeps", "--json", "--limit", "1")))[0]["id"] == running.id
    shown = good(server.run("sweep-show", running.id))
    assert "search    tpe, scheduler none, by highest accuracy" in shown
    assert "space     method.rho loguniform [0.01, 0.5]" in shown
    assert "trials    2/5 ended, 1 running, 1 failed   best 0.951" in shown
    assert json.loads(good(server.run("sweep-show", running.id, "--json")))["report"] is None
    row = good(server.run("sweep-trials", running.id, "--state", "running")).splitlines()[1]
    assert row.split() == ["1", trial.id, "RUNNING", "0", "0.9", "3", "method.rho", "0.1"]
    assert json.loads(good(server.run("sweep-trials", running.id, "--json")))[0]["number"] == 1
    assert [line.split()[0] for line in good(server.run("sweep-events", running.id)).splitlines()] == ["1", "2", "3"]
    of_trial = good(server.run("sweep-events", running.id, "--trial", "1", "--after", "3")).splitlines()
    assert [line.split(maxsplit=3)[3] for line in of_trial] == ["log         0: hello"]
    assert json.loads(good(server.run("sweep-events", running.id, "--json")).splitlines()[-1])["seq"] == 3
    assert "hello" in good(server.run("events", trial.id)), "by its id, a trial is looked at like a job"


def test_a_sweep_is_steered(server: ServerProcess, shared: Store, running: Sweep) -> None:
    sweep_id = running.id
    assert good(server.run("sweep-pause", sweep_id)) == f"sweep {sweep_id} PAUSING\n"
    waiting = server.start_command("sweep-pause", sweep_id, "--wait")
    shared.move(sweep_id, State.PAUSED, attempt=1)
    assert waiting.communicate(timeout=30) == (f"sweep {sweep_id} PAUSED\n", "")
    assert good(server.run("sweep-extend", sweep_id, "--trials", "8")) == f"sweep {sweep_id} PAUSED\n"
    assert shared.sweeps.get(sweep_id).spec.trials == 8
    assert "must be at least 8, which it has already" in complaint(
        server.run("sweep-extend", sweep_id, "--trials", "5"), 2
    )
    assert "are 10001 trials, but at most 10000" in complaint(
        server.run("sweep-extend", sweep_id, "--trials", "10000"), 2
    )
    assert "must be at most 10000" in complaint(server.run("sweep-extend", sweep_id, "--trials", "10001"), 2)
    assert "finite" in complaint(server.run("sweep-extend", sweep_id, "--wall-s", "inf"), 2)
    assert "give trials, budget.wall_s or budget.gradients" in complaint(server.run("sweep-extend", sweep_id), 2)
    assert good(server.run("sweep-retry", sweep_id)) == f"sweep {sweep_id} PAUSED\n"
    assert good(server.run("sweep-resume", sweep_id)).startswith(f"sweep {sweep_id} ")
    assert good(server.run("sweep-cancel", sweep_id)).startswith(f"sweep {sweep_id} CANCEL")


def test_what_a_sweep_has_found_is_told_and_written(server: ServerProcess, reported: Sweep, tmp_path: Path) -> None:
    told = good(server.run("sweep-report", reported.id))
    assert told.startswith("SAMPa is worth it here")
    assert told.strip() in good(server.run("sweep-show", reported.id))
    assert json.loads(good(server.run("sweep-report", reported.id, "--json"))) == REPORT
    out = tmp_path / "answer"
    paths = good(server.run("sweep-report", reported.id, "--out", str(out))).split()
    assert paths == [str(out / "report.json"), str(out / "report.png")]
    assert json.loads((out / "report.json").read_text()) == REPORT
    assert (out / "report.png").read_bytes() == b"\x89PNG"
    (tmp_path / "taken").write_text("")
    assert "can't be written" in complaint(server.run("sweep-report", reported.id, "--out", str(tmp_path / "taken")), 2)


def test_the_recommended_configuration_is_promoted(server: ServerProcess, shared: Store, reported: Sweep) -> None:
    options = ("--seeds", "2", "--epochs", "9", "--name", "final", "--key", "once")
    first, again = (good(server.run("sweep-promote", reported.id, *options)) for _ in range(2))
    ids = [line.split()[1] for line in first.splitlines()]
    assert [line.split()[1] for line in again.splitlines()] == ids
    jobs = [shared.job(job_id) for job_id in ids]
    assert [(job.name, job.spec.seed, job.spec.epochs) for job in jobs] == [("final", 1, 9), ("final", 2, 9)]
    assert {job.spec.method.rho for job in jobs} == {0.0983}
    for job_id in ids:
        shared.cancel(job_id)


def test_following_shows_each_trial_and_the_recommended_value_at_the_end(
    server: ServerProcess, shared: Store, file: Path
) -> None:
    process = server.start_command("sweep", str(file), "--follow")
    assert process.stdout is not None
    sweep = taken(shared, process.stdout.readline().split()[1])
    queued = {"number": 1, "state": "QUEUED", "values": {"method.rho": 0.1}, "seed": 0}
    waits = {"worker": "runner", "line": "waiting for room"}
    copied = {"number": 1, "source": 3, "epoch": 5.0, "before": {"method.rho": 0.2}, "values": {"method.rho": 0.1}}
    ended = {
        "number": 1,
        "state": "STOPPED",
        "values": {"method.rho": 0.1},
        "score": 0.95,
        "reason": "not among the best",
    }
    told = [("trial", queued), ("log", waits), ("exploit", copied), ("trial", ended)]
    shared.append(sweep.id, told, attempt=1)
    folder = server.state_dir / "jobs" / sweep.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(REPORT))
    shared.move(sweep.id, State.SUCCEEDED, attempt=1)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    *before, trial, _, end, verdict, recommended = output.splitlines()
    assert any("state RUNNING" in line for line in before)
    assert before[-2].endswith("runner: waiting for room")
    assert before[-1].endswith("trial 1 goes on from trial 3, epoch 5  method.rho 0.1")
    assert "trial 1 QUEUED" not in output
    assert trial.endswith("trial 1 STOPPED  method.rho 0.1  score 0.95: not among the best")
    assert end == f"sweep {sweep.id} SUCCEEDED"
    assert (verdict, recommended) == (
        "SAMPa is worth it here: it beats SGD by 3.4 points.",
        "recommended: method.rho 0.0983 (0.07 to 0.13); gives accuracy 0.9651 (0.961 to 0.969)",
    )


def test_a_failed_sweep_is_code_1(server: ServerProcess, shared: Store, running: Sweep) -> None:
    shared.move(running.id, State.FAILED, attempt=1, reason="all trials failed")
    done = server.run("sweep-events", running.id, "--follow")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == f"sweep {running.id} FAILED: all trials failed"


def test_ctrl_c_stops_following_and_not_the_sweep(server: ServerProcess, shared: Store, file: Path) -> None:
    process = server.start_command("sweep", str(file), "--follow")
    assert process.stdout is not None
    sweep_id = process.stdout.readline().split()[1]
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"sampa sweep-events {sweep_id} --follow --after " in errors
    assert f"end it with sampa sweep-cancel {sweep_id}" in errors
    assert shared.sweeps.get(sweep_id).state in (State.QUEUED, State.STARTING)
    shared.sweeps.cancel(sweep_id)


def test_a_sweep_brings_code_and_packages(server: ServerProcess, shared: Store, file: Path, tmp_path: Path) -> None:
    own = GOOD.replace("entrypoint: digits", "entrypoint: mine:build").replace("{label_noise: 0.4}", "{}")
    file.write_text(own)
    (tmp_path / "requirements.txt").write_text("einops==0.8.1\n")
    options = ("--code", str(lay(tmp_path / "code", {"mine.py": ""})), "--pip", str(tmp_path / "requirements.txt"))
    sweep_id = good(server.run("sweep", str(file), *options)).split()[1]
    spec = shared.sweeps.get(sweep_id).spec
    assert spec.bundle is not None
    assert (shared.bundles.get(spec.bundle).in_use, spec.pip) == (True, ["einops==0.8.1"])
    shared.sweeps.cancel(sweep_id)
    other = lay(tmp_path / "other", {"other.py": ""})
    assert "has neither mine.py nor mine/" in complaint(server.run("sweep", str(file), "--code", str(other)), 2)


def test_bad_input_is_one_sentence_and_code_2(server: ServerProcess, file: Path) -> None:
    file.write_text(GOOD.replace("[0.01, 0.5]", "[0, 0.5]"))
    assert complaint(server.run("sweep", str(file)), 2).startswith(f"{file}:11: space.method.rho")
    assert "there is no sweep nobody" in complaint(server.run("sweep-show", "nobody"), 2)
    assert "there is no sweep nobody" in complaint(server.run("sweep-events", "nobody", "--follow"), 2)
    assert "state" in complaint(server.run("sweeps", "--state", "done"), 2)
    assert "no server answers" in complaint(server.run("sweeps", "--url", "http://127.0.0.1:9"), 3)


def test_a_sweep_without_a_report_says_so(server: ServerProcess, running: Sweep) -> None:
    assert "once some of its trials have ended" in complaint(server.run("sweep-report", running.id), 2)
    assert "once some of its trials have ended" in complaint(server.run("sweep-promote", running.id), 2)


def test_a_report_is_told_with_its_baselines_failures_and_notes() -> None:
    told = describe_report(REPORT)
    assert "recommended: method.rho 0.0983 (0.07 to 0.13); gives accuracy 0.9651 (0.961 to 0.969)" in told
    lines = [line.split() for line in told.splitlines()]
    assert ["sgd", "0.931", "0.925", "to", "0.937", "3", "-", "10.5", "100%"] in lines
    assert ["sam", "-", "-", "0", "-", "-", "-"] in lines
    assert ["0.05", "0.95", "0.94", "to", "0.96", "3", "-"] in lines
    assert ["0.4", "-", "-", "3", "2"] in lines
    for sentence in ("From rho 0.2 on", "trial 4 failed: the loss became NaN", "Only one seed was trained."):
        assert sentence in told


def test_a_report_tells_baselines_settings_costs_unit_and_a_populations_schedule() -> None:
    sam = {"mean": 0.95, "interval": None, "n": 1, "seconds": 3.0, "method": {"name": "sam", "rho": 0.05}}
    rows = [{"epoch": 0.0, "values": {"method.rho": 0.02}}, {"epoch": 5.0, "values": {"method.rho": 0.0983}}]
    told = describe_report({**REPORT, "baselines": {"sam": sam}, "schedule": rows}).splitlines()
    assert any(line.startswith("sam, rho 0.05  0.95 ") for line in told)
    assert any("WORKER-SECONDS" in line for line in told)
    assert told[told.index("from epoch 0  method.rho 0.02") + 1] == "from epoch 5  method.rho 0.0983"


def test_a_report_that_recommends_nothing_says_why() -> None:
    told = describe_report({**REPORT, "recommended": None, "why_not": "only 2 trials can be used"})
    assert "nothing is recommended: only 2 trials can be used" in told


def test_choices_are_told_with_their_probabilities() -> None:
    found = {
        "values": {"method.name": "sampa"},
        "mean": 0.9,
        "intervals": {"method.name": [["sampa", 0.9], ["sam", 0.1]]},
    }
    assert "method.name sampa (sampa: 90%, sam: 10%)" in describe_report({**REPORT, "recommended": found})


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        (
            "trial",
            {"number": 3, "state": "QUEUED", "baseline": None, "values": {"method.rho": 0.1}, "seed": 1},
            "trial 3 QUEUED  method.rho 0.1  seed 1",
        ),
        (
            "trial",
            {"number": 0, "state": "SUCCEEDED", "baseline": "sgd", "score": 0.93},
            "trial 0 SUCCEEDED  sgd  score 0.93",
        ),
        ("extend", {"trials": 8, "wall_s": 60.0, "gradients": None}, "trials 8  wall_s 60"),
        ("retry", {"trials": [3, 7]}, "failed trials are trained again: 3, 7"),
    ],
)
def test_the_events_of_a_sweep_are_lines(kind: str, data: dict[str, Any], line: str) -> None:
    event = {"seq": 4, "time": "2026-01-01T00:00:00+00:00", "kind": kind, "data": data}
    assert event_line(event).endswith(line)
