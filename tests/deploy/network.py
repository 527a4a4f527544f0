"""Network policies and disruption budgets: what each pod may call, and which pods may be taken."""

from __future__ import annotations

from collections.abc import Iterator

from .consistency import given, selected, selects
from .manifests import Manifest, Pod, clusters, of_kind, pods

DNS, POSTGRES = 53, 5432


def network_faults(documents: list[Manifest]) -> list[str]:
    return [*egress_faults(documents), *budget_faults(documents)]


def egress_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when a pod can't find names, or the store is out of reach of API or heads, or in workers'."""
    by_operator = {cluster.where for cluster in clusters(documents) if "networkPolicy" in cluster.spec}
    for pod in pods(documents):
        if pod.kind == "StatefulSet" or pod.where.rpartition(" ")[0] in by_operator:
            continue
        ports = anywhere(documents, pod)
        asks_store = pod.kind == "Deployment" or (pod.kind == "head" and "RayCronJob" not in pod.where)
        if DNS not in ports:
            yield f"{pod.where}: no policy lets it ask for names, at port {DNS}"
        if asks_store and POSTGRES not in ports:
            yield f"{pod.where}: no policy lets it reach the store, at port {POSTGRES}"
        if pod.kind == "worker" and POSTGRES in ports:
            yield f"{pod.where}: it needs no store, but may call anybody at port {POSTGRES}"


def anywhere(documents: list[Manifest], pod: Pod) -> set[int]:
    """Return the ports at which a pod may call anybody."""
    policies = [
        one["spec"] for one in of_kind(documents, "NetworkPolicy") if selects(one["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in policies for rule in spec.get("egress", []) if "to" not in rule]
    return {port["port"] for rule in rules for port in rule["ports"]}


def budget_faults(documents: list[Manifest]) -> Iterator[str]:
    """Yield a fault when a budget doesn't keep each head, of which there is one for each job that runs at once."""
    (api,) = (pod for pod in pods(documents) if pod.kind == "Deployment")
    most = int(given(documents, api)["SAMPA_MAX_RUNNING"])
    for one in of_kind(documents, "PodDisruptionBudget"):
        spec, where = one["spec"], f"PodDisruptionBudget {one['metadata']['name']}"
        if any(pod.kind == "head" for pod in selected(documents, spec["selector"])):
            if "maxUnavailable" in spec:
                yield f"{where}: Kubernetes can't scale what owns heads, and so takes no maxUnavailable of them"
            elif int(spec["minAvailable"]) <= most:
                yield f"{where}: keeps {spec['minAvailable']} of up to {most} heads"
