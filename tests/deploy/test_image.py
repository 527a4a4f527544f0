"""The image: its Dockerfile is followed here without Docker, into a virtual environment of its own.

Where the image has no virtual environment, and another patch release of Python, what pip is told is the same.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

import pytest
from pathspec import PathSpec

from .consistency import image_tag, pinned_ray
from .manifests import ALL, DEPLOY, ROOT, manifests, pods, tool

pytestmark = pytest.mark.timeout(1200)  # some minutes are pip's
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PINNED = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
OF_TORCH = ("nvidia-", "cuda-", "triton")  # what torch brings for CUDA it pins itself
OF_PYTHON = {"pip", "setuptools", "sampa"}
IMPORTED = "sampa.service.runner, sampa.service.sweeps.runner, sampa.workers.loop, sampa.api.serve, psycopg"
NEW_STORE = "from sampa.service.store import Store; store = Store('sqlite:///new.db'); store.migrate(); store.close()"


def steps():
    """Return the instructions of the Dockerfile, in order, as (name, what follows)."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def instructions(name):
    return [rest for one, rest in steps() if one == name]


class Image:
    """What is there after an instruction of the Dockerfile: folders below ``root``, programs, variables."""

    def __init__(self, root):
        self.root, self.where, self.programs = root, root, root / "venv" / "bin"
        self.sent = PathSpec.from_lines("gitignore", anchored((DEPLOY / "Dockerfile.dockerignore").read_text()))
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_", "SAMPA_"))}
        self.variables = mine | {"PATH": f"{self.programs}{os.pathsep}{os.defpath}"}
        venv.create(root / "venv", with_pip=True)

    def follow(self, name, rest):
        """Do what an instruction says; those that need a container are left to one."""
        match name:
            case "ARG":
                self.variables |= dict([rest.replace('"', "").split("=", 1)])
            case "ENV":
                self.variables |= dict(one.split("=", 1) for one in shlex.split(rest))
            case "WORKDIR":
                self.where = self.root / rest.strip("/")
                self.where.mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    self.copy(ROOT / source, self.where / target)
            case "RUN" if "pip " in rest:
                self.run("sh", "-c", rest, timeout=900)

    def copy(self, source, target):
        """Copy what the builder is sent of a file or a folder: a file into a folder, a folder's files as they lie."""
        files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        sent = [path for path in files if not self.sent.match_file(path.relative_to(ROOT))]
        assert sent, f"nothing of {source} is sent to the builder"
        for path in sent:
            to = target / (path.relative_to(source) if source.is_dir() else path.name)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)

    def run(self, *command, timeout=120):
        """Run a command there; return what it says."""
        done = subprocess.run(
            command, cwd=self.where, env=self.variables, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def which(self, name):
        return shutil.which(name, path=self.variables["PATH"])


def anchored(patterns):
    """Return the patterns of a .dockerignore, which are from the root, as a .gitignore says that."""
    return [re.sub(r"^(!?)/?", r"\1/", line) for line in patterns.split()]


@pytest.fixture(scope="module")
def image():
    """The image, as far as pip makes it; a gigabyte, so it is not kept."""
    with tempfile.TemporaryDirectory(prefix="sampa-image-") as folder:
        image = Image(Path(folder))
        for name, rest in steps():
            image.follow(name, rest)
        yield image


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


def test_it_holds_what_it_is_told_to_and_no_more(image):
    """Of what the builder is sent; so what the packages need is all among it."""
    at_work = image.root / "opt" / "sampa"
    assert {path.name for path in at_work.iterdir()} - {"build", "sampa.egg-info"} == {
        *("constraints.txt", "pyproject.toml", "README.md", "workers", "service", "api")
    }
    assert not [*at_work.rglob("__pycache__")]
    assert image.where == image.root / "home" / "sampa"
    assert [*image.where.iterdir()] == [], "what is run there finds no package of ours beside it"


def test_all_that_is_installed_is_pinned(image):
    installed = {one["name"].lower().replace("_", "-"): one["version"].partition("+")[0]
                 for one in json.loads(image.run("pip", "list", "--format", "json"))
                 if not one["name"].lower().startswith(OF_TORCH)}  # fmt: skip
    assert {"torch", "ray", "psycopg", "sampa"} <= installed.keys()
    others = {name: said for name, said in installed.items() if name not in OF_PYTHON}
    assert others.items() <= PINNED.items(), sorted(others.items() - PINNED.items())


def test_ray_is_the_pinned_one(image):
    assert image.run("ray", "--version").strip() == f"ray, version {pinned_ray()}"


def test_what_pods_start_is_in_it(image):
    """KubeRay starts bash and ray; no entry point of the image's stands before them."""
    assert not instructions("ENTRYPOINT")
    (command,) = map(json.loads, instructions("CMD"))
    started = {command[0], "ray", "bash"}
    started |= {container["command"][0] for part in ALL for pod in pods(manifests(part))
                for container in pod.containers if "command" in container}  # fmt: skip
    assert started == {"sampa", "ray", "bash"}
    assert {name: Path(image.which(name)).parent == image.programs for name in started} == {
        **dict.fromkeys(["sampa", "ray"], True),
        "bash": False,
    }
    assert "Run the API" in image.run(*command, "--help")


def test_what_ray_and_the_service_import_is_in_it(image):
    where = image.run("python", "-c", f"import {IMPORTED}; print(sampa.workers.loop.__file__)").strip()
    assert Path(where).is_relative_to(image.root / "venv"), "not this tree's"


def test_presets_and_migrations_are_in_it(image, tmp_path):
    mine = {path.stem for path in (ROOT / "api" / "presets").glob("*.yaml")}
    assert mine
    listed = image.run("sampa", "presets")
    assert {name for name in mine if re.search(rf"\b{re.escape(name)}\b", listed)} == mine
    image.run("sh", "-c", f'cd {tmp_path} && exec python -c "{NEW_STORE}"')
    assert (tmp_path / "new.db").stat().st_size > 0
