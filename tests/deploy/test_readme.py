"""deploy/README.md: what it names exists, its numbers are the manifests', its quick path leaves out nothing."""

import re
import shlex
import shutil
import subprocess

import yaml
from sampa.api.app import PASS_DEADLINE_S
from sampa.api.presets import preset_of
from sampa.api.serve import STREAMS_DEADLINE_S

from .consistency import DRAIN, given
from .manifests import (
    ALL,
    COMPONENTS,
    DEPLOY,
    OVERLAYS,
    ROOT,
    clusters,
    examples,
    kustomized,
    manifests,
    of_kind,
    parsed,
    pods,
    the,
    tool,
    variables,
)
from .test_mistakes import MISTAKES

TEXT = (DEPLOY / "README.md").read_text()
VERBS = ("apply", "create", "delete", "exec", "get", "port-forward", "replace", "rollout", "scale")
COMMANDS = [
    line[2:]
    for block in re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def commands(*words):
    return [command for command in map(shlex.split, COMMANDS) if command[: len(words)] == list(words)]


def option(command, name):
    return command[command.index(name) + 1]


def test_every_link_and_every_path_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (DEPLOY / target).exists(), target
    named = re.findall(r"`((?:overlays|components)/[\w-]+)`", TEXT)
    assert sorted(named) == sorted({*named})
    assert set(named) == {part for part in ALL if part != "base"}
    for path in re.findall(r"\bdeploy/[\w./-]+", " ".join(COMMANDS)):
        assert (ROOT / path).exists(), path


def test_its_rows_say_what_is_alpha():
    rows = re.findall(r"^\| `components/([\w-]+)`.*$", TEXT, re.MULTILINE)
    assert set(rows) <= set(COMPONENTS)
    for name in COMPONENTS:
        (row,) = re.findall(rf"^\| .*`components/{name}`.*$", TEXT, re.MULTILINE)
        assert ("**alpha**" in row) == ("# ALPHA" in (DEPLOY / "components" / name / "kustomization.yaml").read_text())


def test_the_secrets_of_the_quick_path_are_those_that_the_overlay_needs():
    made = {}
    for command in commands("kubectl", "--namespace", "sampa", "create", "secret", "generic"):
        literals = [word.partition("=")[2] for word in command if word.startswith("--from-literal=")]
        made[command[6]] = {literal.partition("=")[0] for literal in literals}
    needed = {source["secretKeyRef"]["name"] for pod in pods(manifests("overlays/dev")) for container in pod.containers
              for source in variables(container).values()
              if isinstance(source, dict) and not source["secretKeyRef"].get("optional")}  # fmt: skip
    assert set(made) == needed
    assert made == {name: examples()[name] for name in needed}


def test_the_quick_path_applies_what_it_waits_for_and_asks():
    applied, *_ = commands("kubectl", "apply", "--kustomize")
    documents = manifests(applied[3].removeprefix("deploy/"))
    assert applied[3].removeprefix("deploy/overlays/") in OVERLAYS
    namespace = the(documents, "Namespace")["metadata"]["name"]
    assert all(option(words, "--namespace") in (namespace, "kuberay-system") for words in map(shlex.split, COMMANDS)
               if "--namespace" in words)  # fmt: skip
    (forward,) = commands("kubectl", "--namespace", "sampa", "port-forward")
    (port,) = the(documents, "Service", forward[4].removeprefix("service/"))["spec"]["ports"]
    assert forward[5] == f"{port['port']}:{port['port']}"
    assert commands("kubectl", "--namespace", "sampa", "rollout")[0][5] == "deployment/sampa-api"
    assert the(documents, "Deployment", "sampa-api")
    assert commands("sampa") == [["sampa", "submit", "digits", "--follow"]]
    (inside,) = commands("kubectl", "--namespace", "sampa", "exec")
    assert inside[4] == "deployment/sampa-api"
    assert option(inside, "--url") == f"http://127.0.0.1:{port['port']}"
    assert preset_of("digits")
    postgres = the(documents, "Service", "sampa-postgres")["metadata"]["name"]
    assert f"@{postgres}/sampa" in TEXT


def test_the_images_that_are_made_are_those_that_pods_ask_for(tmp_path):
    """With kind, under the name in the manifests; else under the one that the reader is told to write there."""
    asked = {pod.spec["containers"][0]["image"] for pod in pods(manifests("overlays/dev")) if pod.kind != "StatefulSet"}
    built = [option(command, "--tag") for command in commands("docker", "build")]
    assert {command[3] for command in commands("kind", "load", "docker-image")} == asked == {built[0]}
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / "components" / "image" / "kustomization.yaml"
    (name,) = re.findall(r"`newName: (\S+)`", TEXT)
    path.write_text(re.sub(r"newName: \S+", f"newName: {name}", path.read_text()))
    documents = parsed(kustomized(tmp_path / "deploy" / "overlays" / "dev"))
    asked = {pod.spec["containers"][0]["image"] for pod in pods(documents) if pod.kind != "StatefulSet"}
    assert {command[2] for command in commands("docker", "push")} == asked == {built[1]}
    assert len(built) == 2


def test_the_node_that_is_asked_for_holds_all_of_dev():
    documents = manifests("overlays/dev")
    needed = [
        added["requests"]
        for cluster in clusters(documents)
        for added in [cluster.spec["autoscalerOptions"]["resources"]]
    ]
    for pod in pods(documents):
        copies = (pod.group or {}).get("maxReplicas", 1)
        needed += [container["resources"]["requests"] for container in pod.containers] * copies
    cpus, memory = (sum(amount(one[name]) for one in needed) for name in ("cpu", "memory"))
    said = re.search(r"with (\d+) processors and (\d+) GiB free on one node", TEXT)
    assert 0.5 < cpus / int(said[1]) <= 1
    assert 0.8 < memory / (int(said[2]) * 2**30) <= 1
    comment = (DEPLOY / "overlays" / "dev" / "kustomization.yaml").read_text().replace("\n# ", " ")
    assert f"{said[1]} processors and {said[2]} GiB free" in comment


def amount(quantity):
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi|)", quantity).groups()
    return int(number) * {"m": 0.001, "Mi": 2**20, "Gi": 2**30, "": 1}[unit]


