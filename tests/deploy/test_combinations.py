"""Components beside each other, in any order, and on each overlay: a deployment without a fault, or a loud refusal."""

import functools
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from .consistency import image_tag
from .judge import faults
from .manifests import COMPONENTS, DEPLOY, OVERLAYS, attempted, clusters, manifests, parsed, the, with_templates

README = (DEPLOY / "README.md").read_text()
APART = [  # two that don't go together, the words of the README for it, and what a reader is told who tries
    (("kueue", "rayjob"), "not with `kueue`", "kueue.x-k8s.io~1queue-name failed: test failed"),
    (("gcs-ft-redis", "gcs-ft-rocksdb"), "not both", "rocksdb takes no settings of Redis"),
]
ALREADY = {"dev": {"postgres"}, "prod": {"monitoring"}, "prod-gpu": {"monitoring", "gpu"}}  # in an overlay
BESIDE = [name for name in COMPONENTS if name != "image"]  # which is in the base
PAIRS = list(itertools.combinations([name for name in BESIDE if name != "rayjob"], 2))
PAIRS += [(name, "rayjob") for name in BESIDE if name != "rayjob"]


@functools.cache
def tried(base, *components):
    """Return what kustomize makes of a base with components in this order, and what it says if it refuses."""
    return attempted({"resources": [base], "components": [f"components/{name}" for name in components]})


@functools.cache
def judged(text):
    return faults(parsed(text))


@functools.cache
def of_cluster():
    """Return the components that change the shared Ray cluster, and so a job's."""
    plain = the(manifests("base"), "RayCluster")
    return {name for name in BESIDE if name != "rayjob" and the(manifests(f"components/{name}"), "RayCluster") != plain}


@pytest.fixture(scope="module", autouse=True)
def all_rendered():
    """Render all that is looked at below, two at a time."""
    wanted = [("base", *pair) for pair in PAIRS]
    wanted += [("base", "rayjob", name) for name in sorted(of_cluster())]
    wanted += [(f"overlays/{overlay}", name) for overlay in ("dev", "prod-gpu") for name in BESIDE]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: tried(*one), wanted))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in [one[0] for one in APART]])
def test_any_two_stand_together_on_the_base(pair):
    text, said = tried("base", *pair)
    assert said == ""
    assert judged(text) == []


@pytest.mark.parametrize("gcs", ["gcs-ft-redis", "gcs-ft-rocksdb"])
@pytest.mark.parametrize("backwards", [False, True])
def test_all_that_go_together_do_in_either_order(backwards, gcs):
    others = set(BESIDE) - {"rayjob", "gcs-ft-redis", "gcs-ft-rocksdb"}
    text, said = tried("base", *sorted(others | {gcs}, reverse=backwards))
    assert said == ""
    assert judged(text) == []


def test_prod_is_the_base_with_monitoring_so_that_all_this_holds_for_it():
    assert tried("overlays/prod") == tried("base", "monitoring")


@pytest.mark.parametrize(("pair", "words", "told"), APART)
def test_those_that_don_t_say_so_here_and_when_it_is_tried(pair, words, told):
    assert words in README
    text, said = tried("base", *pair)
    assert told in said or any(told in fault for fault in judged(text))


def test_a_change_of_the_cluster_after_rayjob_is_refused():
    """It would not reach the template, and jobs would run without it."""
    assert {"s3", "gpu", "kueue", "volcano"} <= of_cluster()
    for name in of_cluster():
        text, said = tried("base", "rayjob", name)
        assert text == "", name
        assert f"components/{name}" in said
        assert "no matches for Id RayCluster.v1.ray.io/sampa" in said, said
    assert "`rayjob` comes last" in README


@pytest.mark.parametrize(
    ("overlay", "name"),
    [(overlay, name) for overlay in ("dev", "prod-gpu") for name in BESIDE if name not in ALREADY[overlay]],
)
def test_each_stands_on_each_overlay_that_has_it_not(overlay, name):
    text, said = tried(f"overlays/{overlay}", name)
    if (overlay, name) == ("dev", "gpu"):
        assert "/spec/workerGroupSpecs/1/groupName failed: test failed" in said
        assert re.search(r"\| `components/gpu` \|.*not on `dev`", README)
    else:
        assert said == ""
        assert judged(text) == []


def test_the_overlays_have_what_is_left_out_above():
    assert set(ALREADY) == set(OVERLAYS)
    for overlay, names in ALREADY.items():
        text = (DEPLOY / "overlays" / overlay / "kustomization.yaml").read_text()
        text += (DEPLOY / "overlays" / "prod" / "kustomization.yaml").read_text() if overlay == "prod-gpu" else ""
        assert set(re.findall(r"\.\./\.\./components/([\w-]+)", text)) == names


def test_a_job_s_cluster_is_the_shared_one_as_the_components_have_changed_it():
    for name in (of_cluster() - {"kueue"}) | {"monitoring"}:
        shared = the(manifests(f"components/{name}"), "RayCluster")
        (job,) = (one for one in with_templates(parsed(tried("base", name, "rayjob")[0])) if one["kind"] == "RayJob")
        assert job["metadata"]["labels"] == shared["metadata"]["labels"], name
        del shared["spec"]["upgradeStrategy"]
        for spec in (shared["spec"], job["spec"]["rayClusterSpec"]):
            del spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]
        assert job["spec"]["rayClusterSpec"] == shared["spec"], name


def test_the_template_in_its_file_is_what_becomes_of_it_on_the_base():
    there = yaml.safe_load((DEPLOY / "components" / "rayjob" / "rayjob-template.yaml").read_text())
    text = the(manifests("components/rayjob"), "ConfigMap", "sampa-rayjob")["data"]["rayjob.yaml"]
    assert yaml.safe_load(text.replace(f"sampa:{image_tag()}", "sampa")) == there


def test_gpus_and_a_bucket_reach_the_jobs_of_prod():
    text, _ = tried("overlays/prod-gpu", "s3", "rayjob")
    assert judged(text) == []
    (cluster,) = clusters(parsed(text))
    groups = dict(cluster.groups())
    assert set(groups) == {"headgroup", "ondemand", "spot", "gpu-ondemand", "gpu-spot"}
    for group in groups.values():
        spec = group["template"]["spec"]
        assert spec["volumes"][0] == {"name": "state", "emptyDir": {}}
        assert "AWS_ACCESS_KEY_ID" in {one["name"] for one in spec["containers"][0]["env"]}
