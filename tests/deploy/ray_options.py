"""Ray's own code as the judge: what its autoscaler believes of a cluster, and which options ``ray start`` has."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sampa.service.room import Node
from sampa.service.settings import ServiceSettings

from .manifests import Cluster, Manifest, clusters, of_kind


def option_faults(documents: list[Manifest]) -> list[str]:
    """Return the parameters that ``ray start`` would not understand, and what the autoscaler would not."""
    faults = []
    for cluster in clusters(documents):
        for name, group in cluster.groups():
            unknown = set(group.get("rayStartParams", {})) - options()
            faults += [f"{cluster.where} {name}: ray start has no option {option}" for option in sorted(unknown)]
        if cluster.spec.get("enableInTreeAutoscaling"):
            try:
                head = believed(cluster)["available_node_types"]["headgroup"]["resources"]
            except Exception as error:  # whatever Ray says to it
                faults.append(f"{cluster.where}: Ray's autoscaler refuses it: {error}")
            else:
                faults += [f"{cluster.where}: jobs would train on the head"] if head["CPU"] else []
                faults += _room_faults(documents, cluster)
    return faults


def _room_faults(documents: list[Manifest], cluster: Cluster) -> Iterator[str]:
    """Yield a fault when SAMPA_NODES, by which jobs are refused, isn't what Ray's autoscaler may start."""
    said, there = Counter(told_nodes(documents)), Counter(nodes_of(cluster))
    if said != there:
        yield f"{cluster.where}: SAMPA_NODES says {_counts(said)}, but Ray may start {_counts(there)}"


def told_nodes(documents: list[Manifest]) -> list[Node]:
    """Return the nodes that the API believes in."""
    (text,) = (one["data"]["SAMPA_NODES"] for one in of_kind(documents, "ConfigMap") if "SAMPA_NODES" in one["data"])
    return ServiceSettings(nodes=json.loads(text)).most_nodes() or []


def nodes_of(cluster: Cluster) -> list[Node]:
    """Return all nodes with processors for jobs that the autoscaler may start for a cluster."""
    types = [one for one in believed(cluster)["available_node_types"].values() if one["max_workers"]]
    return [Node(float(one["resources"]["CPU"]), float(one["resources"].get("GPU", 0)))
            for one in types for _ in range(one["max_workers"])]  # fmt: skip


def _counts(nodes: Counter[Node]) -> str:
    return " and ".join(f"{count} with {node}" for node, count in sorted(nodes.items(), key=str))


@functools.cache
def options() -> frozenset[str]:
    from ray.scripts.scripts import start

    return frozenset(option.removeprefix("--") for parameter in start.params for option in parameter.opts)


def believed(cluster: Cluster) -> dict[str, Any]:
    """Return the configuration that Ray's autoscaler makes of a cluster, as the API server would hand it over."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    name = cluster.where.split()[1]
    return _derive_autoscaling_config_from_ray_cr({"metadata": {"name": name, "namespace": "x"}, "spec": cluster.spec})


def launched(cluster: Cluster, workers: int, shape: dict[str, float]) -> tuple[dict[str, int], int]:
    """Return what the autoscaler starts for so many workers of a shape, by group, and how many it can place nowhere."""
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(believed(cluster), skip_content_hash=True)
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(shape) for _ in range(workers)])
    asked = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=requests,
    )
    reply = ResourceDemandScheduler(AutoscalerEventLogger.__new__(AutoscalerEventLogger)).schedule(asked)
    return {one.instance_type: one.count for one in reply.to_launch}, len(reply.infeasible_resource_requests)
