"""What an API server would refuse: strictly by the CRDs' schemas with their CEL rules, and by the core schemas."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .manifests import ROOT, Manifest, pods, with_templates

CRDS = Path(os.environ.get("SAMPA_KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
KUBERNETES = ("1.30", "1.37")  # the oldest one that is promised, and the newest
WITHOUT_SCHEMA = {  # of other projects, each with the fields that its spec must have
    "monitoring.coreos.com/v1 PodMonitor": {"selector", "podMetricsEndpoints"},
    "monitoring.coreos.com/v1 PrometheusRule": {"groups"},
    "gateway.networking.k8s.io/v1 HTTPRoute": {"parentRefs", "hostnames", "rules"},
    "kueue.x-k8s.io/v1beta1 LocalQueue": {"clusterQueue"},
    "argoproj.io/v1alpha1 Application": {"project", "source", "destination"},
}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


def schema_faults(documents: list[Manifest]) -> list[str]:
    """Return what is wrong with the manifests by themselves, the templates of jobs and all pods in them included."""
    faults = []
    for one in with_templates(documents):
        where = f"{one['kind']} {one['metadata'].get('name')}"
        faults += [f"{where}{fault}" for fault in (*_name_faults(one), *_faults_of(one))]
    for pod in pods(documents):
        if pod.group is not None:  # those of core kinds are part of what is checked above
            wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wrapped"}, "spec": pod.spec}
            faults += [f"{pod.where}{fault}" for fault in _core_faults(json.dumps(wrapped, sort_keys=True))]
    return faults


def _faults_of(one: Manifest) -> Iterator[str]:
    kind = f"{one['apiVersion']} {one['kind']}"
    if one["apiVersion"].startswith("ray.io/"):
        yield from crd_faults(one)
    elif kind in WITHOUT_SCHEMA:
        yield from (f".spec.{field}: required" for field in WITHOUT_SCHEMA[kind] - set(one["spec"]))
    else:
        yield from _core_faults(json.dumps(one, sort_keys=True))


def _name_faults(one: Manifest) -> Iterator[str]:
    metadata = one["metadata"]
    if not NAME.fullmatch(metadata.get("name", "")) or len(metadata["name"]) > 63:
        yield ".metadata.name: not a name of Kubernetes"
    for key, value in (metadata.get("labels") or {}).items():
        if not LABEL.fullmatch(str(value)) or len(str(value)) > 63:
            yield f".metadata.labels.{key}: {value!r} is no label"


@functools.cache
def _core_faults(text: str) -> tuple[str, ...]:
    """Return what the schemas of Kubernetes say to a manifest, in JSON since it is asked for again and again."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate: make test-deploy installs it")
    found = []
    for version in KUBERNETES:
        try:
            validate.validate(json.loads(text), version, strict=True)
        except validate.SchemaNotFoundError:
            found.append(f": Kubernetes {version} has no such kind")
        except validate.ValidationError as error:
            found.append(f".{'.'.join(str(part) for part in error.path)}: {error.message} (Kubernetes {version})")
    return tuple(found)


@functools.cache
def crds() -> dict[tuple[str, str], Manifest]:
    """Return the schemas of KubeRay's kinds; skip the test where they are not to be had."""
    if not CRDS.is_dir():
        pytest.skip(f"the CRDs of KubeRay are not at {CRDS}; SAMPA_KUBERAY_CRDS says where else")
    found = {}
    for path in sorted(CRDS.glob("*.json")):
        spec = json.loads(path.read_text())["spec"]
        for version in spec["versions"]:
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    return found


def crd_faults(one: Manifest) -> list[str]:
    """Return what the API server would say to a resource of KubeRay, asked to be strict."""
    schema = crds().get((one["apiVersion"], one["kind"]))
    if schema is None:
        return [f": no CRD serves {one['apiVersion']}"]
    return list(_against(one, schema, "", top=True))


TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _against(value: Any, schema: Manifest, path: str, *, top: bool = False) -> Iterator[str]:
    if value is None:  # the server drops it; whether it is required is seen from above
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not (_is(value, "integer") or isinstance(value, str)):
            yield f"{path}: must be a whole number or a string"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} is no quantity"
        return
    kind = schema.get("type")
    if kind and not _is(value, kind):
        yield f"{path}: must be {kind}, is {type(value).__name__}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    yield from _against_scalar(value, schema, path)
    if isinstance(value, list):
        yield from _against_list(value, schema, path)
    if isinstance(value, dict):
        yield from _against_map(value, schema, path, top=top)
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):  # the others are about changes
            yield f"{path}: {rule.get('message', rule['rule'])}"


def _against_scalar(value: Any, schema: Manifest, path: str) -> Iterator[str]:
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} doesn't match {schema['pattern']}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{path}: too short or too long"
    elif _is(value, "number"):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{path}: {value} is out of range"
        if schema.get("format") == "int32" and not -(2**31) <= value < 2**31:
            yield f"{path}: {value} is no int32"


def _against_list(value: list[Any], schema: Manifest, path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{path}: too few or too many items"
    for number, item in enumerate(value):
        yield from _against(item, schema.get("items", {}), f"{path}[{number}]")
    keys = schema.get("x-kubernetes-list-map-keys") if schema.get("x-kubernetes-list-type") == "map" else None
    if keys:
        fields = schema["items"].get("properties", {})
        seen = [tuple(item.get(key, fields.get(key, {}).get("default")) for key in keys) for item in value]
        yield from (f"{path}[{number}]: a second {one}" for number, one in enumerate(seen) if one in seen[:number])


def _against_map(value: Manifest, schema: Manifest, path: str, *, top: bool) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", []):
        if value.get(name) is None and "default" not in fields.get(name, {}):
            yield f"{path}.{name}: required"
    for name, item in value.items():
        if top and name in ("apiVersion", "kind", "metadata"):
            continue
        if name in fields:
            yield from _against(item, fields[name], f"{path}.{name}")
        elif isinstance(others, dict):
            yield from _against(item, others, f"{path}.{name}")
        elif not (schema.get("x-kubernetes-preserve-unknown-fields") or others is True):
            yield f"{path}.{name}: unknown field"


def _holds(rule: str, value: Any) -> bool:
    celpy = pytest.importorskip("celpy", reason="cel-python: make test-deploy installs it")
    from celpy.adapter import json_to_cel

    return bool(_program(celpy, rule).evaluate({"self": json_to_cel(value)}))


@functools.cache
def _program(celpy: Any, rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
