"""Prometheus metrics of serving.

Under gunicorn each worker writes to its own files in one folder
(`PROMETHEUS_MULTIPROC_DIR`, created by gunicorn.conf.py). The worker that
answers /metrics sums the files of all. Metrics that are the same in every
worker, such as the live runs, come from its own memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving import METRICS_FOLDER
from serving.state import State

LATENCY_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds of the latency histogram: an answer takes about 1 ms, a fallback about 50 ms."""

UNMATCHED = "unmatched"
"""Route label of every unknown path, so that clients cannot create series."""


class Metrics:
    """The metrics of one app. Safe to use from any thread and after a fork."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "overnight_requests_total",
            "Requests answered. Source and variant are empty for answers without a list.",
            ["route", "status", "source", "variant"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "overnight_request_seconds",
            "Time from a request's arrival in the app to its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self._series: dict[tuple[str, int, str, str], tuple[Counter, Histogram]] = {}
        self.redis_errors = Counter(
            "overnight_redis_errors_total",
            "Lookups that failed or timed out.",
            registry=self._registry,
        )
        self.breaker_open = Gauge(
            "overnight_breaker_open",
            "Workers whose last lookup failed: they send at most about one lookup a second to Redis.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.refresh_failures = Counter(
            "overnight_refresh_failures_total",
            "Refreshes of the state that failed.",
            registry=self._registry,
        )
        self.exposures_recorded = Counter(
            "overnight_exposures_recorded_total",
            "First pages of feeds that were recorded in Redis for the experiment.",
            registry=self._registry,
        )
        self.exposures_dropped = Counter(
            "overnight_exposures_dropped_total",
            "Pages of feeds that were not recorded: the queue was full, or Redis refused them.",
            registry=self._registry,
        )
        self.other_variant = Counter(
            "overnight_other_variant_total",
            "First pages of feeds from the other variant: the user's own variant has no live run.",
            ["assigned"],
            registry=self._registry,
        )
        self.explored_posts = Counter(
            "overnight_explored_posts_total",
            "Posts served in explored places.",
            registry=self._registry,
        )
        self.fast_path_errors = Counter(
            "overnight_fast_path_errors_total",
            "Requests that failed on the fast path and were passed to Flask.",
            registry=self._registry,
        )

    def count(self, route: str, status: int, source: str, variant: str, seconds: float) -> None:
        """Count one answered request."""
        # Finding a series by its labels takes as long as counting, so each is kept.
        labels = (route, status, source, variant)
        found = self._series.get(labels)
        if found is None:
            found = (self._requests.labels(*labels), self._seconds.labels(route))
            self._series[labels] = found
        requests, latency = found
        requests.inc()
        latency.observe(seconds)

    def exposition(self, state: State | None) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(LiveRuns(lambda: state))
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry) + generate_latest(registry)
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class LiveRuns(Collector):
    """The live run of each variant and its age, at the time of the scrape."""

    def __init__(self, state: Callable[[], State | None]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Return a sample for each variant with a live run; no samples while nothing is loaded."""
        age = GaugeMetricFamily(
            "overnight_live_run_age_seconds", "Time since the live run was published.", labels=["variant"]
        )
        info = GaugeMetricFamily(
            "overnight_live_run_info", "The live run's id; always 1.", labels=["variant", "run_id"]
        )
        state = self._state()
        for variant, run in (state.runs if state else {}).items():
            age.add_metric([variant], run.age_seconds(datetime.now(UTC)))
            info.add_metric([variant, run.run_id], 1)
        return [age, info]
