"""GET /metrics: all of it parses, its values are those of the store and of the requests, and labels stay few."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from sampa.api.app import create_app
from sampa.api.logs import JsonLines
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import Job, Store, StoreUnavailable

from ..service.samples import begun_trial
from .conftest import SPEC, AppTransport, elastic
from .fakes import IdleReconciler

NAMES = {
    "sampa_jobs",
    "sampa_job_step",
    "sampa_job_steps_per_second",
    "sampa_job_samples_per_second",
    "sampa_job_exchange_seconds",
    "sampa_elastic_events",
    "sampa_elastic_pause_seconds",
    "sampa_elastic_steps_lost",
    "sampa_queue_wait_seconds",
    "sampa_queue_oldest_seconds",
    "sampa_starting_oldest_seconds",
    "sampa_http_request_duration_seconds",
    "sampa_leader",
    "sampa_store_up",
}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(http: httpx.Client) -> Samples:
    """Return the value of each sample by name and labels."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = [sample for family in parse(answer.text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(values) == len(found), "no sample is there twice"
    return values


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def test_every_name_is_there_and_no_token_is_needed(stranger: httpx.Client) -> None:
    stranger.get("/livez")
    families = {family.name for family in parse(stranger.get("/metrics").text)}
    assert families >= NAMES
    assert {name for name in families if name.startswith("sampa_")} - NAMES <= {
        "sampa_http_request_duration_seconds_created"
    }
    assert "process_resident_memory_bytes" in families


def test_those_who_ask_for_openmetrics_get_it(stranger: httpx.Client) -> None:
    answer = stranger.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(answer.text)} >= NAMES


def test_jobs_are_counted_by_kind_and_state(http: httpx.Client, store: Store, running: Job) -> None:
    begun_trial(store)
    http.post("/v1/jobs", json=SPEC)
    samples = scraped(http)
    assert value(samples, "sampa_jobs", kind="job", state="RUNNING") == 1
    assert value(samples, "sampa_jobs", kind="job", state="QUEUED") == 1
    assert value(samples, "sampa_jobs", kind="job", state="FAILED") == 0
    assert value(samples, "sampa_jobs", kind="sweep", state="RUNNING") == 1
    assert value(samples, "sampa_jobs", kind="trial", state="RUNNING") == 1
    assert value(samples, "sampa_queue_wait_seconds_count") == 2
    assert value(samples, "sampa_queue_wait_seconds_bucket", le="+Inf") == 2
    assert value(samples, "sampa_queue_wait_seconds_bucket", le="60.0") == 2
    oldest = value(samples, "sampa_queue_oldest_seconds")
    assert oldest is not None
    assert 0 < oldest < 60


def test_a_job_that_does_not_get_beyond_starting_is_seen(http: httpx.Client, store: Store, job: Job) -> None:
    assert value(scraped(http), "sampa_starting_oldest_seconds") == 0
    store.move(job.id, State.STARTING, next_attempt=True)
    assert 0 < (value(scraped(http), "sampa_starting_oldest_seconds") or 0) < 60
    store.move(job.id, State.RUNNING)
    assert value(scraped(http), "sampa_starting_oldest_seconds") == 0


def test_a_running_job_tells_its_pace_and_one_that_has_ended_drops_out(
    http: httpx.Client, store: Store, running: Job
) -> None:
    progress = {"step": 9, "seconds_per_step": 0.02, "exchange_seconds": 0.004}
    store.append(running.id, [], attempt=1, progress=progress)
    samples = scraped(http)
    assert value(samples, "sampa_job_step", job=running.id) == 9
    assert value(samples, "sampa_job_steps_per_second", job=running.id) == 50
    assert value(samples, "sampa_job_samples_per_second", job=running.id) == 50 * SPEC["batch_size"]
    assert value(samples, "sampa_job_exchange_seconds", job=running.id) == 0.004
    store.move(running.id, State.SUCCEEDED)
    assert not [labels for _, labels in scraped(http) if dict(labels).get("job")]


def test_changes_of_workers_are_summed_by_cause(http: httpx.Client, store: Store, running: Job) -> None:
    lost = elastic("loss", 3, 2, 1, steps_lost=1, recovery_seconds=0.75)
    store.append(running.id, [elastic("start", 0, 0, 2), lost, lost], attempt=1)
    for _ in range(2):  # reading it counts nothing twice
        samples = scraped(http)
        assert value(samples, "sampa_elastic_events_total", cause="loss") == 2
        assert value(samples, "sampa_elastic_pause_seconds_total", cause="loss") == 1.5
        assert value(samples, "sampa_elastic_steps_lost_total", cause="loss") == 2
        assert value(samples, "sampa_elastic_events_total", cause="start") == 1
        assert value(samples, "sampa_elastic_events_total", cause="preemption") == 0


