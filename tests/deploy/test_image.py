"""The Dockerfile: what it copies is enough, what it installs is pinned, what it starts is there."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .consistency import image_tag
from .manifests import ALL, DEPLOY, ROOT, manifests, pods, tool

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PINNED = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}


def instructions(name):
    return re.findall(rf"^{name} (.*(?:\\\n.*)*)$", DOCKERFILE, re.MULTILINE)


def installed_extras():
    (line,) = (run for run in instructions("RUN") if "'." in run)
    return set(re.search(r"'\.\[(.*)\]'", line)[1].split(","))


def test_hadolint_finds_nothing():
    done = subprocess.run(
        [tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_hadolint_would_find_something():
    bad = DOCKERFILE.replace("--no-cache-dir ", "", 1).replace("FROM python:${PYTHON}", "FROM python")
    done = subprocess.run([tool("hadolint"), "-"], input=bad, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert {"DL3006", "DL3042"} <= set(re.findall(r"DL\d+", done.stdout))


def test_all_that_is_installed_is_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert installed_extras() <= set(extras)
    for run in (run for run in instructions("RUN") if "pip install" in run):
        assert "--constraint constraints.txt" in run
    todo, seen = [("sampa", frozenset(installed_extras()))], set()
    while todo:
        name, wanted = todo.pop()
        for text in requires(name) or []:
            requirement = Requirement(text)
            applies = [
                requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            ]
            key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
            if any(applies) and key not in seen and not key[0].startswith(("nvidia-", "cuda-", "triton", "setuptools")):
                seen.add(key)
                todo.append(key)
    unpinned = {name for name, _ in seen} - PINNED
    assert unpinned == set(), (
        "what torch brings for CUDA it pins itself; all else but setuptools belongs into constraints.txt"
    )


def test_what_is_copied_is_enough_to_install(tmp_path):
    patterns = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for source, target in (copy.split() for copy in instructions("COPY") if len(copy.split()) == 2):
        assert f"!{source}" in patterns, f"{source} is not sent to the builder"
        here = ROOT / source
        if here.is_dir():
            shutil.copytree(here, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, tmp_path / source)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, tmp_path / "wheel", tmp_path], check=True, capture_output=True, timeout=120)
    assert len(list((tmp_path / "wheel").glob("sampa-*.whl"))) == 1


def test_what_pods_start_is_in_the_image():
    """KubeRay starts bash and ray; no entry point of the image's stands before them."""
    assert not instructions("ENTRYPOINT")
    (command,) = instructions("CMD")
    started = {json.loads(command)[0], "ray", "bash"}
    started |= {container["command"][0] for part in ALL for pod in pods(manifests(part))
                for container in pod.containers if "command" in container}  # fmt: skip
    assert started == {"sampa", "ray", "bash"}
    scripts = Path(sys.executable).parent
    for name in started:
        assert (scripts / name).exists() or shutil.which(name), name
    shown = subprocess.run(
        [scripts / "sampa", "serve", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Run the API" in shown.stdout


def test_it_runs_as_the_user_that_pods_run_as():
    (user,) = instructions("USER")
    users = {pod.spec["securityContext"]["runAsUser"] for part in ALL for pod in pods(manifests(part))
             if pod.kind != "StatefulSet"}  # fmt: skip
    assert user == "1000:1000"
    assert users == {1000}


@pytest.mark.parametrize("path", ["Dockerfile", "README.md", "components/image/kustomization.yaml"])
def test_the_tag_is_the_same_wherever_it_is_said(path):
    said = set(re.findall(r"\d+\.\d+\.\d+-ray\d+\.\d+\.\d+", (DEPLOY / path).read_text()))
    assert said == {image_tag()}
