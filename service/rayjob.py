"""A RayJob: how one is made from the template of a deployment, and what its status means.

It runs one attempt at a job on a Ray cluster of its own. Written for KubeRay 1.7, whose operator refuses some of what
Kubernetes would take, so the template is looked at before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .kube import API_VERSION
from .launcher import HOPELESS, NOT_IN_PLACE, OVER, first_reason
from .settings import BUNDLE_VARIABLE, STARTED_TWICE, STORE_URL_VARIABLE

LONGEST_NAME = 47  # KubeRay adds 6 characters for the cluster, and 10 for its services, to a label of at most 63
JOB_LABEL, ATTEMPT_LABEL = "sampa/job", "sampa/attempt"
LABELS = {"app.kubernetes.io/managed-by": "sampa"}
FILLED_IN = ("entrypoint", "jobId", "runtimeEnvYAML")  # for each attempt
LOCAL_VOLUMES = frozenset({"emptyDir", "hostPath", "configMap", "secret", "projected", "downwardAPI", "ephemeral"})
_STARTED_TWICE = re.compile(rf"failed with exit code {STARTED_TWICE}\b")
_NOT_IN_PLACE = re.compile(r"^\s*runtime_env setup failed", re.IGNORECASE)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 10 times as fast, where it is there
_ENDS = {"Failed": "FAILED", "ValidationFailed": HOPELESS, "Complete": "STOPPED"}  # where Ray told no end of the job
_DEADLINES = {
    "DeadlineExceeded": "raise activeDeadlineSeconds in the RayJob template",
    "PreRunningDeadlineExceeded": (
        "look at the quota of the namespace and at the nodes that its pods ask for, or raise preRunningDeadlineSeconds "
        "in the RayJob template"
    ),
}
"""The reasons of KubeRay 1.7 by which a deadline ends a RayJob, and what to do."""

_PASSING = frozenset({"HeadPodNotFound", "Unknown"})  # what KubeRay says of each head that it is about to make

Resource = dict[str, Any]


class TemplateRefused(ValueError):
    """What is wrong with the template, in one sentence."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"the RayJob template {path} {why}")

    def __reduce__(self) -> tuple[type[TemplateRefused], tuple[Path, str]]:
        return type(self), (self.path, self.why)


def read_template(path: Path) -> Resource:
    """Return the RayJob in a YAML file.

    Raises:
        TemplateRefused: If it can't be read, or KubeRay or we couldn't use it.
    """
    try:
        template = yaml.load(path.read_text(), _LOADER)
    except OSError as error:
        raise TemplateRefused(path, f"can't be read ({error.strerror}); mount the ConfigMap that has it") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise TemplateRefused(path, f"is no YAML ({' '.join(str(error).split())}); mend it") from error
    for why in _faults(template):
        raise TemplateRefused(path, why)
    return dict(template)


def _faults(template: Any) -> Iterator[str]:
    """Yield what is wrong with a template, the gravest first."""
    if not isinstance(template, Mapping) or (template.get("apiVersion"), template.get("kind")) != (
        API_VERSION,
        "RayJob",
    ):
        yield f"is no RayJob of {API_VERSION}; give one"
        return
    spec = template.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    if spec.get("submissionMode") != "HTTPMode":
        yield "needs submissionMode: HTTPMode, with which KubeRay hands the runner to Ray without a pod for that"
    for name in FILLED_IN:
        if name in spec:
            yield f"has {name}, which is filled in for each attempt; remove it"
    if spec.get("clusterSelector") or not cluster.get("headGroupSpec"):
        yield "needs a rayClusterSpec with a headGroupSpec, and no clusterSelector: each attempt has its own cluster"
        return
    if spec.get("backoffLimit"):
        yield "has a backoffLimit; leave it out, since the API itself starts a vanished runner again"
    yield from _deletion_faults(spec)
    yield from _container_faults(cluster)