def requests_in(samples: Samples) -> Counter[tuple[str, str, str]]:
    name = "sampa_http_request_duration_seconds_count"
    found = {
        tuple(dict(labels)[one] for one in ("method", "route", "status")): number
        for (of, labels), number in samples.items()
        if of == name
    }
    return Counter({(method, route, status): int(number) for (method, route, status), number in found.items()})


def test_requests_are_counted_by_the_route_and_what_strangers_make_up_is_one(
    http: httpx.Client, stranger: httpx.Client, job: Job
) -> None:
    for some_id in (job.id, "nobody", "nobody-else"):
        http.get(f"/v1/jobs/{some_id}")
    for path in ("/no/1", "/no/2", "/v1/jobs"):
        stranger.get(path)
    http.get("/elsewhere")
    for method in ("BREW", "WHEN"):
        http.request(method, "/v1/jobs")
    assert requests_in(scraped(http)) == {
        ("GET", "/v1/jobs/{job_id}", "200"): 1,
        ("GET", "/v1/jobs/{job_id}", "404"): 2,
        ("GET", "unmatched", "401"): 3,
        ("GET", "unmatched", "404"): 1,
        ("other", "/v1/jobs", "405"): 2,
    }


def test_what_goes_wrong_in_the_server_is_counted_too(
    http: httpx.Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "jobs", None)
    assert http.get("/v1/jobs").status_code == 500
    assert requests_in(scraped(http)) == {("GET", "/v1/jobs", "500"): 1}


def test_two_applications_share_no_number(
    settings: ServiceSettings, store: Store, reconciler: IdleReconciler, http: httpx.Client
) -> None:
    http.get("/v1/jobs")
    other = create_app(settings, store, reconciler)
    with httpx.Client(transport=AppTransport(other), base_url="http://sampa.test") as client:
        assert not requests_in(scraped(client))
    assert requests_in(scraped(http))


@pytest.mark.parametrize(("leads", "shown"), [(None, 1), (True, 1), (False, 0)])
def test_the_leader_says_so(stranger: httpx.Client, reconciler: Any, leads: bool | None, shown: float) -> None:
    if leads is not None:
        reconciler.leads = leads
    assert value(scraped(stranger), "sampa_leader") == shown


def test_without_the_store_the_process_still_tells_of_itself(
    stranger: httpx.Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailable("sqlite://", "gone")

    assert value(scraped(stranger), "sampa_store_up") == 1
    monkeypatch.setattr(store.census, "take", away)
    samples = scraped(stranger)
    assert value(samples, "sampa_store_up") == 0
    assert value(samples, "sampa_leader") == 1
    assert not [name for name, _ in samples if name == "sampa_jobs"]


def test_it_is_described_as_text(app: FastAPI) -> None:
    operation = app.openapi()["paths"]["/metrics"]["get"]
    assert operation["security"] == []
    assert list(operation["responses"]["200"]["content"]) == ["text/plain"]


def test_many_scrapes_at_once_agree(http: httpx.Client, app: FastAPI, store: Store, running: Job) -> None:
    store.append(running.id, [elastic("loss", 3, 2, 1, recovery_seconds=0.5)] * 10, attempt=1)
    threads = [threading.Thread(target=store.census.take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert value(scraped(http), "sampa_elastic_events_total", cause="loss") == 10


def test_each_request_is_one_line_where_the_log_is_json_but_those_of_probes(
    settings: ServiceSettings,
    store: Store,
    reconciler: IdleReconciler,
    token: str,
    job: Job,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = create_app(settings.model_copy(update={"log_format": "json"}), store, reconciler)
    caplog.set_level(logging.INFO, "sampa.requests")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test", headers=headers) as client:
        for path in ("/livez", "/readyz", "/metrics", f"/v1/jobs/{job.id}?wait=1"):
            client.get(path)
        reconciler.ray = "does not answer"
        client.get("/readyz")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "sampa.requests"]
    assert [(line["path"], line["status"], line.get("job")) for line in lines] == [
        (f"/v1/jobs/{job.id}", 200, job.id),
        ("/readyz", 503, None),
    ]
    assert lines[0]["message"] == f"GET /v1/jobs/{job.id} 200"
    assert lines[0]["took_ms"] > 0
    assert token not in json.dumps(lines)
