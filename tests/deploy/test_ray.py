"""Ray's autoscaler on our clusters: it believes what is meant, and what jobs ask for has room."""

import pytest

from .manifests import clusters, manifests
from .ray_options import believed, launched, options

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


@pytest.mark.parametrize(
    ("part", "workers", "shape"),
    [
        ("overlays/dev", 2, {"CPU": 1}),
        ("overlays/prod", 24, {"CPU": 1}),
        ("overlays/prod-gpu", 10, {"CPU": 4, "GPU": 1}),
        ("components/rayjob", 12, {"CPU": 2}),
    ],
)
def test_the_largest_job_has_room_and_one_that_is_larger_never_has(part, workers, shape):
    cluster = the_cluster(part)
    started, nowhere = launched(cluster, workers, shape)
    assert nowhere == 0
    assert sum(started.values()) == sum(group.get("maxReplicas", 0) for name, group in cluster.groups()
                                        if "GPU" not in shape or name.startswith("gpu"))  # fmt: skip
    _, nowhere = launched(cluster, workers + 1, shape)
    assert nowhere == 1
    _, nowhere = launched(cluster, 1, shape | {"CPU": 64})
    assert nowhere == 1


def test_ray_start_has_the_options_that_are_used():
    used = {option for part in ("base", "components/raycronjob") for cluster in clusters(manifests(part))
            for _, group in cluster.groups() for option in group.get("rayStartParams", {})}  # fmt: skip
    assert used == {"num-cpus", "dashboard-host"}
    assert used <= options()
