"""GET /metrics: what Prometheus reads, in a registry of this application's own: its requests, and what the store holds.

What is said of jobs is counted in the store when it is asked for, so every API process over a store says the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..service.census import Costs, Numbers, Pace
from ..service.states import Kind, moves_of
from ..service.store import Store, StoreUnavailable

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD, NO_ROUTE = "other", "unmatched"  # what strangers can make up has one label each
ANSWER_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
WAIT_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
CAUSES = ("start", "join", "leave", "loss", "preemption", "resume")  # shown before there are any, for rates

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "Samples in the text format of Prometheus, or of OpenMetrics if that is asked for"}
    },
    summary="Tell the numbers of the service",
)
def metrics(request: Request) -> Response:
    """Count, and return what Prometheus reads; without the store, only what this process knows."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics.registry), media_type=content_type)


class Leading(Protocol):
    """What is one of all API processes over a store."""

    @property
    def leads(self) -> bool: ...


class Metrics:
    """The numbers of one application.

    Args:
        store: What jobs are counted in.
        reconciler: Of this process.

    Attributes:
        registry: Where they are read.
    """

    def __init__(self, store: Store, reconciler: Leading) -> None:
        self.registry = CollectorRegistry()
        self._answers = Histogram(
            "sampa_http_request_duration_seconds",
            "Time until an answer began, so that a stream counts like any other",
            ["method", "route", "status"],
            buckets=ANSWER_S,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Counted(store, reconciler))

    def answered(self, method: str, route: str | None, status: int, took_s: float) -> None:
        """Count a request; ``route`` is its template, None where there is none."""
        known = method if method in METHODS else OTHER_METHOD
        self._answers.labels(known, route or NO_ROUTE, str(status)).observe(took_s)


class _Counted(Collector):
    """What is looked up when it is asked for."""

    def __init__(self, store: Store, reconciler: Leading) -> None:
        self._store, self._reconciler = store, reconciler

    def collect(self) -> Iterator[Metric]:
        leads = "Whether this process is the one that reconciles"
        yield _gauge("sampa_leader", leads, [([], self._reconciler.leads)])
        try:
            numbers = self._store.census.take()
        except StoreUnavailable:
            numbers = None
        yield _gauge(
            "sampa_store_up",
            "Whether the store answers; if not, what is counted in it is left out",
            [([], numbers is not None)],
        )
        if numbers is not None:
            yield from _of_store(numbers)


def _of_store(numbers: Numbers) -> Iterator[Metric]:
    counts = [([kind, state], numbers.states.get((kind, state), 0)) for kind in Kind for state in moves_of(kind)]
    yield _gauge("sampa_jobs", "How many there are in the store", counts, "kind", "state")
    yield from _of_running(numbers.running)
    yield from _of_elastic({**{cause: Costs() for cause in CAUSES}, **numbers.elastic}.items())
    yield _histogram("sampa_queue_wait_seconds", "From a submission to the first RUNNING", numbers.waits_s, WAIT_S)
    oldest = "How long the job or sweep has been QUEUED that has been so longest; 0: none is"
    yield _gauge("sampa_queue_oldest_seconds", oldest, [([], numbers.oldest_s)])
    starting = "How long the job or sweep has been STARTING that has been so longest; 0: none is"
    yield _gauge("sampa_starting_oldest_seconds", starting, [([], numbers.starting_s)])


def _of_running(running: Sequence[Pace]) -> Iterator[Metric]:
    mean = "the mean over its whole run, which hides that it slowed down; for that see sampa_job_step"
    for name, of, what in (
        ("step", "step", "The last step that a running job or trial told of; its deriv() is the present pace"),
        ("steps_per_second", "steps_per_second", f"Steps of a running job or trial, {mean}"),
        ("samples_per_second", "samples_per_second", f"Samples of a running job or trial, {mean}"),
        ("exchange_seconds", "exchange_s", "Exchange of gradients in its last step told, waiting included"),
    ):
        known = [(pace.id, getattr(pace, of)) for pace in running if getattr(pace, of) is not None]
        yield _gauge(f"sampa_job_{name}", what, [([job_id], value) for job_id, value in known], "job")


def _of_elastic(costs: Iterable[tuple[str, Costs]]) -> Iterator[Metric]:
    changes = CounterMetricFamily("sampa_elastic_events", "Changes of a job's workers", labels=["cause"])
    pauses = CounterMetricFamily(
        "sampa_elastic_pause_seconds", "Time that the other workers stood still for it", labels=["cause"]
    )
    lost = CounterMetricFamily("sampa_elastic_steps_lost", "Steps that had to be done again", labels=["cause"])
    for cause, cost in costs:
        changes.add_metric([cause], cost.changes)
        pauses.add_metric([cause], cost.pause_s)
        lost.add_metric([cause], cost.steps_lost)
    yield from (changes, pauses, lost)


def _gauge(name: str, what: str, samples: Iterable[tuple[Sequence[Any], float]], *labels: str) -> Metric:
    gauge = GaugeMetricFamily(name, what, labels=labels)
    for values, number in samples:
        gauge.add_metric([str(value) for value in values], float(number))
    return gauge


def _histogram(name: str, what: str, values: Sequence[float], bounds: Sequence[float]) -> Metric:
    found = [0] * (len(bounds) + 1)
    for value in values:
        found[bisect_left(bounds, value)] += 1
    histogram = HistogramMetricFamily(name, what)
    names = [*map(str, bounds), "+Inf"]
    histogram.add_metric([], list(zip(names, accumulate(found), strict=True)), sum(values))
    return histogram
