"""Rules and dashboard: Prometheus understands them, and they ask for metrics that are there."""

import json
import re
import subprocess

import pytest
import yaml

from .manifests import manifests, of_kind, the, tool
from .metrics import OURS, RAYS

OF_TARGETS = {
    "namespace",
    "ray_io_cluster",
    "ray_io_node_type",
    "ray_io_group",
    "instance",
}  # labels that scraping adds
OF_THE_OPERATOR = {"job", "namespace", "pod", "container", "endpoint", "instance"}  # those that PodMonitors always have


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


def test_labels_of_ours_win_over_those_that_scraping_adds():
    """Prometheus would call our job exported_job, and its own would be there by that name."""
    assert any(labels & OF_THE_OPERATOR for labels in OURS.values())
    (monitor,) = (one for one in of_kind(manifests("components/monitoring"), "PodMonitor")
                  if one["metadata"]["name"] == "sampa-api")  # fmt: skip
    assert all(end["honorLabels"] for end in monitor["spec"]["podMetricsEndpoints"])


def test_one_prometheus_may_watch_several_deployments():
    for rule in (rule for group in rules()["groups"] for rule in group["rules"]):
        grouped = re.findall(r"\b(?:sum|min|max|group) by \(([^)]*)\)", rule["expr"])
        assert grouped, rule["alert"]
        assert all("namespace" in labels.split(", ") for labels in grouped), rule["alert"]
        assert not re.search(r"\b(?:sum|min|max)\(", rule["expr"]), rule["alert"]
    for text in (target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]):
        asked_for = re.findall(r"\b(?:sampa|ray)_(?!io_)[a-z_]+\b(?=[{\[)])", text)
        assert text.count('namespace="$namespace"') == len(asked_for), text
    assert [one["name"] for one in dashboard()["templating"]["list"]] == ["datasource", "namespace"]


LEADS = {'sampa_leader{namespace="a", pod="1"}': "1x60", 'sampa_leader{namespace="b", pod="1"}': "1x60"}
HEAD = 'ray_cluster_active_nodes{namespace="%s", ray_io_cluster="%s", node_type="headgroup"}'
FIRES = {  # what Prometheus sees each minute, which alert, and for whom it is up after 50 minutes
    "two deployments with a leader each": (LEADS, "SampaTwoReconcile", []),
    "two leaders of one": (LEADS | {'sampa_leader{namespace="b", pod="2"}': "1x60"}, "SampaTwoReconcile", ["b"]),
    "all well": (LEADS, "SampaNobodyReconciles", []),
    "no leader beside one who has": (
        LEADS | {'sampa_leader{namespace="c", pod="1"}': "0x60"},
        "SampaNobodyReconciles",
        ["c"],
    ),
    "one that is silent beside one who isn't": (
        LEADS | {'sampa_leader{namespace="c", pod="1"}': "1x20"},
        "SampaNobodyReconciles",
        ["c"],
    ),
    "a head that went": ({HEAD % ("a", "sampa"): "1x20", HEAD % ("b", "sampa"): "1x60"}, "RayHeadIsGone", ["a"]),
    "heads of jobs that went": ({HEAD % ("a", "sampa-0123-1-x"): "1x20"}, "RayHeadIsGone", []),
    "a long start": ({'sampa_starting_oldest_seconds{namespace="a"}': "0+60x60"}, "SampaJobWaitsForWorkers", ["a"]),
    "starts one after the other": (
        {'sampa_starting_oldest_seconds{namespace="a"}': "600x60"},
        "SampaJobWaitsForWorkers",
        [],
    ),
    "a job that trains": ({'sampa_job_step{namespace="a", job="x", pod="1"}': "0+9x60"}, "SampaJobStandsStill", []),
    "a job that stands": ({'sampa_job_step{namespace="a", job="x", pod="1"}': "7x60"}, "SampaJobStandsStill", ["a"]),
    "a job that is new": ({'sampa_job_step{namespace="a", job="x", pod="1"}': "_x30 7x30"}, "SampaJobStandsStill", []),
    "a job that has ended": ({'sampa_job_step{namespace="a", job="x", pod="1"}': "7x40"}, "SampaJobStandsStill", []),
    "a job that trains, told by a new API": (
        {
            'sampa_job_step{namespace="a", job="x", pod="1"}': "0+9x48",
            'sampa_job_step{namespace="a", job="x", pod="2"}': "_x49 500x11",
        },
        "SampaJobStandsStill",
        [],
    ),
}


@pytest.mark.parametrize("case", FIRES)
def test_an_alert_is_up_for_those_whom_it_means(case, tmp_path):
    series, alert, namespaces = FIRES[case]
    (rule,) = (rule for group in rules()["groups"] for rule in group["rules"] if rule["alert"] == alert)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    of_job = {"job": "x"} if "sampa_job_step" in str(series) else {}
    expected = [
        {"exp_labels": {"namespace": name, **of_job, **rule["labels"]}, "exp_annotations": rule["annotations"]}
        for name in namespaces
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "50m", "alertname": alert, "exp_alerts": expected}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "test.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
