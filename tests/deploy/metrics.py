"""The metrics that rules and dashboard may ask for, each with its labels; histograms by the names of their series."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

# What the API says at /metrics.
OURS: dict[str, set[str]] = {
    "sampa_jobs": {"kind", "state"},
    "sampa_job_step": {"job"},
    "sampa_job_steps_per_second": {"job"},
    "sampa_job_samples_per_second": {"job"},
    "sampa_job_exchange_seconds": {"job"},
    "sampa_elastic_events_total": {"cause"},
    "sampa_elastic_pause_seconds_total": {"cause"},
    "sampa_elastic_steps_lost_total": {"cause"},
    "sampa_queue_wait_seconds_bucket": {"le"},
    "sampa_queue_oldest_seconds": set(),
    "sampa_starting_oldest_seconds": set(),
    "sampa_http_request_duration_seconds_bucket": {"method", "route", "status", "le"},
    "sampa_http_request_duration_seconds_count": {"method", "route", "status"},
    "sampa_leader": set(),
    "sampa_store_up": set(),
}
# What Ray says at its metrics ports, by the names that its reporter gives them.
RAYS: dict[str, set[str]] = {
    "ray_cluster_active_nodes": {"node_type"},
    "ray_cluster_pending_nodes": {"node_type"},
    "ray_cluster_failed_nodes": {"node_type"},  # no address, with the autoscaler v2
    "ray_node_cpu_utilization": {"ip"},
    "ray_node_mem_used": {"ip"},
}


def missing(url: str, asked: dict[str, set[str]]) -> list[str]:
    """Return which of these metrics, or of their labels, nobody finds at this URL."""
    answer = httpx.get(url, trust_env=False, timeout=30).raise_for_status()
    samples = [one for family in text_string_to_metric_families(answer.text) for one in family.samples]
    there = {one.name: set(one.labels) for one in samples}
    return [name for name, labels in asked.items() if name not in there or not labels <= there[name]]
