"""Mistakes planted in manifests that are right: each is refused, by the check that should."""

from collections.abc import Callable
from typing import Any

import pytest

from .judge import faults
from .manifests import Cluster, Manifest, manifests, of_kind, the
from .rules import cluster_faults, job_faults

Change = Callable[[list[Manifest]], object]


def cluster(documents: list[Manifest]) -> Any:
    return the(documents, "RayCluster")["spec"]


def group(documents: list[Manifest], number: int = 0) -> Any:
    return cluster(documents)["workerGroupSpecs"][number]


def worker(documents: list[Manifest]) -> Any:
    return group(documents)["template"]["spec"]


def head(documents: list[Manifest]) -> Any:
    return cluster(documents)["headGroupSpec"]["template"]["spec"]


def api(documents: list[Manifest]) -> Any:
    return the(documents, "Deployment")["spec"]["template"]["spec"]


def container(pod: Any) -> Any:
    return pod["containers"][0]


def config(documents: list[Manifest]) -> Any:
    return the(documents, "ConfigMap", "sampa-config")["data"]


def variable(pod: Any, name: str) -> Any:
    return next(one for one in container(pod)["env"] if one["name"] == name)


def drop(documents: list[Manifest], kind: str, name: str) -> None:
    documents.remove(the(documents, kind, name))


