"""RayJobs: what is made of the template that is deployed, which templates are refused, and what a status means."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sampa.service.launcher import HOPELESS, NOT_IN_PLACE
from sampa.service.rayjob import (
    TemplateRefused,
    phase,
    read_template,
    resource_of,
    why_failed,
    why_not_shared,
    why_pending,
)

from ..fake_kube import deployed

TEMPLATE = deployed("RayJob")
SCHEMA = Path(__file__).parents[3] / "shared" / "kuberay-crds" / "rayjobs.json"
STATE = Path("/var/lib/sampa")
ENV = {"SAMPA_STATE_DIR": "/var/lib/sampa", "SAMPA_STORE_URL": "postgresql://u:secret@db/x", "SAMPA_ATTEMPT": "3"}

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def template() -> dict[str, Any]:
    return read_template(TEMPLATE)


def group(spec: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return spec["rayClusterSpec"]["workerGroupSpecs"][number]


def head(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


class TestMaking:
    def test_the_template_is_filled_in_and_stays_as_it_is(self, template: dict[str, Any]) -> None:
        before = copy.deepcopy(template)
        made = resource_of(template, "sampa-0123456789ab-3", "exec python -m x", ENV, "ab" * 32, ["einops==0.8.1"])
        assert template == before
        assert made["metadata"] == {
            "name": "sampa-0123456789ab-3",
            "labels": {
                "app.kubernetes.io/part-of": "sampa",
                "app.kubernetes.io/managed-by": "sampa",
                "sampa/job": "0123456789ab",
                "sampa/attempt": "3",
            },
        }
        filled = {name: made["spec"].pop(name) for name in ("entrypoint", "jobId", "runtimeEnvYAML")}
        assert made["spec"] == template["spec"]
        assert (filled["entrypoint"], filled["jobId"]) == ("exec python -m x", "sampa-0123456789ab-3")
        env = {"SAMPA_STATE_DIR": "/var/lib/sampa", "SAMPA_ATTEMPT": "3", "SAMPA_BUNDLE": "ab" * 32}
        packages = {"packages": ["einops==0.8.1"], "pip_check": False}
        assert yaml.safe_load(filled["runtimeEnvYAML"]) == {"env_vars": env, "pip": packages}

    def test_no_secret_is_in_it(self, template: dict[str, Any]) -> None:
        assert "secret@db" not in json.dumps(resource_of(template, "sampa-0123456789ab-3", "true", ENV))

    def test_what_the_head_has_from_a_secret_is_left_to_that(self, template: dict[str, Any]) -> None:
        key = {"valueFrom": {"secretKeyRef": {"name": "sampa-s3", "key": "address"}}}
        head(template["spec"])["env"] += [{"name": "SAMPA_STORAGE", **key}, {"name": "SAMPA_ATTEMPT", "value": "9"}]
        env = {**ENV, "SAMPA_STORAGE": "s3://key:word@bucket/prefix"}
        made = json.loads(resource_of(template, "sampa-0123456789ab-3", "true", env)["spec"]["runtimeEnvYAML"])
        assert made == {"env_vars": {"SAMPA_STATE_DIR": "/var/lib/sampa", "SAMPA_ATTEMPT": "3"}}

    def test_a_name_has_room_for_what_kuberay_adds(self, template: dict[str, Any]) -> None:
        longest = resource_of(template, f"sampa-0123456789ab-{10**20}", "true", {})["metadata"]["name"]
        assert len(longest) < 47

    def test_it_is_one_by_kuberays_own_schema(self, template: dict[str, Any]) -> None:
        if not SCHEMA.exists():
            pytest.skip(f"there is no {SCHEMA}")
        schema = json.loads(SCHEMA.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        made = resource_of(template, "sampa-0123456789ab-3", "true", ENV, "ab" * 32, ["einops"])
        assert list(unknown(made["spec"], schema["properties"]["spec"], "spec")) == []
        made["spec"]["rayClusterSpec"]["headGroupSpec"]["tempalte"] = {}
        assert list(unknown(made["spec"], schema["properties"]["spec"], "spec")) == [
            "spec.rayClusterSpec.headGroupSpec.tempalte"
        ]


def unknown(value: Any, schema: dict[str, Any], path: str) -> Any:
    """Yield the fields that a schema doesn't have, and values of another type; the strict check is that of deploy/."""
    types = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    if not schema.get("x-kubernetes-int-or-string") and not isinstance(value, types.get(schema.get("type"), object)):
        yield f"{path} is {value!r}"
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from unknown(one, schema["items"], f"{path}.{number}")
    elif isinstance(value, dict):
        for name, one in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if inner is None:
                yield f"{path}.{name}"
            else:
                yield from unknown(one, inner, f"{path}.{name}")


