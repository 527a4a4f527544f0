"""What would show only when it runs: names that lead nowhere, numbers that don't agree, settings that nobody reads."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from sampa.api.app import PASS_DEADLINE_S
from sampa.api.serve import STREAMS_DEADLINE_S
from sampa.service.migrations import MIGRATION_LIMITS
from sampa.service.settings import ServiceSettings

from .manifests import ROOT, Manifest, Pod, clusters, examples, of_kind, pods, variables, with_templates

SLACK_S = 20  # between the end of a drain and the end of the grace
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SETTINGS = {f"SAMPA_{field.upper()}" for field in ServiceSettings.model_fields}
REQUIRED = {"SAMPA_HOST", "SAMPA_STATE_DIR", "SAMPA_STORE_URL", "SAMPA_TOKEN", "SAMPA_BACKEND", "SAMPA_NODES"}
OF_BACKEND = {
    "jobs": {"SAMPA_RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"},
    "rayjob": {"SAMPA_RAYJOB_TEMPLATE"},
}
OF_OTHERS = {  # variables that Ray, the command line, the image, PostgreSQL or pyarrow read
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", DRAIN),
    *("SAMPA_URL", "SAMPA_TOKEN", "HOME"),
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
}
OF_THE_CLUSTER = {"kube-root-ca.crt"}  # ConfigMaps that Kubernetes puts into each namespace
START_S = 30  # what the API needs beside a migration


def consistency_faults(documents: list[Manifest]) -> list[str]:
    checks = (version_faults, replica_faults, grace_faults, reference_faults, selector_faults, port_faults)
    checks += (variable_faults, storage_faults, token_faults, namespace_faults, start_faults, upgrade_faults)
    return [fault for check in checks for fault in check(documents)]


def pinned_ray() -> str:
    return re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def image_tag() -> str:
    """Return the tag that the image has to have: the version of sampa and that of Ray."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"{project['version']}-ray{pinned_ray()}"


def version_faults(documents: list[Manifest]) -> Iterator[str]:
    if version("ray") != pinned_ray():
        yield f"Ray {version('ray')} is installed, {pinned_ray()} is pinned"
    for cluster in clusters(documents):
        if cluster.spec.get("rayVersion") != pinned_ray():
            yield f"{cluster.where}: rayVersion {cluster.spec.get('rayVersion')} is not the pinned {pinned_ray()}"
    images = {}
    for pod in pods(documents):
        for container in pod.containers:
            name, _, tag = container["image"].rpartition(":")
            if pod.kind != "StatefulSet":
                images[container["image"]] = pod.where
            if not name or tag == "latest":
                yield f"{pod.where}: {container['image']} is not pinned"
            elif name.split("/")[-1] == "sampa" and tag != image_tag():
                yield f"{pod.where}: the image's tag is {tag}, not {image_tag()}"
    if len(images) > 1:
        yield f"not all pods run one image: {images}"


def namespace_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault for what would land elsewhere than the rest: in whatever namespace kubectl is at."""
    (namespace,) = (one["metadata"]["name"] for one in of_kind(documents, "Namespace"))
    for one in documents:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != namespace:
            yield f"{one['kind']} {one['metadata']['name']}: not in the namespace {namespace}"
    for binding in of_kind(documents, "RoleBinding"):
        for subject in binding["subjects"]:
            if subject["namespace"] != namespace:
                yield f"RoleBinding {binding['metadata']['name']}: its subject is not in the namespace {namespace}"


def replica_faults(documents: list[Manifest]) -> Iterator[str]:
    for cluster in clusters(documents):
        for name, group in cluster.groups():
            if group.keys() & {"replicas", "scaleStrategy"}:
                yield f"{cluster.where} {name}: replicas are the autoscaler's"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        found = [one for one in of_kind(documents, target["kind"]) if one["metadata"]["name"] == target["name"]]
        if not found:
            yield f"HorizontalPodAutoscaler: there is no {target['kind']} {target['name']}"
        yield from (
            "Deployment: replicas are the HorizontalPodAutoscaler's" for one in found if "replicas" in one["spec"]
        )


def grace_faults(documents: list[Manifest]) -> Iterator[str]:
    for pod in pods(documents):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if any("preStop" in container.get("lifecycle", {}) for container in pod.containers):
            yield f"{pod.where}: a preStop hook takes its time from the drain"
        if pod.group is not None:
            drain = float(variables(pod.spec["containers"][0]).get(DRAIN, 30))
            if grace < drain + SLACK_S:
                yield f"{pod.where}: grace of {grace} s for a drain of {drain:g} s; SIGKILL must wait {SLACK_S} s more"
            if pod.labels["ray.io/node-type"] == "worker" and drain < 60:
                yield f"{pod.where}: a drain of {drain:g} s is short of what a worker needs to hand over"
        elif pod.kind == "Deployment":
            ending = float(given(documents, pod).get("SAMPA_DRAIN_S", 0)) + STREAMS_DEADLINE_S + PASS_DEADLINE_S
            if grace < ending + 5:
                yield f"{pod.where}: grace of {grace} s, but it may take {ending:g} s to end"


def start_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when the API is killed while it waits for another that migrates the store."""
    for pod in (pod for pod in pods(documents) if pod.kind == "Deployment"):
        probe = pod.spec["containers"][0]["startupProbe"]
        budget, needed = probe["periodSeconds"] * probe["failureThreshold"], START_S
        needed += int(MIGRATION_LIMITS["lock_timeout"].removesuffix("s"))
        if budget < needed:
            yield f"{pod.where}: it has {budget} s to start, but the lock of a migration alone may take {needed} s"


