"""The README: every command in it is run, every file in it is what is used, every link leads somewhere."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sampa.service.specs import JobSpec
from sampa.service.sweeps.spec import SweepSpec
from sampa.workers.models.choice import BUILT_IN as NETWORKS
from sampa.workers.models.choice import ModelChoice
from sampa.workers.tasks import BUILT_IN

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands():
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


def test_the_two_commands_at_the_top_are_targets():
    makes = re.findall(r"^    (make \w+)", TEXT, re.MULTILINE)
    assert makes == ["make demo", "make test"]
    for make in makes:
        subprocess.run([*make.split(), "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_what_else_a_job_can_ask_for_is_taken():
    job, more = (yaml.safe_load(block) for block in blocks("yaml")[:2])
    assert JobSpec.model_validate(job | more).optimizer.groups[0].lr_factor == 10


def test_every_built_in_task_network_and_parameter_is_named():
    section = TEXT.partition("## Tasks, networks")[2].partition("\n## ")[0]
    rows = {line.split("|")[1]: line for line in section.splitlines() if line.startswith("| `")}
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(BUILT_IN)
    for task in ("digits", "mnist5k", "cifar10", "image_folder"):
        (row,) = (line for cell, line in rows.items() if f"`{task}`" in cell)
        own = set(BUILT_IN[task].Params.model_fields) - set(ModelChoice.model_fields)
        assert own <= set(re.findall(r"`(\w+)`", row)), task
    choices = re.search(r"take a `model`: (.*?), or\n", TEXT, re.DOTALL)[1]
    assert set(re.findall(r"`(.+?)`", choices)) == set(NETWORKS)


def test_the_sweep_is_one():
    (given,) = (yaml.safe_load(block) for block in blocks("yaml") if block.startswith("name: rho"))
    assert SweepSpec.model_validate(given).trial_count == 54


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_every_command_works_as_written(tmp_path):
    (tmp_path / "digits.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_module.py").write_text(next(block for block in blocks("python") if "def build" in block))
    own = blocks("yaml")[0].replace("entrypoint: digits ", 'entrypoint: "my_module:build" ')
    own = own.replace("{label_noise: 0.4}", "{width: 32}")
    assert own != blocks("yaml")[0]
    (tmp_path / "own.yaml").write_text(own)
    environment = os.environ | {
        "SAMPA_STATE_DIR": str(tmp_path / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    todo = commands()
    assert todo.pop(0) == "sampa serve"
    serve = ["sampa", "serve", "--port", "0"]
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(serve, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        environment |= wait_for_server(tmp_path / "state", server)
        job_id = ""
        while todo:
            command = re.sub(r"\bID\b", job_id, todo.pop(0))
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=150,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert done.stdout or done.stderr, command
            if command.startswith("sampa submit"):
                job_id = re.search(r"job (\w+)", done.stdout)[1]
            if all(rest.startswith(("sampa train", "sampa drill", "sampa presets")) for rest in todo):
                end(server)  # what follows needs no service, and one Ray at a time is enough
    finally:
        end(server)
    assert (tmp_path / "model" / "model.safetensors").exists()
    for run in ("run", "own-run"):
        assert {"result.json", "model.safetensors", "events.jsonl"} <= {
            path.name for path in (tmp_path / run).iterdir()
        }


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
