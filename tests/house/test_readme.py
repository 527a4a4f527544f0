"""The README: every command in it is run, every file in it is what is used, every link leads somewhere."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from sampa.api.cli_sweeps import COMMANDS
from sampa.service.settings import ServiceSettings, variable_of
from sampa.service.specs import JobSpec
from sampa.service.states import TRIAL_MOVES
from sampa.service.sweeps.schedulers import AnyScheduler
from sampa.service.sweeps.space import Domain
from sampa.service.sweeps.spec import SweepSpec
from sampa.workers.models.choice import BUILT_IN as NETWORKS
from sampa.workers.models.choice import ModelChoice
from sampa.workers.tasks import BUILT_IN

from ..api.test_metrics import NAMES as METRICS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def section(title):
    return TEXT.partition(f"\n## {title}")[2].partition("\n## ")[0]


def commands(text):
    found = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in found for line in block.splitlines() if line.startswith("$ ")]


def test_the_two_commands_at_the_top_are_targets():
    makes = re.findall(r"^    (make \w+)", TEXT, re.MULTILINE)
    assert makes == ["make demo", "make test"]
    for make in makes:
        subprocess.run([*make.split(), "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_what_else_a_job_can_ask_for_is_taken():
    job, more = (yaml.safe_load(block) for block in (blocks("yaml")[0], blocks("yaml")[2]))
    assert JobSpec.model_validate(job | more).optimizer.groups[0].lr_factor == 10


def test_the_sweep_is_one_and_names_what_else_it_can_ask_for():
    text = blocks("yaml")[1]
    spec = SweepSpec.model_validate(yaml.safe_load(text))
    assert spec.trial_count == 10
    kinds = re.search(r"by field path: (.*)", text)[1]
    assert re.findall(r"\w+", kinds.replace(" or ", " ")) == list(Domain.model_fields)
    search, scheduler = (re.search(rf"^{name}:.*", text, re.MULTILINE)[0] for name in ("search", "scheduler"))
    assert set(get_args(SweepSpec.model_fields["search"].annotation)) <= set(re.findall(r"\w+", search))
    schedulers = {model.model_fields["name"].default for model in get_args(get_args(AnyScheduler)[0])}
    assert schedulers <= set(re.findall(r"\w+", scheduler))


def test_every_command_of_sweeps_and_every_state_of_a_trial_is_named():
    words = set(re.findall(r"\$ sampa ([\w-]+)", section("Sweeps")))
    assert words == set(COMMANDS)
    assert set(TRIAL_MOVES) <= set(re.findall(r"`([A-Z]+)`", section("Sweeps")))


def test_every_built_in_task_network_and_parameter_is_named():
    lines = section("Tasks, networks").splitlines()
    rows = {line.split("|")[1]: line for line in lines if line.startswith("| `")}
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(BUILT_IN)
    for task in ("digits", "mnist5k", "cifar10", "image_folder"):
        (row,) = (line for cell, line in rows.items() if f"`{task}`" in cell)
        own = set(BUILT_IN[task].Params.model_fields) - set(ModelChoice.model_fields)
        assert own <= set(re.findall(r"`(\w+)`", row)), task
    choices = re.search(r"take a `model`: (.*?), or\n", TEXT, re.DOTALL)[1]
    assert set(re.findall(r"`(.+?)`", choices)) == set(NETWORKS)


def test_the_settings_are_those_of_the_service():
    def default(field):
        if field.default is None or field.default_factory is not None:
            return " "
        value = field.default
        shown = value.model_dump_json() if isinstance(value, BaseModel) else value
        return f" `{shown:g}` " if isinstance(shown, float) else f" `{shown}` "

    rows = [line for line in section("Settings of the server").splitlines() if line.startswith("| `SAMPA_")]
    assert rows == [
        f"| `{variable_of(name)}` |{default(field)}| {field.description} |"
        for name, field in ServiceSettings.model_fields.items()
    ]


def test_the_metrics_are_those_that_there_are():
    rows = [line for line in section("Settings of the server").splitlines() if line.startswith("| `sampa_")]
    named = {name for row in rows for name in re.findall(r"`(sampa_\w+)`", row.split("|")[1])}
    assert {name.removesuffix("_total") for name in named} == METRICS


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(400)
def test_every_command_works_as_written(tmp_path):
    of_sweeps = commands(section("Sweeps"))
    work_through([one for one in commands(TEXT) if one not in of_sweeps], tmp_path)
    assert (tmp_path / "model" / "model.safetensors").exists()
    for run in ("run", "own-run"):
        assert {"result.json", "model.safetensors", "events.jsonl"} <= {
            path.name for path in (tmp_path / run).iterdir()
        }


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_command_of_sweeps_works_as_written(tmp_path):
    work_through(["sampa serve", *commands(section("Sweeps"))], tmp_path)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.png"}


def work_through(todo, folder):
    """Run one command after the other, each in the folder where the README's files are."""
    (folder / "digits.yaml").write_text(blocks("yaml")[0])
    (folder / "rho.yaml").write_text(blocks("yaml")[1])
    (folder / "code").mkdir()
    (folder / "code" / "my_module.py").write_text(next(block for block in blocks("python") if "def build" in block))
    own = blocks("yaml")[0].replace("entrypoint: digits ", 'entrypoint: "my_module:build" ')
    own = own.replace("{label_noise: 0.4}", "{width: 32}")
    assert own != blocks("yaml")[0]
    (folder / "own.yaml").write_text(own)
    environment = os.environ | {
        "SAMPA_STATE_DIR": str(folder / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    assert todo.pop(0) == "sampa serve"
    serve = ["sampa", "serve", "--port", "0"]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(serve, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        environment |= wait_for_server(folder / "state", server)
        some_id = ""
        while todo:
            command = re.sub(r"\bID\b", some_id, todo.pop(0))
            done = subprocess.run(
                command,
                shell=True,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=150,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert done.stdout or done.stderr, command
            if command.startswith(("sampa submit", "sampa sweep ")):
                some_id = re.search(r"(?:job|sweep) (\w+)", done.stdout)[1]
            if all(rest.startswith(("sampa train", "sampa drill", "sampa presets")) for rest in todo):
                end(server)  # what follows needs no service, and one Ray at a time is enough
    finally:
        end(server)


def wait_for_server(state, server):
    import json

    deadline = time.monotonic() + 60
    while not (state / "server.json").exists():
        assert server.poll() is None, "sampa serve ended"
        assert time.monotonic() < deadline, "sampa serve did not come up"
        time.sleep(0.1)
    return {
        "SAMPA_URL": json.loads((state / "server.json").read_text())["url"],
        "SAMPA_TOKEN": (state / "token").read_text().strip(),
    }


def end(server):
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