MISTAKES: dict[str, tuple[Change, str]] = {
    # an API server refuses
    "a field misspelt": (lambda d: cluster(d).update(rayVersions="2.60.0"), ".rayVersions: unknown field"),
    "a field misspelt deep in a worker": (
        lambda d: container(worker(d)).update(imagePullPolice="Always"),
        ".imagePullPolice: unknown field",
    ),
    "a field misspelt in the API": (lambda d: container(api(d)).update(comand=["sampa"]), "'comand' was unexpected"),
    "a parameter that is no string": (
        lambda d: cluster(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "must be string, is int",
    ),
    "an unknown mode": (lambda d: cluster(d)["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
    "a quantity that is none": (
        lambda d: container(worker(d))["resources"]["limits"].update(memory="8GB"),
        "'8GB' is no quantity",
    ),
    "a quantity that is none, in the API": (
        lambda d: container(api(d))["resources"]["limits"].update(memory="1 Gi"),
        "'1 Gi' is no quantity",
    ),
    "a pull policy that is none": (
        lambda d: container(worker(d)).update(imagePullPolicy="Sometimes"),
        "'Sometimes' is not one of",
    ),
    "a container without a name": (lambda d: container(worker(d)).pop("name"), ".name: required"),
    "two ports of one number": (
        lambda d: container(worker(d))["ports"].append({"name": "again", "containerPort": 8080}),
        "a second",
    ),
    "a version of the API that is gone": (
        lambda d: the(d, "RayCluster").update(apiVersion="ray.io/v1alpha1"),
        "no CRD serves",
    ),
    "a name in capitals": (lambda d: the(d, "Service")["metadata"].update(name="Sampa-API"), "not a name"),
    "a label with a space": (lambda d: the(d, "Service")["metadata"].update(labels={"a": "b c"}), "is no label"),
    "a kind that is none": (lambda d: the(d, "Service").update(kind="Servise"), "no such kind"),
    "a selector that isn't the pods' label": (
        lambda d: the(d, "Deployment")["spec"]["selector"]["matchLabels"].update({"app.kubernetes.io/name": "x"}),
        "doesn't select its own pods",
    ),
    "a volume that is not there": (
        lambda d: container(worker(d))["volumeMounts"].append({"name": "data", "mountPath": "/data"}),
        "there is no volume data",
    ),
    # the operator refuses
    "fewest above most": (lambda d: group(d).update(minReplicas=9), "minReplicas 9 must be at most"),
    "a head that restarts": (lambda d: head(d).update(restartPolicy="Always"), "restartPolicy must be Never"),
    "a token without a version": (lambda d: cluster(d).pop("rayVersion"), "needs rayVersion"),
    "labels in the wrong place": (
        lambda d: group(d)["rayStartParams"].update(labels="a=b"),
        "labels is a field of the group",
    ),
    "resources given twice": (
        lambda d: (group(d).update(resources={"CPU": "2"}), group(d)["rayStartParams"].update({"num-cpus": "2"})),
        "given twice",
    ),
    "a name too long for what is appended": (
        lambda d: the(d, "RayCluster")["metadata"].update(name="s" * 54),
        "at most 53",
    ),
    "two groups of one name": (lambda d: group(d, 1).update(groupName="ondemand"), "a second group"),
    "Redis and RocksDB": (
        lambda d: cluster(d).update(gcsFaultToleranceOptions={"backend": "rocksdb", "redisAddress": "r:6379"}),
        "rocksdb takes no settings of Redis",
    ),
    # Pod Security refuses
    "root": (
        lambda d: [one["securityContext"].update(runAsUser=0) for one in (worker(d), container(worker(d)))],
        "must not run as root",
    ),
    "a worker that may gain rights": (
        lambda d: container(worker(d))["securityContext"].pop("allowPrivilegeEscalation"),
        "allowPrivilegeEscalation must be false",
    ),
    "an autoscaler without a security context": (
        lambda d: cluster(d)["autoscalerOptions"].pop("securityContext"),
        "autoscaler: all capabilities must be dropped",
    ),
    "a path of the node": (
        lambda d: worker(d)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        "is forbidden",
    ),
    # it would start, and be wrong
    "another Ray than the image's": (lambda d: cluster(d).update(rayVersion="2.59.0"), "is not the pinned"),
    "another image for the workers": (
        lambda d: container(worker(d)).update(image="sampa:0.1.0-ray2.59.0"),
        "the image's tag is",
    ),
    "an image without a tag": (lambda d: container(worker(d)).update(image="sampa"), "is not pinned"),
    "replicas": (lambda d: group(d).update(replicas=0), "replicas are the autoscaler's"),
    "replicas of the API": (lambda d: the(d, "Deployment")["spec"].update(replicas=2), "HorizontalPodAutoscaler's"),
    "a grace as short as the drain": (
        lambda d: worker(d).update(terminationGracePeriodSeconds=90),
        "SIGKILL must wait",
    ),
    "the grace that Kubernetes gives": (lambda d: worker(d).pop("terminationGracePeriodSeconds"), "SIGKILL must wait"),
    "the drain that Ray takes": (
        lambda d: container(worker(d))["env"].remove(variable(worker(d), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")),
        "is short of what a worker needs",
    ),
    "a preStop hook": (
        lambda d: container(worker(d)).update(lifecycle={"preStop": {"exec": {"command": ["ray", "stop"]}}}),
        "a preStop hook",
    ),
    "an API that drains longer than its grace": (
        lambda d: config(d).update(SAMPA_DRAIN_S="60"),
        "but it may take",
    ),
    "a secret that nobody makes": (
        lambda d: cluster(d)["authOptions"].update(secretName="sampa-auth"),
        "no Secret sampa-auth has a key auth_token",
    ),
    "a key that the secret has not": (
        lambda d: variable(api(d), "SAMPA_TOKEN")["valueFrom"]["secretKeyRef"].update(key="TOKEN"),
        "has a key TOKEN",
    ),
    "a service account that is not there": (
        lambda d: worker(d).update(serviceAccountName="ray"),
        "there is no ServiceAccount ray",
    ),
    "no claim": (lambda d: drop(d, "PersistentVolumeClaim", "sampa-state"), "there is no PersistentVolumeClaim"),
    "a claim for one node": (
        lambda d: the(d, "PersistentVolumeClaim")["spec"].update(accessModes=["ReadWriteOnce"]),
        "must be ReadWriteMany",
    ),
    "checkpoints in the pod": (
        lambda d: worker(d)["volumes"].__setitem__(0, {"name": "state", "emptyDir": {}}),
        "is seen on no other node",
    ),
    "a budget for nobody": (
        lambda d: the(d, "PodDisruptionBudget", "sampa-head")["spec"].update(
            selector={"matchLabels": {"ray.io/node-type": "master"}}
        ),
        "selects no pod",
    ),
    "a policy for a port that nobody has": (
        lambda d: the(d, "NetworkPolicy", "sampa-head")["spec"]["ingress"][0]["ports"][0].update(port=8266),
        "have no port 8266",
    ),
    "a service for another port": (
        lambda d: the(d, "Service")["spec"]["ports"][0].update(targetPort=8701),
        "have no port 8701",
    ),
    "an API that listens elsewhere": (lambda d: config(d).update(SAMPA_PORT="8000"), "not its port http"),
    "a probe at another port": (
        lambda d: container(api(d))["readinessProbe"]["httpGet"].update(port="web"),
        "asks at port web",
    ),
    "another address of Ray": (
        lambda d: config(d).update(SAMPA_RAY_ADDRESS="http://ray-head-svc:8265"),
        "but the head's service is",
    ),
    "a setting misspelt": (lambda d: config(d).update(SAMPA_MAXRUNNING="8"), "nobody reads SAMPA_MAXRUNNING"),
    "a setting left out": (
        lambda d: container(api(d))["env"].remove(variable(api(d), "SAMPA_STORE_URL")),
        "SAMPA_STORE_URL is not given",
    ),
    "a token in the open": (
        lambda d: container(api(d))["env"].append({"name": "SAMPA_TOKEN", "value": "secret"}),
        "SAMPA_TOKEN is given twice",
    ),
    "links of services": (lambda d: api(d).pop("enableServiceLinks"), "look like settings"),
    "a key to the cluster for users' code": (
        lambda d: worker(d).pop("automountServiceAccountToken"),
        "has the token of its service account",
    ),
    "the autoscaler's key for users' code": (
        lambda d: container(head(d))["volumeMounts"].append({"name": "kube-api-access", "mountPath": "/key"}),
        "can act in the cluster as the autoscaler",
    ),
    "a store that is out of workers' reach, no more": (
        lambda d: the(d, "NetworkPolicy", "sampa-ray")["spec"]["egress"][1]["ports"].append(
            {"protocol": "TCP", "port": 5432}
        ),
        "it needs no store, but may call anybody at port 5432",
    ),
    "a head that can't reach the store": (
        lambda d: the(d, "NetworkPolicy", "sampa-head")["spec"]["egress"].pop(),
        "no policy lets it reach the store",
    ),
    "pods that can't find names": (
        lambda d: the(d, "NetworkPolicy", "sampa-ray")["spec"]["egress"].pop(),
        "no policy lets it ask for names",
    ),
    "a budget that keeps one head of many": (
        lambda d: the(d, "PodDisruptionBudget", "sampa-head")["spec"].update(minAvailable=1),
        "keeps 1 of up to 8 heads",
    ),
    "a budget that Kubernetes can't count": (
        lambda d: the(d, "PodDisruptionBudget", "sampa-head")["spec"].update(maxUnavailable=0),
        "takes no maxUnavailable of them",
    ),
    "an image that reaches the API alone": (
        lambda d: cluster(d).pop("upgradeStrategy"),
        "another image leaves its pods as they are",
    ),
    "an API that is killed while it waits to migrate": (
        lambda d: container(api(d))["startupProbe"].update(failureThreshold=60),
        "it has 120 s to start, but",
    ),
    "nodes that nobody was told of": (lambda d: group(d).update(maxReplicas=5), "but Ray may start 13 with"),
    "workers larger than was told": (
        lambda d: container(worker(d))["resources"]["requests"].update(cpu="4"),
        "SAMPA_NODES says 12 with 2 processors and 0 GPUs, but Ray may start 8 with 2 processors",
    ),
    "nodes that are not told": (
        lambda d: config(d).update(SAMPA_NODES='[{"cpus": 2, "count": 1}]'),
        "SAMPA_NODES says 1",
    ),
    "an autoscaler without a key": (
        lambda d: cluster(d)["autoscalerOptions"].pop("volumeMounts"),
        "the autoscaler has no token",
    ),
    "something in another namespace": (
        lambda d: the(d, "Service")["metadata"].pop("namespace"),
        "not in the namespace sampa",
    ),
    # Ray would not understand
    "an option that Ray has not": (
        lambda d: group(d)["rayStartParams"].update({"num-cpu": "2"}),
        "ray start has no option num-cpu",
    ),
    "a group whose processors nobody can count": (
        lambda d: container(worker(d))["resources"]["requests"].pop("cpu"),
        "Ray's autoscaler refuses it",
    ),
    "a head on which jobs would train": (
        lambda d: cluster(d)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "jobs would train on the head",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_refused(mistake):
    plant, told = MISTAKES[mistake]
    documents = manifests("base")
    plant(documents)
    found = faults(documents)
    assert any(told in fault for fault in found), found


OF_ONE_NODE: dict[str, Change] = {
    "an API elsewhere": lambda d: api(d)["affinity"].pop("podAffinity"),
    "workers elsewhere": lambda d: worker(d)["affinity"].pop("podAffinity"),
    "a zone instead of a node": lambda d: head(d)["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ][0].update(topologyKey="topology.kubernetes.io/zone"),
    "a first pod that asks for others than itself": lambda d: group(d)["template"].pop("metadata"),
}


@pytest.mark.parametrize("mistake", OF_ONE_NODE)
def test_a_claim_for_one_node_with_pods_on_others_is_refused(mistake):
    documents = manifests("overlays/dev")
    OF_ONE_NODE[mistake](documents)
    found = faults(documents)
    assert any("its claim must be ReadWriteMany" in fault for fault in found), found


def test_there_are_more_than_twenty_and_each_says_something_of_its_own():
    assert len(MISTAKES) > 20
    assert all(told for _, told in MISTAKES.values())


SMALL = {
    "headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "h"}]}}},
    "workerGroupSpecs": [],
}
SCALED = SMALL | {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
AFTER = [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 60}}]


def with_worker(**fields: Any) -> Manifest:
    spec = {"groupName": "w", "template": {"spec": {"containers": [{"name": "w"}]}}} | fields
    return SCALED | {"workerGroupSpecs": [spec]}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (with_worker(), ""),
        (with_worker(minReplicas=2, maxReplicas=1), "minReplicas 2 must be at most maxReplicas 1"),
        (with_worker(suspend=True), "can't be suspended"),
        (with_worker(labels={"a": "not a label"}), "is none"),
        (with_worker(idleTimeoutSeconds=5) | {"autoscalerOptions": {"version": "v1"}}, "needs autoscaler v2"),
        (SMALL | {"authOptions": {"mode": "token"}, "rayVersion": "2.51.0"}, "needs rayVersion 2.52"),
        (SMALL | {"authOptions": {"mode": "token"}, "rayVersion": "2.60.0"}, ""),
        (SMALL | {"gcsFaultToleranceOptions": {"redisAddress": "r", "storage": {"size": "1Gi"}}}, "belongs to rocksdb"),
        (SMALL | {"gcsFaultToleranceOptions": {"backend": "rocksdb", "storage": {"size": "1Gi"}}}, ""),
        (SMALL | {"tlsOptions": {"enabled": True}}, ""),
    ],
)
def test_the_operator_s_rules_of_clusters(spec, told):
    found = list(cluster_faults(Cluster("RayCluster x", spec)))
    assert any(told in fault for fault in found) if told else found == []


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"rayClusterSpec": SCALED, "deletionStrategy": {"deletionRules": AFTER}}, ""),
        ({}, "rayClusterSpec or clusterSelector"),
        ({"clusterSelector": {"ray.io/cluster": "x"}, "backoffLimit": 1}, "excludes backoffLimit"),
        ({"rayClusterSpec": SMALL, "ttlSecondsAfterFinished": 5}, "needs shutdownAfterJobFinishes"),
        (
            {"rayClusterSpec": SMALL, "shutdownAfterJobFinishes": True, "deletionStrategy": {"deletionRules": AFTER}},
            "exclude shutdownAfterJobFinishes",
        ),
        (
            {
                "rayClusterSpec": SCALED,
                "deletionStrategy": {
                    "deletionRules": [{"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}]
                },
            },
            "can't be used with the autoscaler",
        ),
        (
            {
                "rayClusterSpec": SCALED,
                "deletionStrategy": {
                    "deletionRules": [
                        *AFTER,
                        {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 5}},
                    ]
                },
            },
            "must not outlive",
        ),
    ],
)
def test_the_operator_s_rules_of_jobs(spec, told):
    found = list(job_faults(spec))
    assert any(told in fault for fault in found) if told else found == []


def test_a_gate_that_the_operator_s_values_don_t_name_is_missed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules[cluster_faults.__module__].GATES, "tlsOptions", "Unheard")
    found = list(cluster_faults(Cluster("RayCluster x", SMALL | {"tlsOptions": {"enabled": True}})))
    assert found == ["operator/values.yaml doesn't name the gate Unheard"]


def test_mistakes_in_the_template_of_jobs_are_seen_too():
    documents = manifests("components/rayjob")
    text = the(documents, "ConfigMap", "sampa-rayjob")["data"]
    text["rayjob.yaml"] = text["rayjob.yaml"].replace("DeleteSelf", "DeleteWorkers").replace("num-cpus", "num-cpu")
    text["rayjob.yaml"] = text["rayjob.yaml"].replace(
        "rayVersion:", "upgradeStrategy: {type: Recreate}\n    rayVersion:"
    )
    found = faults(documents)
    assert any("upgradeStrategy is refused in the cluster of a job" in fault for fault in found)
    assert any("DeleteWorkers can't be used" in fault for fault in found)
    assert any("no option num-cpu" in fault for fault in found)
    assert of_kind(documents, "RayCluster") == []