def upgrade_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when the store is migrated under a Ray cluster that keeps its old image."""
    for one in of_kind(documents, "RayCluster"):
        if one["spec"].get("upgradeStrategy", {}).get("type") != "Recreate":
            yield f"RayCluster {one['metadata']['name']}: another image leaves its pods as they are"


def given(documents: list[Manifest], pod: Pod) -> dict[str, Any]:
    """Return the variables that a pod's first container starts with, those of ConfigMaps included."""
    container, maps = pod.spec["containers"][0], of_kind(documents, "ConfigMap")
    names = [one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one]
    found = {name: value for one in maps if one["metadata"]["name"] in names for name, value in one["data"].items()}
    return found | variables(container)


def reference_faults(documents: list[Manifest]) -> Iterator[str]:
    there = {kind: {one["metadata"]["name"] for one in of_kind(documents, kind)}
             for kind in ("ConfigMap", "ServiceAccount", "PersistentVolumeClaim", "Role", "Service")}  # fmt: skip
    there["ConfigMap"] |= OF_THE_CLUSTER
    secrets = examples() | {one["metadata"]["name"]: {*one.get("data", {}), *one.get("stringData", {})}
                            for one in of_kind(documents, "Secret")}  # fmt: skip
    for where, kind, name, key in _references(documents):
        if kind == "Secret" and key and key not in secrets.get(name, ()):
            yield f"{where}: no Secret {name} has a key {key}"
        elif name not in (secrets if kind == "Secret" else there[kind]):
            yield f"{where}: there is no {kind} {name}"


def _references(documents: list[Manifest]) -> Iterator[tuple[str, str, str, str]]:
    """Yield what the manifests refer to: from where, its kind, its name and the key in it."""
    for pod in pods(documents):
        yield from ((pod.where, *found) for found in _references_of(pod))
    for cluster in clusters(documents):
        if name := cluster.spec.get("authOptions", {}).get("secretName"):
            yield cluster.where, "Secret", name, "auth_token"
        if password := cluster.spec.get("gcsFaultToleranceOptions", {}).get("redisPassword"):
            yield cluster.where, "Secret", password["valueFrom"]["secretKeyRef"]["name"], "password"
    for binding in of_kind(documents, "RoleBinding"):
        yield "RoleBinding", "Role", binding["roleRef"]["name"], ""
        yield from (("RoleBinding", "ServiceAccount", subject["name"], "") for subject in binding["subjects"])
    for ingress in of_kind(documents, "Ingress"):
        yield from (("Ingress", "Secret", tls["secretName"], "tls.crt") for tls in ingress["spec"].get("tls", []))
    yield from ((where, "Service", service, "") for where, service, _ in _backends(documents))


def _references_of(pod: Pod) -> Iterator[tuple[str, str, str]]:
    """Yield what a pod refers to: its kind, its name and the key in it."""
    if "serviceAccountName" in pod.spec:
        yield "ServiceAccount", pod.spec["serviceAccountName"], ""
    for container in pod.containers:
        for source in [one.get("valueFrom", {}) for one in container.get("env", [])]:
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]
        for source in container.get("envFrom", []):
            kind, reference = ("ConfigMap", "configMapRef") if "configMapRef" in source else ("Secret", "secretRef")
            yield kind, source[reference]["name"], ""
    yield from _volumes(pod.spec.get("volumes", []))


def _volumes(volumes: list[Manifest]) -> Iterator[tuple[str, str, str]]:
    for volume in volumes:
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for source in sources:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"], ""
            if "persistentVolumeClaim" in source:
                yield "PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"], ""
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName", source["secret"].get("name")), ""


