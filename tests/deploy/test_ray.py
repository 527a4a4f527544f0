"""Ray's autoscaler on our clusters: it believes what is meant, and what jobs ask for has room."""

import pytest
from sampa.service.room import why_no_room
from sampa.workers.plan import Workers

from .manifests import OVERLAYS, clusters, manifests
from .ray_options import believed, launched, options, told_nodes

GIB = 2**30


def the_cluster(part):
    (cluster,) = clusters(manifests(part))
    return cluster


def groups(part):
    return {
        name: (node["min_workers"], node["max_workers"], node["resources"], node["labels"])
        for name, node in believed(the_cluster(part))["available_node_types"].items()
    }


def test_the_groups_are_what_is_meant():
    worker = {"CPU": 2, "memory": 8 * GIB}
    expected = {
        "headgroup": (0, 0, {"CPU": 0, "memory": 10 * GIB}, {}),
        "ondemand": (0, 4, worker, {"ray.io/market-type": "on-demand"}),
        "spot": (0, 8, worker, {"ray.io/market-type": "spot"}),
    }
    assert groups("base") == groups("overlays/prod") == expected
    with_gpu = {"CPU": 4, "GPU": 1, "memory": 24 * GIB}
    assert groups("overlays/prod-gpu") == expected | {
        "gpu-ondemand": (0, 2, with_gpu, {"ray.io/market-type": "on-demand"}),
        "gpu-spot": (0, 8, with_gpu, {"ray.io/market-type": "spot"}),
    }
    assert set(groups("overlays/dev")) == {"headgroup", "ondemand"}
    assert groups("components/volcano")["ondemand"][0] == 2


def test_nodes_on_demand_are_filled_first():
    assert launched(the_cluster("base"), 4, {"CPU": 2}) == ({"ondemand": 4}, 0)
    assert launched(the_cluster("base"), 6, {"CPU": 2}) == ({"ondemand": 4, "spot": 2}, 0)


def test_jobs_with_gpus_get_nodes_that_have_some_and_the_others_don_t():
    cluster = the_cluster("overlays/prod-gpu")
    assert launched(cluster, 4, {"CPU": 1, "GPU": 1}) == ({"gpu-ondemand": 2, "gpu-spot": 2}, 0)
    assert launched(cluster, 2, {"CPU": 1}) == ({"ondemand": 1}, 0)


PARTS = [*(f"overlays/{name}" for name in OVERLAYS), "components/rayjob"]


@pytest.mark.parametrize("part", PARTS)
def test_the_largest_job_that_the_api_takes_has_room_and_one_that_is_larger_it_refuses(part):
    """For each kind of node of which the API was told, the most and largest workers: Ray would start them all."""
    told, cluster = told_nodes(manifests(part)), the_cluster(part)
    for node in set(told):
        shape = {"CPU": node.cpus, "GPU": node.gpus} if node.gpus else {"CPU": node.cpus}
        workers = Workers(min=1, max=1, cpus=node.cpus, gpus=node.gpus)
        most = sum(one.holds(workers) for one in told)
        assert why_no_room(workers.model_copy(update={"min": most}), told) == ""
        started, nowhere = launched(cluster, most, shape)
        assert nowhere == 0
        assert sum(started.values()) == sum(one.holds(workers) > 0 for one in told)
        assert why_no_room(workers.model_copy(update={"min": most + 1}), told) != ""
        assert launched(cluster, most + 1, shape)[1] == 1
    wider = Workers(min=1, max=1, cpus=max(node.cpus for node in told) + 1)
    assert why_no_room(wider, told) != ""
    assert launched(cluster, 1, {"CPU": wider.cpus})[1] == 1


def test_ray_start_has_the_options_that_are_used():
    used = {option for part in ("base", "components/raycronjob") for cluster in clusters(manifests(part))
            for _, group in cluster.groups() for option in group.get("rayStartParams", {})}  # fmt: skip
    assert used == {"num-cpus", "dashboard-host"}
    assert used <= options()
