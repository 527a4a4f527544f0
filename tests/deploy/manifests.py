"""What kustomize makes of the manifests, and the Ray clusters and pods that the operator would make of that."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (DEPLOY / "components").iterdir())
ALL = ["base", *(f"overlays/{name}" for name in OVERLAYS), *(f"components/{name}" for name in COMPONENTS)]

Manifest = dict[str, Any]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def tool(name: str) -> str:
    """Return the path of a program that is installed beside Python, or in build/tools; skip the test without it."""
    for path in (Path(sys.executable).parent / name, ROOT / "build" / "tools" / name, shutil.which(name)):
        if path and os.access(path, os.X_OK):
            return str(path)
    pytest.skip(f"{name} is missing; make test-deploy installs it")


@functools.cache
def rendered(part: str) -> str:
    """Return what ``kubectl kustomize`` makes of a part in ``ALL``; a component stands on the base alone."""
    if not part.startswith("components/"):
        return kustomized(DEPLOY / part)
    return composed({"resources": ["base"], "components": [part]})


def composed(kustomization: Manifest) -> str:
    """Return what becomes of a kustomization whose resources and components are parts of deploy/."""
    text, said = attempted(kustomization)
    assert not said, said
    return text


def attempted(kustomization: Manifest) -> tuple[str, str]:
    """Return what becomes of a kustomization, and what is said if it becomes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        there = {name: [os.path.relpath(DEPLOY / part, Path(folder).resolve()) for part in kustomization[name]]
                 for name in ("resources", "components") if name in kustomization}  # fmt: skip
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | there))
        done = _kustomize(Path(folder))
    return done.stdout, done.stderr


def kustomized(folder: Path) -> str:
    done = _kustomize(folder)
    assert not done.stderr, done.stderr  # kustomize warns of what it is about to drop
    return done.stdout


def _kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert bool(done.returncode) <= bool(done.stderr)
    return done


def parsed(text: str) -> list[Manifest]:
    return [document for document in yaml.load_all(text, LOADER) if document]


def manifests(part: str) -> list[Manifest]:
    """Return a part's manifests, fresh: a test may change them."""
    return parsed(rendered(part))


def of_kind(documents: list[Manifest], kind: str) -> list[Manifest]:
    return [document for document in documents if document["kind"] == kind]


def the(documents: list[Manifest], kind: str, name: str = "") -> Manifest:
    """Return the one manifest of a kind, or the one whose name begins like this."""
    (found,) = (one for one in of_kind(documents, kind) if one["metadata"].get("name", "").startswith(name))
    return found


def examples() -> dict[str, set[str]]:
    """Return the secrets that the operator of a deployment makes, each with its keys."""
    found = [one for path in sorted(DEPLOY.rglob("secret.example.yaml")) for one in parsed(path.read_text())]
    return {one["metadata"]["name"]: set(one["stringData"]) for one in found}


def with_templates(documents: list[Manifest]) -> list[Manifest]:
    """Return the manifests and those that the API starts jobs from, which lie as text in a ConfigMap."""
    texts = [text for one in of_kind(documents, "ConfigMap") for name, text in one.get("data", {}).items()
             if name == "rayjob.yaml"]  # fmt: skip
    templates = [copy.deepcopy(_template(text)) for text in texts]
    for template in templates:
        template["metadata"].setdefault("name", "sampa-template")  # the API gives each job's its own
        template["metadata"].setdefault("namespace", "sampa")
        template["spec"].setdefault("entrypoint", "true")
    return [*documents, *templates]


@functools.cache
def _template(text: str) -> Manifest:
    template: Manifest = yaml.load(text, LOADER)
    return template


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: one that is asked for, or one that the operator makes for a job."""

    where: str
    spec: Manifest

    def groups(self) -> list[tuple[str, Manifest]]:
        """Return the head's group and those of workers, by their names."""
        workers = [(group["groupName"], group) for group in self.spec.get("workerGroupSpecs", [])]
        return [("headgroup", self.spec["headGroupSpec"]), *workers]


def clusters(documents: list[Manifest]) -> list[Cluster]:
    paths = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}
    paths["RayCronJob"] = ("spec", "jobTemplate", "rayClusterSpec")
    found = []
    for one in with_templates(documents):
        if one["kind"] in paths:
            spec = functools.reduce(lambda value, key: value[key], paths[one["kind"]], one)
            found.append(Cluster(f"{one['kind']} {one['metadata']['name']}", spec))
    return found


@dataclass(frozen=True)
class Pod:
    """A pod template, with the labels that its pods will have."""

    where: str
    kind: str
    labels: dict[str, str]
    template: Manifest
    group: Manifest | None = None

    @property
    def spec(self) -> Manifest:
        return self.template["spec"]

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(documents: list[Manifest]) -> Iterator[Pod]:
    """Yield the pod templates of the manifests, and those of the Ray clusters as the operator labels them."""
    for one in documents:
        if one["kind"] in ("Deployment", "StatefulSet"):
            template = one["spec"]["template"]
            yield Pod(f"{one['kind']} {one['metadata']['name']}", one["kind"], template["metadata"]["labels"], template)
    for cluster in clusters(documents):
        for name, group in cluster.groups():
            kind = "head" if name == "headgroup" else "worker"
            labels = dict(group["template"].get("metadata", {}).get("labels", {}))
            labels |= {"ray.io/node-type": kind, "ray.io/group": name, "ray.io/is-ray-node": "yes"}
            labels |= {"ray.io/cluster": cluster.where.split()[1], "app.kubernetes.io/name": "kuberay"}
            yield Pod(f"{cluster.where} {name}", kind, labels, group["template"], group)


def variables(container: Manifest) -> dict[str, Any]:
    """Return the variables that a container is given by name, each with its value or where that is from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}