def _backends(documents: list[Manifest]) -> Iterator[tuple[str, str, Any]]:
    """Yield where requests from outside are sent to: the service and its port."""
    for route in of_kind(documents, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            yield from (("HTTPRoute", one["name"], one["port"]) for one in rule["backendRefs"])
    for ingress in of_kind(documents, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield "Ingress", service["name"], service["port"].get("name", service["port"].get("number"))


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Say whether a label selector is true of labels."""
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In", one
        if labels.get(one["key"]) not in one["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def selected(documents: list[Manifest], selector: Manifest) -> list[Pod]:
    return [pod for pod in pods(documents) if selects(selector, pod.labels)]


def selector_faults(documents: list[Manifest]) -> Iterator[str]:
    for where, selector in _selectors(documents):
        if not selected(documents, selector):
            yield f"{where}: selects no pod: {selector}"


def _selectors(documents: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for one in with_templates(documents):
        where, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        if one["kind"] == "Service":
            yield where, {"matchLabels": spec["selector"]}
        if one["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            yield where, spec["selector"]
        if one["kind"] == "NetworkPolicy":
            yield where, spec["podSelector"]
            rules = [*spec.get("ingress", []), *spec.get("egress", [])]
            for peer in [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    yield f"{where} peer", peer["podSelector"]
    for pod in pods(documents):
        for spread in pod.spec.get("topologySpreadConstraints", []):
            yield f"{pod.where} spread", spread["labelSelector"]


def _ports(some: list[Pod]) -> dict[Any, int]:
    """Return the ports of pods, by name and by number."""
    ports = [port for pod in some for container in pod.containers for port in container.get("ports", [])]
    return {key: port["containerPort"] for port in ports for key in (port["name"], port["containerPort"])}


def port_faults(documents: list[Manifest]) -> Iterator[str]:
    for service in of_kind(documents, "Service"):
        where, ports = (
            f"Service {service['metadata']['name']}",
            _ports(selected(documents, {"matchLabels": service["spec"]["selector"]})),
        )
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in ports:
                yield f"{where}: its pods have no port {port.get('targetPort', port['port'])}"
    for monitor in of_kind(documents, "PodMonitor"):
        ports = _ports(selected(documents, monitor["spec"]["selector"]))
        yield from (f"PodMonitor {monitor['metadata']['name']}: its pods have no port {end['port']}"
                    for end in monitor["spec"]["podMetricsEndpoints"] if end["port"] not in ports)  # fmt: skip
    for policy in of_kind(documents, "NetworkPolicy"):
        yield from _policy_port_faults(documents, policy)
    for where, service, port in _backends(documents):
        found = [one for one in of_kind(documents, "Service") if one["metadata"]["name"] == service]
        if not any(port in (one["port"], one["name"]) for each in found for one in each["spec"]["ports"]):
            yield f"{where}: service {service} has no port {port}"
    for pod in pods(documents):
        own = _ports([pod])
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port is not None and port not in own:
                    yield f"{pod.where}: {probe} asks at port {port}, which it has not"
        if pod.kind == "Deployment" and str(own.get("http")) != str(given(documents, pod).get("SAMPA_PORT", 8700)):
            yield f"{pod.where}: it listens at SAMPA_PORT, which is not its port http"
        yield from _address_faults(documents, pod)


def _policy_port_faults(documents: list[Manifest], policy: Manifest) -> Iterator[str]:
    where, spec = f"NetworkPolicy {policy['metadata']['name']}", policy["spec"]
    own = _ports(selected(documents, spec["podSelector"]))
    for rule in spec.get("ingress", []):
        yield from (f"{where}: its pods have no port {port['port']}"
                    for port in rule.get("ports", []) if port["port"] not in own)  # fmt: skip
    for rule in spec.get("egress", []):
        theirs = _ports([pod for peer in rule.get("to", [])
                         for pod in selected(documents, peer["podSelector"])])  # fmt: skip
        yield from (f"{where}: the peer has no port {port['port']}"
                    for port in rule.get("ports", []) if "to" in rule and port["port"] not in theirs)  # fmt: skip


def _address_faults(documents: list[Manifest], pod: Pod) -> Iterator[str]:
    """Yield a fault when the API asks elsewhere than at the head service that the operator makes of the cluster."""
    address = given(documents, pod).get("SAMPA_RAY_ADDRESS")
    if pod.kind == "Deployment" and given(documents, pod).get("SAMPA_BACKEND") == "jobs":
        heads = [f"http://{one['metadata']['name']}-head-svc:8265" for one in of_kind(documents, "RayCluster")]
        if address not in heads:
            yield f"{pod.where}: SAMPA_RAY_ADDRESS is {address}, but the head's service is {' or '.join(heads)}"


def variable_faults(documents: list[Manifest]) -> Iterator[str]:
    for pod in pods(documents):
        for container in pod.containers:
            names = [one["name"] for one in container.get("env", [])]
            yield from (f"{pod.where}: {name} is given twice" for name in sorted(set(names)) if names.count(name) > 1)
        for name, value in given(documents, pod).items():
            if name not in SETTINGS | OF_OTHERS:
                yield f"{pod.where}: nobody reads {name}"
            if value is None or value == "":
                yield f"{pod.where}: {name} is empty"
        if pod.kind == "Deployment":
            there = given(documents, pod)
            wanted = REQUIRED | OF_BACKEND.get(there.get("SAMPA_BACKEND", "jobs"), set())
            yield from (f"{pod.where}: {name} is not given" for name in sorted(wanted - set(there)))
            yield from (f"{pod.where}: {name} stands in the open" for name in ("SAMPA_TOKEN", "SAMPA_STORE_URL",
                        "RAY_AUTH_TOKEN") if isinstance(there.get(name), str))  # fmt: skip
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.where}: enableServiceLinks lets names of services look like settings"


def storage_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when what one pod writes another can't read: local volumes, or a claim for one node."""
    ours = [pod for pod in pods(documents) if pod.kind != "StatefulSet" and "RayCronJob" not in pod.where]
    (api,) = (pod for pod in ours if pod.kind == "Deployment")
    settings = given(documents, api)
    remote = str(settings.get("SAMPA_STORAGE", "")).startswith("s3://")
    claims = {one["metadata"]["name"]: one for one in of_kind(documents, "PersistentVolumeClaim")}
    for pod in ours:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounted = [volumes.get(mount["name"], {}) for mount in pod.spec["containers"][0].get("volumeMounts", [])
                   if mount["mountPath"] == settings.get("SAMPA_STATE_DIR")]  # fmt: skip
        if not mounted:
            yield f"{pod.where}: nothing is mounted at SAMPA_STATE_DIR"
        for volume in mounted:
            claim = claims.get(volume.get("persistentVolumeClaim", {}).get("claimName"))
            if claim is None and not remote:
                yield f"{pod.where}: what lies in SAMPA_STATE_DIR is seen on no other node"
            if claim is not None and claim["spec"]["accessModes"] != ["ReadWriteMany"] and not _near(pod, ours):
                yield f"{pod.where}: its claim must be ReadWriteMany, since workers are on other nodes"


def _near(pod: Pod, ours: list[Pod]) -> bool:
    """Say whether a pod must be on the node of all these; it is one of them, or else the first would have no node."""
    terms = (
        pod.spec.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    )
    return any(
        term["topologyKey"] == "kubernetes.io/hostname"
        and all(selects(term["labelSelector"], one.labels) for one in ours)
        for term in terms
    )


def token_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when a pod carries a key to the cluster that it needs not, or lacks one that it needs."""
    bound = {subject["name"] for binding in of_kind(documents, "RoleBinding") for subject in binding["subjects"]}
    for pod in pods(documents):
        mounted = pod.spec.get("automountServiceAccountToken") is not False
        needed = pod.spec.get("serviceAccountName") in bound
        if mounted != needed:
            yield f"{pod.where}: {'has' if mounted else 'lacks'} the token of its service account"
        projected = {volume["name"] for volume in pod.spec.get("volumes", []) if "serviceAccountToken" in str(volume)}
        for container in pod.containers:
            if projected & {mount["name"] for mount in container.get("volumeMounts", [])}:
                yield f"{pod.where}: {container['name']} can act in the cluster as the autoscaler"
    for cluster in clusters(documents):
        if cluster.spec.get("enableInTreeAutoscaling"):
            volumes = cluster.spec["headGroupSpec"]["template"]["spec"].get("volumes", [])
            mounts = {mount["name"] for mount in cluster.spec["autoscalerOptions"].get("volumeMounts", [])}
            if not mounts & {volume["name"] for volume in volumes if "serviceAccountToken" in str(volume)}:
                yield f"{cluster.where}: the autoscaler has no token to change the number of workers with"
    for role in of_kind(documents, "Role"):
        if any("*" in (*rule["verbs"], *rule["resources"]) for rule in role["rules"]):
            yield f"Role {role['metadata']['name']}: may do anything"
