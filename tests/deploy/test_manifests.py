"""Each overlay, and each component alone on the base, is a deployment without a fault."""

import pytest
from sampa.api.app import create_app
from sampa.service.rayjob import read_template
from sampa.service.settings import ServiceSettings

from .consistency import port_faults, reference_faults, variable_faults
from .judge import faults
from .manifests import ALL, DEPLOY, clusters, composed, manifests, of_kind, parsed, pods, the
from .rules import GATES, ROCKSDB_GATE
from .schemas import schema_faults


@pytest.mark.parametrize("part", ALL)
def test_it_has_no_fault(part):
    assert faults(manifests(part)) == []


def test_a_prefix_and_a_hash_reach_what_ray_refers_to():
    documents = parsed(composed({
        "resources": ["base"], "namePrefix": "my-",
        "secretGenerator": [{"name": "sampa-ray-auth", "namespace": "sampa", "literals": ["auth_token=x"]},
                            {"name": "sampa-secrets", "namespace": "sampa",
                             "literals": ["SAMPA_TOKEN=x", "SAMPA_STORE_URL=x"]}],
    }))  # fmt: skip
    assert list(reference_faults(documents)) == []
    (left,) = port_faults(documents)
    assert "SAMPA_RAY_ADDRESS is http://sampa-head-svc:8265, but the head's service is http://my-sampa-head-svc" in left
    assert "`namePrefix` isn't supported: the address of Ray's head" in (DEPLOY / "README.md").read_text()
    name = the(documents, "RayCluster")["spec"]["authOptions"]["secretName"]
    assert name.startswith("my-sampa-ray-auth-")
    assert the(documents, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "my-sampa-api"


@pytest.mark.parametrize("part", ["overlays/prod-gpu", "components/rayjob"])
def test_another_namespace_is_one_for_all_of_it(part):
    base, components = ("base", [part]) if part.startswith("components/") else (part, [])
    documents = parsed(composed({"namespace": "team", "resources": [base], "components": components}))
    assert faults(documents) == []
    assert the(documents, "Namespace")["metadata"]["name"] == "team"


def test_another_image_reaches_all_pods_and_ray_s_version(tmp_path):
    import shutil

    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / "components" / "image" / "kustomization.yaml"
    path.write_text(
        path.read_text()
        .replace("newName: sampa ", "newName: host:5000/team/sampa ")
        .replace("0.1.0-ray2.60.0", "9-ray3.1")
    )
    from .manifests import kustomized

    for part in ("overlays/prod-gpu", "overlays/dev"):
        documents = parsed(kustomized(tmp_path / "deploy" / part))
        assert {cluster.spec["rayVersion"] for cluster in clusters(documents)} == {"3.1"}
        images = {pod.spec["containers"][0]["image"] for pod in pods(documents) if pod.kind != "StatefulSet"}
        assert images == {"host:5000/team/sampa:9-ray3.1"}
    (tmp_path / "own").mkdir()
    own = "resources: [../deploy/base]\ncomponents: [../deploy/components/rayjob]\n"
    (tmp_path / "own" / "kustomization.yaml").write_text(own)
    documents = parsed(kustomized(tmp_path / "own"))
    assert {cluster.spec["rayVersion"] for cluster in clusters(documents)} == {"3.1"}
    assert {pod.spec["containers"][0]["image"] for pod in pods(documents)} == {"host:5000/team/sampa:9-ray3.1"}


def test_the_api_can_start_jobs_from_the_template(tmp_path):
    documents = manifests("components/rayjob")
    path = tmp_path / "rayjob.yaml"
    path.write_text(the(documents, "ConfigMap", "sampa-rayjob")["data"]["rayjob.yaml"])
    assert read_template(path)["kind"] == "RayJob"


def test_only_a_job_s_backend_of_its_own_has_rights_in_the_cluster():
    for part in ALL:
        roles = of_kind(manifests(part), "Role")
        assert bool(roles) == (part == "components/rayjob"), part
    pairs = {(verb, resource) for role in of_kind(manifests("components/rayjob"), "Role") for rule in role["rules"]
             for verb in rule["verbs"] for resource in rule["resources"]}  # fmt: skip
    assert pairs == {(verb, "rayjobs") for verb in ("create", "get", "list", "delete")}


class Nothing:
    """A reconciler that does nothing."""

    leads = False

    def run(self, stop): ...
    def wake(self): ...
    def health(self):
        return {}


def test_probes_ask_at_routes_of_the_app(tmp_path):
    app = create_app(ServiceSettings(state_dir=tmp_path), reconciler=Nothing())
    routes = set(app.openapi()["paths"])
    (api,) = (pod for pod in pods(manifests("base")) if pod.kind == "Deployment")
    asked = {
        name: api.spec["containers"][0][f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert asked == {"startup": "/livez", "readiness": "/readyz?exclude=ray", "liveness": "/livez"}
    assert {path.partition("?")[0] for path in asked.values()} <= routes


@pytest.mark.parametrize("part", ["components/ingress", "components/gateway"])
def test_all_but_metrics_is_reached_from_outside(part, tmp_path):
    documents = manifests(part)
    if part == "components/ingress":
        (rule,) = the(documents, "Ingress")["spec"]["rules"]
        open_to = [(one["path"], one["pathType"] == "Prefix") for one in rule["http"]["paths"]]
    else:
        (rule,) = the(documents, "HTTPRoute")["spec"]["rules"]
        open_to = [(one["path"]["value"], one["path"]["type"] == "PathPrefix") for one in rule["matches"]]
    app = create_app(ServiceSettings(state_dir=tmp_path), reconciler=Nothing())
    reached = {
        route
        for route in {*app.openapi()["paths"], app.openapi_url}
        if any(route == path or (prefix and route.startswith(f"{path}/")) for path, prefix in open_to)
    }
    assert {*app.openapi()["paths"], app.openapi_url} - reached == {"/metrics"}


def test_the_way_to_an_identity_is_a_policy():
    (policy,) = parsed((DEPLOY / "components" / "s3" / "identity.example.yaml").read_text())
    assert schema_faults([policy]) == []
    assert policy["metadata"]["namespace"] == the(manifests("base"), "Namespace")["metadata"]["name"]


def test_the_settings_are_those_that_the_service_takes():
    (api,) = (pod for pod in pods(manifests("base")) if pod.kind == "Deployment")
    assert list(variable_faults(manifests("base"))) == []
    data = the(manifests("base"), "ConfigMap", "sampa-config")["data"]
    known = {
        name: data[f"SAMPA_{name.upper()}"] for name in ServiceSettings.model_fields if f"SAMPA_{name.upper()}" in data
    }
    assert ServiceSettings(**known).max_running == 8
    assert api.spec["containers"][0]["command"] == ["sampa", "serve"]


def test_what_is_alpha_says_so_and_is_off():
    import yaml

    gates = {
        one["name"]: one["enabled"]
        for one in yaml.safe_load((DEPLOY / "operator" / "values.yaml").read_text())["featureGates"]
    }
    alpha = {*GATES.values(), ROCKSDB_GATE, "RayCronJob"}
    assert {name for name, on in gates.items() if not on} == alpha
    marked = {
        path.parent.name: path.read_text()
        for path in DEPLOY.glob("components/*/kustomization.yaml")
        if "# ALPHA" in path.read_text()
    }
    assert len(marked) == len(alpha)
    assert all(any(gate in text for text in marked.values()) for gate in alpha)
    assert all(f"components/{name}" in (DEPLOY / "operator" / "values.yaml").read_text() for name in marked)


def test_argocd_leaves_alone_what_the_autoscalers_set():
    (application,) = parsed((DEPLOY / "argocd" / "application.yaml").read_text())
    ignored = {path for one in application["spec"]["ignoreDifferences"] for path in one["jqPathExpressions"]}
    assert ignored == {".spec.workerGroupSpecs[].replicas", ".spec.workerGroupSpecs[].scaleStrategy", ".spec.replicas"}
    assert schema_faults([application]) == []
    assert (DEPLOY.parent / application["spec"]["source"]["path"] / "kustomization.yaml").exists()
    assert "RespectIgnoreDifferences=true" in application["spec"]["syncPolicy"]["syncOptions"]


def test_argocd_never_deletes_what_holds_checkpoints():
    """It prunes what leaves the overlay, as the claim does with s3."""
    for part in ("overlays/dev", "overlays/prod"):
        for kind in ("Namespace", "PersistentVolumeClaim"):
            kept = the(manifests(part), kind)["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
            assert set(kept.split(",")) == {"Prune=false", "Delete=false"}