class TestTemplates:
    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda spec: spec.update(submissionMode="K8sJobMode"), "needs submissionMode: HTTPMode"),
            (lambda spec: spec.pop("submissionMode"), "needs submissionMode: HTTPMode"),
            (lambda spec: spec.update(entrypoint="true"), "has entrypoint, which is filled in for each attempt"),
            (lambda spec: spec.update(runtimeEnvYAML="{}"), "has runtimeEnvYAML, which is filled in"),
            (lambda spec: spec.update(clusterSelector={"ray.io/cluster": "x"}), "no clusterSelector"),
            (lambda spec: spec.pop("rayClusterSpec"), "needs a rayClusterSpec with a headGroupSpec"),
            (lambda spec: spec.update(backoffLimit=2), "has a backoffLimit; leave it out"),
            (lambda spec: spec.update(shutdownAfterJobFinishes=True), "has both deletionRules and shutdownAfterJob"),
            (lambda spec: spec.pop("deletionStrategy"), "leaves clusters behind: add a deletionRule DeleteCluster"),
            (
                lambda spec: spec["deletionStrategy"].update(
                    deletionRules=[one for one in rules(spec) if "jobStatus" in one["condition"]]
                ),
                "condition jobDeploymentStatus: Failed, which deadlines lead to, too",
            ),
            (
                lambda spec: rules(spec).append({"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}),
                "DeleteWorkers, which KubeRay refuses with autoscaling",
            ),
            (
                lambda spec: rules(spec)[0].pop("policy"),
                "has a deletionRule without a policy, which KubeRay needs; use",
            ),
            (
                lambda spec: head(spec)["volumeMounts"][0].pop("mountPath"),
                "has volumeMounts without mountPath in the head; add it",
            ),
            (lambda spec: head(spec)["env"][0].pop("name"), "has env without name in the head; add it"),
            (
                lambda spec: group(spec, 1)["template"]["spec"]["volumes"].append({"emptyDir": {}}),
                "has volumes without name in the group ondemand; add it",
            ),
            (lambda spec: group(spec).update(replicas=1), "has replicas in the group ondemand; leave it out"),
            (lambda spec: group(spec, 1)["template"]["spec"].pop("containers"), "has no container in the group spot"),
            (lambda spec: head(spec).pop("env"), "doesn't give SAMPA_STORE_URL to the head's container"),
            (
                lambda spec: head(spec).update(env=[{"name": "SAMPA_STORE_URL", "value": "postgresql://u:pw@db/x"}]),
                "take it from a Secret there, by secretKeyRef",
            ),
        ],
    )
    def test_one_that_would_not_work_is_refused_in_a_sentence(self, tmp_path: Path, change: Change, why: str) -> None:
        text = yaml.safe_load(TEMPLATE.read_text())
        change(text["spec"])
        (path := tmp_path / "t.yaml").write_text(json.dumps(text))
        with pytest.raises(TemplateRefused) as raised:
            read_template(path)
        assert str(raised.value).startswith(f"the RayJob template {path} ")
        assert why in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("kind: RayCluster", "is no RayJob of ray.io/v1; give one"),
            ("[]", "is no RayJob of ray.io/v1; give one"),
            ("{kind: RayJob, apiVersion: ray.io/v1}", "needs submissionMode"),
            ("kind: [", "is no YAML ("),
        ],
    )
    def test_what_is_no_rayjob_is_refused(self, tmp_path: Path, text: str, why: str) -> None:
        (path := tmp_path / "t.yaml").write_text(text)
        with pytest.raises(TemplateRefused) as raised:
            read_template(path)
        assert raised.value.why.startswith(why)
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

    def test_a_missing_one_is_said_to_be(self, tmp_path: Path) -> None:
        with pytest.raises(TemplateRefused, match=r"can't be read \(No such file or directory\); mount the ConfigMap"):
            read_template(tmp_path / "none.yaml")


def rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["deletionStrategy"]["deletionRules"]


class TestSharing:
    def test_the_deployed_template_shares_the_state_directory(self, template: dict[str, Any]) -> None:
        assert why_not_shared(template, STATE) == ""
        assert why_not_shared(template, STATE / "jobs") == ""

    def test_a_directory_outside_of_the_mounts_is_not_shared(self, template: dict[str, Any]) -> None:
        assert why_not_shared(template, Path("/tmp/x")).startswith("the head of the RayJob template mounts nothing")

    @pytest.mark.parametrize("kind", ["emptyDir", "hostPath"])
    def test_a_volume_of_one_node_is_not_shared(self, template: dict[str, Any], kind: str) -> None:
        pod = copy.deepcopy(group(template["spec"])["template"]["spec"])
        pod["volumes"] = [{"name": "state", kind: {}}]
        group(template["spec"])["template"]["spec"] = pod
        assert why_not_shared(template, STATE) == (
            f"the group ondemand of the RayJob template has {kind} at /var/lib/sampa, which only one node sees"
        )

    def test_two_claims_are_not_the_same_storage(self, template: dict[str, Any]) -> None:
        pod = copy.deepcopy(group(template["spec"], 1)["template"]["spec"])
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = "other"
        group(template["spec"], 1)["template"]["spec"] = pod
        assert "group spot of the RayJob template has another volume" in why_not_shared(template, STATE)


