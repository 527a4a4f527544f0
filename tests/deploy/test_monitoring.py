"""Rules and dashboard: Prometheus understands them, and they ask for metrics that are there."""

import json
import re
import subprocess

import yaml

from .manifests import manifests, the, tool
from .metrics import OURS, RAYS

OF_TARGETS = {"ray_io_cluster", "ray_io_node_type", "ray_io_group", "instance"}  # labels that scraping adds


def rules():
    return the(manifests("components/monitoring"), "PrometheusRule")["spec"]


def dashboard():
    return json.loads(the(manifests("components/monitoring"), "ConfigMap", "sampa-dashboard")["data"]["sampa.json"])


def expressions():
    alerts = [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    return alerts + [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def asked():
    """Return the metrics that rules and dashboard ask for."""
    return {name for text in expressions() for name in re.findall(r"\b(?:sampa|ray)_[a-z_]+\b(?!\s*=)", text)
            if not name.startswith("ray_io_")}  # fmt: skip


def promtool(tmp_path, spec):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(spec))
    return subprocess.run(
        [tool("promtool"), "check", "rules", path], capture_output=True, text=True, timeout=60, check=False
    )


def test_prometheus_understands_the_rules(tmp_path):
    done = promtool(tmp_path, rules())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {sum(len(group['rules']) for group in rules()['groups'])} rules found" in done.stdout


def test_prometheus_understands_the_dashboard(tmp_path):
    records = [{"record": f"r:{number}", "expr": text} for number, text in enumerate(expressions())]
    done = promtool(tmp_path, {"groups": [{"name": "dashboard", "rules": records}]})
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_would_refuse_what_is_broken(tmp_path):
    spec = rules()
    spec["groups"][0]["rules"][0]["expr"] += " and sum("
    assert promtool(tmp_path, spec).returncode == 1


def test_all_metrics_that_are_asked_for_are_there_and_all_of_ours_are_shown():
    assert asked() <= OURS.keys() | RAYS.keys()
    assert set(OURS) <= asked()


def test_labels_are_those_that_the_metrics_have():
    for text in expressions():
        names = [name for name in OURS | RAYS if re.search(rf"\b{name}\b", text)]
        has = set().union(*((OURS | RAYS)[name] for name in names)) | OF_TARGETS
        used = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", text) for label in group.split(",")}
        used |= {label for labels in re.findall(r"{([^}]*)}", text) for label in re.findall(r"(\w+)\s*[=!]~?", labels)}
        assert names, text
        assert used <= has, text


def test_ray_still_names_its_metrics_so():
    from pathlib import Path

    from ray.dashboard.modules import reporter

    text = (Path(reporter.__path__[0]) / "reporter_agent.py").read_text()
    assert [name for name in RAYS if f'"{name.removeprefix("ray_")}": Gauge(' not in text] == []


def test_every_alert_says_what_it_means_and_what_to_do():
    for rule in (rule for group in rules()["groups"] for rule in group["rules"]):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])


def test_panels_don_t_overlap():
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [
        (x, y)
        for one in places
        for x in range(one["x"], one["x"] + one["w"])
        for y in range(one["y"], one["y"] + one["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(one["x"] + one["w"] <= 24 for one in places)
