"""What the operator and Pod Security would refuse, and what the schemas of Kubernetes miss."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import yaml

from .manifests import DEPLOY, Cluster, Manifest, clusters, of_kind, pods, variables, with_templates
from .schemas import LABEL

LONGEST = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 41}  # what the operator appends must fit into 63
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
GATES = {  # the alpha fields of a Ray cluster, each with what must be switched on for it
    "tlsOptions": "RayClusterMTLS",
    "networkPolicy": "RayClusterNetworkPolicy",
    "historyServerOptions": "RayClusterHistoryServer",
}
ROCKSDB_GATE, CRON_GATE, DELETION_GATE = "GCSFaultToleranceEmbeddedStorage", "RayCronJob", "RayJobDeletionPolicy"
QUANTITY = re.compile(r"[+-]?(\d+|\d+\.\d*|\.\d+)([KMGTPE]i|[mkMGTPE]|[eE][+-]?\d+)?")
ENUMS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "accessModes": {"ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"},
    "policyTypes": {"Ingress", "Egress"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
}


def operator_faults(documents: list[Manifest]) -> list[str]:
    """Return what KubeRay's operator would refuse although the CRDs allow it."""
    faults = []
    for one in with_templates(documents):
        if one["apiVersion"].startswith("ray.io/"):
            where, name = f"{one['kind']} {one['metadata']['name']}", one["metadata"]["name"]
            if len(name) > LONGEST[one["kind"]] or not DNS_1035.fullmatch(name):
                faults.append(f"{where}: its name must be a DNS label of at most {LONGEST[one['kind']]}")
        if one["kind"] == "RayJob":
            faults += [f"{where}: {fault}" for fault in job_faults(one["spec"])]
        if one["kind"] == "RayCronJob":
            faults += [f"{where}: {fault}" for fault in job_faults(one["spec"]["jobTemplate"])]
            faults += [f"{where}: {fault}" for fault in _without_gate(CRON_GATE)]
    for cluster in clusters(documents):
        faults += [f"{cluster.where}: {fault}" for fault in cluster_faults(cluster)]
        if not cluster.where.startswith("RayCluster ") and "upgradeStrategy" in cluster.spec:
            faults.append(f"{cluster.where}: upgradeStrategy is refused in the cluster of a job")
    return faults


def cluster_faults(cluster: Cluster) -> Iterator[str]:
    spec, scaled = cluster.spec, cluster.spec.get("enableInTreeAutoscaling", False)
    v2 = scaled and spec.get("autoscalerOptions", {}).get("version") == "v2"
    for name, group in cluster.groups():
        yield from (f"{name}: {fault}" for fault in _group_faults(group, worker=name != "headgroup", scaled=scaled))
        if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never with autoscaler v2"
        if group.get("idleTimeoutSeconds") is not None and not v2:
            yield f"{name}: idleTimeoutSeconds needs autoscaler v2"
    names = [name for name, _ in cluster.groups()]
    yield from (f"{name}: a second group of this name" for name in sorted(set(names)) if names.count(name) > 1)
    auth = spec.get("authOptions", {})
    if auth.get("mode") == "token" and _version(spec.get("rayVersion", "0")) < (2, 52):
        yield "token authentication needs rayVersion 2.52 or newer"
    if auth.get("mode") == "token" and auth.get("enableK8sTokenAuth") and auth.get("secretName"):
        yield "enableK8sTokenAuth excludes secretName"
    yield from _fault_tolerance_faults(spec)
    yield from (fault for field, gate in GATES.items() if field in spec for fault in _without_gate(gate))
    head = variables(spec["headGroupSpec"]["template"]["spec"]["containers"][0])
    if "RAY_enable_autoscaler_v2" in head:
        yield "RAY_enable_autoscaler_v2 and autoscalerOptions.version exclude each other"


def _group_faults(group: Manifest, *, worker: bool, scaled: bool) -> Iterator[str]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if worker and not 0 <= least <= most:
        yield f"minReplicas {least} must be at most maxReplicas {most}"
    parameters = group.get("rayStartParams", {})
    if "labels" in parameters:
        yield "rayStartParams.labels is refused; labels is a field of the group"
    if group.get("resources") and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield "resources are given twice: in resources and in rayStartParams"
    for key, value in group.get("labels", {}).items():
        if not LABEL.fullmatch(value):
            yield f"label {key}: {value!r} is none"
    if scaled and group.get("suspend"):
        yield "a group can't be suspended with the autoscaler"


def _fault_tolerance_faults(spec: Manifest) -> Iterator[str]:
    options = spec.get("gcsFaultToleranceOptions")
    if options and options.get("backend", "redis") == "rocksdb":
        yield from _without_gate(ROCKSDB_GATE)
        if options.keys() & {"redisAddress", "redisPassword", "redisUsername", "externalStorageNamespace"}:
            yield "rocksdb takes no settings of Redis"
    elif options and "storage" in options:
        yield "storage belongs to rocksdb"