def _deletion_faults(spec: Mapping[str, Any]) -> Iterator[str]:
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules") or []
    if spec.get("shutdownAfterJobFinishes"):
        if rules:
            yield "has both deletionRules and shutdownAfterJobFinishes, which KubeRay refuses; keep the rules"
        return
    ends = {"jobStatus": {"SUCCEEDED"}, "jobDeploymentStatus": {"Failed"}}
    for rule in rules:
        policy = rule.get("policy")
        if policy is None:
            yield "has a deletionRule without a policy, which KubeRay needs; use DeleteCluster or DeleteSelf"
        for name, left in ends.items():
            if policy in ("DeleteCluster", "DeleteSelf"):
                left.discard((rule.get("condition") or {}).get(name))
        if policy == "DeleteWorkers" and spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "has a deletionRule DeleteWorkers, which KubeRay refuses with autoscaling; use DeleteCluster"
    for name, left in ends.items():
        for value in left:
            yield (
                f"leaves clusters behind: add a deletionRule DeleteCluster with the condition {name}: {value}"
                + (", which deadlines lead to, too" if value == "Failed" else "")
            )


def _container_faults(cluster: Mapping[str, Any]) -> Iterator[str]:
    for name, group in _groups(cluster):
        if not _containers(group):
            yield f"has no container in the {name}; add one with the image to run"
        if "replicas" in group:
            yield f"has replicas in the {name}; leave it out, since it is the autoscaler's"
        yield from _nameless(name, group)
    head = (_containers(cluster["headGroupSpec"]) or [{}])[0]
    whole = any("secretRef" in one for one in head.get("envFrom") or [])
    if not whole and STORE_URL_VARIABLE not in _from_secrets(cluster):
        yield f"doesn't give {STORE_URL_VARIABLE} to the head's container; take it from a Secret there, by secretKeyRef"