def test_the_upgrade_stops_what_is_there_and_starts_as_many_as_the_least():
    documents = manifests("overlays/prod")
    stop, start = commands("kubectl", "--namespace", "sampa", "scale")
    assert (stop[4], option(stop, "--replicas")) == ("deployment/sampa-api", "0")
    least = the(documents, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert (start[4], option(start, "--replicas")) == ("deployment/sampa-api", str(least))
    ((*_, cluster, _),) = commands("kubectl", "--namespace", "sampa", "delete")
    assert cluster == f"raycluster/{the(documents, 'RayCluster')['metadata']['name']}"
    assert the(documents, "RayCluster")["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    (install,), (upgrade,) = commands("helm", "install"), commands("helm", "upgrade")
    assert option(install, "--version") == option(upgrade, "--version")
    (crds,) = commands("kubectl", "replace")
    assert crds[3].endswith(f"?ref=v{option(install, '--version')}")


def test_what_prod_needs_is_told():
    documents = manifests("overlays/prod")
    for kind in ("PodMonitor", "PrometheusRule"):
        assert {one["metadata"]["labels"]["release"] for one in of_kind(documents, kind)} == {"kube-prometheus-stack"}
    assert of_kind(documents, "HorizontalPodAutoscaler")
    assert "metrics server" in TEXT
    allowed = the(documents, "NetworkPolicy", "sampa-monitoring-to-ray")["spec"]["ingress"][0]["from"][0]
    (namespace,) = allowed["namespaceSelector"]["matchLabels"].values()
    assert f"namespace `{namespace}`" in re.sub(r"\s+", " ", TEXT)


def test_kubectl_has_the_options_that_are_used():
    for whole in map(shlex.split, COMMANDS):
        command = whole[: whole.index("--")] if "--" in whole else whole
        if command[0] == "kubectl":
            words = [word for word in command[1:] if word in VERBS]
            sub = {"create": ["create", "secret", "generic"], "rollout": ["rollout", "status"]}.get(words[0], words[:1])
            shown = subprocess.run(
                [tool("kubectl"), *sub, "--help"], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            shown += "--namespace"
            for word in command:
                if word.startswith("--"):
                    assert word.partition("=")[0] in shown, f"{command}: {word}"


def test_the_operator_is_the_version_that_is_told_and_watches_the_namespace():
    (install,) = commands("helm", "install")
    values = yaml.safe_load((ROOT / option(install, "--values")).read_text())
    assert values["image"]["tag"] == f"v{option(install, '--version')}"
    assert f"| KubeRay operator | {option(install, '--version')} |" in TEXT
    assert values["watchNamespace"] == [the(manifests("base"), "Namespace")["metadata"]["name"]]
    assert option(install, "--namespace") == "kuberay-system"
    policies = of_kind(manifests("components/rayjob"), "NetworkPolicy")
    assert any(option(install, "--namespace") in str(policy) for policy in policies)


def test_the_arithmetic_is_that_of_the_manifests():
    rows = {
        row[0]: (float(row[1]), float(row[2])) for row in re.findall(r"^\| (\w+) \| (\d+) s \| (\d+) s \|", TEXT, re.M)
    }
    documents = manifests("overlays/prod-gpu")
    for pod in pods(documents):
        grace = pod.spec["terminationGracePeriodSeconds"]
        if pod.group is not None:
            assert rows[pod.labels["ray.io/node-type"]] == (float(variables(pod.spec["containers"][0])[DRAIN]), grace)
        else:
            assert rows["API"] == (float(given(documents, pod)["SAMPA_DRAIN_S"]), grace)
    assert f"then {STREAMS_DEADLINE_S} s for open streams and up to {PASS_DEADLINE_S:g} s" in TEXT
    (head,) = (pod for pod in pods(documents) if pod.labels.get("ray.io/node-type") == "head")
    running = int(the(documents, "ConfigMap", "sampa-config")["data"]["SAMPA_MAX_RUNNING"])
    assert head.spec["containers"][0]["resources"]["limits"]["memory"] == f"{2 + running}Gi"
    assert f"{running} jobs,\n  {2 + running} GiB" in TEXT


def test_the_numbers_of_workers_are_those_of_the_overlays():
    groups = {name: {group["groupName"]: group["maxReplicas"] for group in
                     the(manifests(f"overlays/{name}"), "RayCluster")["spec"]["workerGroupSpecs"]}
              for name in OVERLAYS}  # fmt: skip
    assert groups["dev"] == {"ondemand": 2}
    assert groups["prod"] == {"ondemand": 4, "spot": 8}
    assert groups["prod-gpu"] == groups["prod"] | {"gpu-ondemand": 2, "gpu-spot": 8}
    assert "up to 4 workers on demand and 8 on spot nodes, monitoring" in TEXT
    assert "up to 2 workers on demand and 8 on spot nodes with a GPU each" in TEXT


def test_it_doesn_t_say_more_mistakes_than_there_are():
    assert len(MISTAKES) > int(re.search(r"Over (\d+) mistakes", TEXT)[1])