def job_faults(spec: Manifest) -> Iterator[str]:
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules:
        yield from _without_gate(DELETION_GATE)
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    scaled = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
    if scaled and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        yield "DeleteWorkers can't be used with the autoscaler"
    for condition in ("SUCCEEDED", "FAILED", "Failed"):
        there = {rule["policy"]: rule["condition"].get("ttlSeconds", 0) for rule in rules
                 if condition in rule["condition"].values()}  # fmt: skip
        waits = [there[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in there]
        if waits != sorted(waits):
            yield f"on {condition} the cluster must not outlive the job: {there}"
    if spec.get("clusterSelector") and spec.get("backoffLimit"):
        yield "clusterSelector excludes backoffLimit"
    if not spec.get("clusterSelector") and "rayClusterSpec" not in spec:
        yield "rayClusterSpec or clusterSelector is required"


def _without_gate(gate: str) -> list[str]:
    """Return a fault when the operator's values don't name a gate."""
    return [] if gate in _gates() else [f"operator/values.yaml doesn't name the gate {gate}"]


@functools.cache
def _gates() -> frozenset[str]:
    values = yaml.safe_load((DEPLOY / "operator" / "values.yaml").read_text())
    return frozenset(one["name"] for one in values["featureGates"])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def security_faults(documents: list[Manifest]) -> list[str]:
    """Return what Pod Security ``restricted`` would refuse, the containers that the operator adds included."""
    faults = []
    for pod in pods(documents):
        faults += [f"{pod.where}: {fault}" for fault in _restricted(pod.spec, pod.containers)]
    for cluster in clusters(documents):
        if cluster.spec.get("enableInTreeAutoscaling"):
            options = cluster.spec.get("autoscalerOptions", {})
            spec = cluster.spec["headGroupSpec"]["template"]["spec"]
            added = [{"name": "autoscaler", "securityContext": options.get("securityContext", {})}]
            faults += [f"{cluster.where}: {fault}" for fault in _restricted(spec, added)]
    return faults


def _restricted(spec: Manifest, containers: list[Manifest]) -> Iterator[str]:
    whole = spec.get("securityContext", {})
    yield from (f"{name} is forbidden" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
                         "projected", "secret"}:  # fmt: skip
            yield f"volume {volume['name']}: {kinds} is forbidden"
    for container in containers:
        own, name = container.get("securityContext", {}), container["name"]
        of = {**whole, **own}
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation must be false"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name}: all capabilities must be dropped"
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities are added"
        if of.get("runAsNonRoot") is not True or of.get("runAsUser") == 0:
            yield f"{name}: must not run as root"
        if of.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile must be RuntimeDefault"
        yield from (f"{name}: hostPort is forbidden" for port in container.get("ports", []) if port.get("hostPort"))


def kubernetes_faults(documents: list[Manifest]) -> list[str]:
    """Return what an API server refuses although the published schemas of Kubernetes don't say so."""
    faults = [f"{kind} {name}: there twice" for kind, name in _repeated(documents)]
    for one in with_templates(documents):
        where = f"{one['kind']} {one['metadata']['name']}"
        faults += [f"{where}{fault}" for fault in _values(one, "")]
        if one["kind"] in ("Deployment", "StatefulSet"):
            wanted = one["spec"]["selector"]["matchLabels"].items()
            if not wanted <= one["spec"]["template"]["metadata"]["labels"].items():
                faults.append(f"{where}: its selector doesn't select its own pods")
    for pod in pods(documents):
        for container in pod.containers:
            asked, most = (container.get("resources", {}).get(name, {}) for name in ("requests", "limits"))
            if "nvidia.com/gpu" in asked | most and asked.get("nvidia.com/gpu") != most.get("nvidia.com/gpu"):
                faults.append(f"{pod.where}: {container['name']}: GPUs must be requested and limited alike")
            faults += [f"{pod.where}: {container['name']} asks for no {name}"
                       for name in ("cpu", "memory") if name not in asked]  # fmt: skip
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | _claimed(documents, pod.where)
            faults += [f"{pod.where}: there is no volume {name}" for name in sorted(mounts - volumes)]
    return faults


def _claimed(documents: list[Manifest], where: str) -> set[str]:
    """Return the volumes that a StatefulSet claims for its pods."""
    sets = [one for one in of_kind(documents, "StatefulSet") if where == f"StatefulSet {one['metadata']['name']}"]
    return {claim["metadata"]["name"] for one in sets for claim in one["spec"].get("volumeClaimTemplates", [])}


def _repeated(documents: list[Manifest]) -> list[tuple[str, str]]:
    all_of_them = [(one["kind"], one["metadata"]["name"]) for one in documents]
    return sorted({one for one in all_of_them if all_of_them.count(one) > 1})


def _values(value: Any, path: str) -> Iterator[str]:
    """Yield each value that is none of its field's, anywhere in a manifest."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(item, f"{path}[{number}]")
        return
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        for one in item if isinstance(item, list) else [item]:
            if name in ENUMS and isinstance(one, str) and one not in ENUMS[name]:
                yield f"{path}.{name}: {one!r} is not one of {sorted(ENUMS[name])}"
        if name in ("requests", "limits") and isinstance(item, dict):
            for resource, quantity in item.items():
                if not QUANTITY.fullmatch(str(quantity)):
                    yield f"{path}.{name}.{resource}: {quantity!r} is no quantity"
        yield from _values(item, f"{path}.{name}")