def _nameless(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    """Yield what lacks a field, in the parts of a group that we read, without which Kubernetes takes no pod."""
    container = (_containers(group) or [{}])[0]
    pod = (group.get("template") or {}).get("spec") or {}
    needed = {"env": ("name",), "volumeMounts": ("name", "mountPath")}
    parts = [(part, container, fields) for part, fields in needed.items()] + [("volumes", pod, ("name",))]
    for part, owner, fields in parts:
        for field in fields:
            if any(field not in one for one in owner.get(part) or []):
                yield f"has {part} without {field} in the {name}; add it"


def _from_secrets(cluster: Mapping[str, Any]) -> set[str]:
    """Return the variables that the head's container has from keys of Secrets."""
    env = [one for container in _containers(cluster["headGroupSpec"])[:1] for one in container.get("env") or []]
    return {one["name"] for one in env if "secretKeyRef" in (one.get("valueFrom") or {})}


def why_not_shared(template: Mapping[str, Any], directory: Path) -> str:
    """Return why the pods of a template don't share a directory, as far as it tells; empty if they do."""
    of_head = None
    for name, group in _groups(template["spec"]["rayClusterSpec"]):
        volume = _volume(group, directory)
        of_head = of_head or volume
        if volume is None:
            return f"the {name} of the RayJob template mounts nothing at {directory}, or a part of it"
        local = [*(LOCAL_VOLUMES & volume.keys())]
        if local:
            return f"the {name} of the RayJob template has {local[0]} at {directory}, which only one node sees"
        if volume != of_head:
            return f"the {name} of the RayJob template has another volume at {directory} than the head"
    return ""


def _volume(group: Mapping[str, Any], directory: Path) -> dict[str, Any] | None:
    """Return the volume that a directory lies on in the Ray container of a group, without its name."""
    containers = _containers(group)
    mounts = (containers[0].get("volumeMounts") or []) if containers else []
    above = [one for one in mounts if PurePosixPath(directory).is_relative_to(one["mountPath"])]
    if not above:
        return None
    mount = max(above, key=lambda one: len(PurePosixPath(one["mountPath"]).parts))
    volumes = group["template"]["spec"].get("volumes") or []
    volume: dict[str, Any] = next((one for one in volumes if one["name"] == mount["name"]), {"emptyDir": {}})
    where = {key: value for key, value in mount.items() if key in ("mountPath", "subPath")}
    return {key: value for key, value in volume.items() if key != "name"} | where


def _groups(cluster: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "head", cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs") or []:
        yield f"group {group.get('groupName')}", group


def _containers(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ((group.get("template") or {}).get("spec") or {}).get("containers") or []
    return found


def name_of(submission_id: str) -> str:
    """Return the name of the RayJob of an attempt: its id, which must be fit for a label of DNS."""
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", submission_id), submission_id
    assert len(submission_id) <= LONGEST_NAME, submission_id
    return submission_id


def place_of(submission_id: str) -> tuple[str, int]:
    """Return the job's id and the number of the attempt."""
    job_id, _, attempt = submission_id.removeprefix("sampa-").rpartition("-")
    return job_id, int(attempt)


def resource_of(
    template: Mapping[str, Any],
    submission_id: str,
    entrypoint: str,
    env: Mapping[str, str],
    bundle: str = "",
    pip: Sequence[str] = (),
) -> Resource:
    """Return the RayJob of one attempt.

    More people may read it than a Secret, so what the head's container has from one is not in it, nor the store's URL.

    Args:
        template: From ``read_template``.
        submission_id: Of the attempt.
        entrypoint: The runner's command.
        env: Variables of its environment, and of all actors that it starts.
        bundle: SHA-256 of the code that the runner is to take out of the store.
        pip: Requirements that are installed for it and for them.
    """
    job_id, attempt = place_of(submission_id)
    made = deepcopy(dict(template))
    given = made.get("metadata") or {}
    labels = {**(given.get("labels") or {}), **LABELS, JOB_LABEL: job_id, ATTEMPT_LABEL: str(attempt)}
    made["metadata"] = {"name": name_of(submission_id), "labels": labels}
    if given.get("annotations"):
        made["metadata"]["annotations"] = given["annotations"]
    secret = {STORE_URL_VARIABLE} | _from_secrets(made["spec"]["rayClusterSpec"])
    runtime_env = {
        "env_vars": {
            **{name: value for name, value in env.items() if name not in secret},
            **({BUNDLE_VARIABLE: bundle} if bundle else {}),
        },
        **({"pip": {"packages": [*pip], "pip_check": False}} if pip else {}),
    }
    # JSON is YAML in which nothing is taken for a number or a truth value that isn't one
    made["spec"] |= {"entrypoint": entrypoint, "jobId": submission_id, "runtimeEnvYAML": json.dumps(runtime_env)}
    made.pop("status", None)
    return made


def phase(status: Mapping[str, Any]) -> str | None:
    """Return PENDING, RUNNING or one of ``OVER``, as Ray's Jobs API would say it; None when the cluster was lost.

    A deadline, or a spec that KubeRay refuses, would be the end of each further attempt too.
    """
    job, deployment = status.get("jobStatus") or "", status.get("jobDeploymentStatus") or ""
    if job == "FAILED" and _STARTED_TWICE.search(status.get("message") or ""):
        return None
    if deployment == "Retrying":  # after a failure, with a backoffLimit
        return "PENDING"
    late = deployment == "Failed" and status.get("reason") in _DEADLINES  # the runner itself may still be there
    if late and job != "SUCCEEDED":
        return HOPELESS
    if job in OVER:
        return str(job)
    if deployment in _ENDS:
        return _ENDS[deployment]
    return "RUNNING" if (job, deployment) == ("RUNNING", "Running") else "PENDING"


def why_failed(name: str, status: Mapping[str, Any]) -> str:
    """Return why a RayJob has failed, in one sentence without its end; empty if it hasn't."""
    if phase(status) not in ("FAILED", HOPELESS):
        return ""
    message = str(status.get("message") or "")
    if _NOT_IN_PLACE.match(message):
        return f"{NOT_IN_PLACE}: {first_reason(message)}"
    why = status.get("reason") or "without a reason"
    advice = f"; {_DEADLINES[why]}" if why in _DEADLINES else ""
    return f"its RayJob {name} failed ({why}): {first_reason(message)}{advice}"


def why_pending(name: str, status: Mapping[str, Any]) -> str:
    """Return what a RayJob waits for, in one sentence without its end, as far as KubeRay tells; empty if it doesn't."""
    if phase(status) != "PENDING":
        return ""
    if status.get("jobDeploymentStatus") == "Suspended":
        return f"its RayJob {name} is suspended; a queue, as Kueue is one, has not let it begin yet"
    conditions = (status.get("rayClusterStatus") or {}).get("conditions") or []
    bad = {(one.get("type"), one.get("status")): one for one in conditions if one.get("reason") not in _PASSING}
    found = bad.get(("ReplicaFailure", "True")) or bad.get(("HeadPodReady", "False")) or {}
    said = [part for part in (found.get("reason"), found.get("message") or status.get("message")) if part]
    return f"its RayJob {name} waits for its cluster ({': '.join(_line(part) for part in said)})" if said else ""


def _line(text: str) -> str:
    return " ".join(str(text).split())