class TestPhases:
    @pytest.mark.parametrize(
        ("job", "deployment", "said"),
        [
            ("", "", "PENDING"),  # nobody has looked at it yet
            ("", "Initializing", "PENDING"),
            ("PENDING", "Initializing", "PENDING"),
            ("", "Waiting", "PENDING"),
            ("", "Running", "PENDING"),  # submitted, and Ray hasn't said anything yet
            ("PENDING", "Running", "PENDING"),
            ("RUNNING", "Running", "RUNNING"),
            ("SUCCEEDED", "Running", "SUCCEEDED"),
            ("SUCCEEDED", "Complete", "SUCCEEDED"),
            ("STOPPED", "Complete", "STOPPED"),
            ("", "Complete", "STOPPED"),
            ("FAILED", "Failed", "FAILED"),
            ("RUNNING", "Failed", "FAILED"),  # a deadline
            ("", "Failed", "FAILED"),
            ("", "ValidationFailed", "HOPELESS"),
            ("SUCCEEDED", "Failed", "SUCCEEDED"),
            ("FAILED", "Retrying", "PENDING"),
            ("RUNNING", "Suspending", "PENDING"),
            ("", "Suspended", "PENDING"),
            ("", "SomethingNew", "PENDING"),
        ],
    )
    def test_the_table(self, job: str, deployment: str, said: str) -> None:
        assert phase({"jobStatus": job, "jobDeploymentStatus": deployment}) == said

    @pytest.mark.parametrize("reason", ["DeadlineExceeded", "PreRunningDeadlineExceeded"])
    def test_after_a_deadline_it_is_of_no_use_to_try_again(self, reason: str) -> None:
        late = {"jobDeploymentStatus": "Failed", "reason": reason, "message": "late"}
        assert {job: phase({"jobStatus": job, **late}) for job in ("", "RUNNING", "FAILED", "SUCCEEDED")} == {
            **dict.fromkeys(["", "RUNNING", "FAILED"], HOPELESS),
            "SUCCEEDED": "SUCCEEDED",
        }
        assert f"failed ({reason}): late; " in why_failed("a", {"jobStatus": "RUNNING", **late})

    def test_before_there_is_a_status_it_is_pending(self) -> None:
        assert phase({}) == "PENDING"

    @pytest.mark.parametrize(
        ("code", "said"), [(75, None), (1, "FAILED"), (7, "FAILED"), (751, "FAILED"), (-9, "FAILED")]
    )
    def test_a_runner_that_was_started_again_on_a_new_head_has_lost_its_cluster(
        self, code: int, said: str | None
    ) -> None:
        message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated ...):\nx"
        assert phase({"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "message": message}) == said

    @pytest.mark.parametrize(
        ("status", "why"),
        [
            (
                {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "spec: bad\nx: y"},
                "its RayJob a failed (ValidationFailed): x: y",
            ),
            (
                {
                    "jobStatus": "RUNNING",
                    "jobDeploymentStatus": "Failed",
                    "reason": "DeadlineExceeded",
                    "message": "late",
                },
                "its RayJob a failed (DeadlineExceeded): late; raise activeDeadlineSeconds in the RayJob template",
            ),
            (
                {"jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 1:\nKeyError: 'x'\n"},
                "its RayJob a failed (AppFailed): KeyError: 'x'",
            ),
            (
                {"jobStatus": "FAILED", "message": "runtime_env setup failed: x\nERROR: No match for y\n"},
                f"{NOT_IN_PLACE}: No match for y",
            ),
            ({"jobStatus": "FAILED"}, "its RayJob a failed (without a reason): Ray gives no reason"),
            ({"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "message": "x"}, ""),
            ({"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete", "message": "x"}, ""),
        ],
    )
    def test_why_it_failed_is_a_sentence(self, status: dict[str, Any], why: str) -> None:
        assert why_failed("a", status) == why

    @pytest.mark.parametrize(
        ("status", "why"),
        [
            ({}, ""),
            ({"jobDeploymentStatus": "Initializing"}, ""),
            ({"jobDeploymentStatus": "Initializing", "message": "no\n head"}, "waits for its cluster (no head)"),
            ({"jobDeploymentStatus": "Suspended"}, "is suspended; a queue, as Kueue is one, has not let it begin yet"),
            ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "message": "x"}, ""),
            (
                {"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"conditions": "head"}},
                "waits for its cluster (ContainersNotReady: containers with unready status: [ray-head])",
            ),
            (
                {"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"conditions": "quota head"}},
                "waits for its cluster (FailedCreateHeadPod: exceeded quota: gpus)",
            ),
            ({"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"conditions": "new"}}, ""),
        ],
    )
    def test_what_it_waits_for_is_a_sentence(self, status: dict[str, Any], why: str) -> None:
        if "rayClusterStatus" in status:
            named = [CONDITIONS[name] for name in status["rayClusterStatus"]["conditions"].split()]
            status = {**status, "rayClusterStatus": {"conditions": named}}
        assert why_pending("a", status) == (why and f"its RayJob a {why}")


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


CONDITIONS = {
    "head": condition("HeadPodReady", "False", "ContainersNotReady", "containers with unready status: [ray-head]"),
    "quota": condition("ReplicaFailure", "True", "FailedCreateHeadPod", "exceeded quota: gpus"),
    "new": condition("HeadPodReady", "False", "HeadPodNotFound", "Head Pod not found"),
}
