"""The routes that operators and their tools ask: health, readiness, metrics, and what the API is."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Flask, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST

from contract.experiment import CONTROL, TEST
from contract.settings import Settings
from serving.guard import METRICS_PATH
from serving.openapi import load_document
from serving.service import Service
from serving.state import State

SECONDS_AN_HOUR = 3600


def add_operator_routes(app: Flask, service: Service, settings: Settings) -> None:
    """Add the routes that tell of the process rather than of posts."""
    document = load_document(settings.top_n)

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        state, now = service.state(), datetime.now(UTC)
        runs = {
            variant: {"run_id": run.run_id, "age_seconds": run.age_seconds(now)}
            for variant, run in state.runs.items()
        }
        warnings = warnings_of(state, now, settings.stale_after_hours)
        return jsonify({"status": "ready", "warnings": warnings, "runs": runs})

    @app.get(METRICS_PATH)
    def metrics() -> Response:
        return Response(service.metrics.exposition(service.live.current), content_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(document)


def warnings_of(state: State, now: datetime, stale_after_hours: float) -> list[str]:
    """Say what an operator should look at, though answers are still given; a line each."""
    warnings = []
    if state.stale:
        warnings.append("Redis cannot be read; what was loaded before is served")
    for variant, run in state.runs.items():
        hours = run.age_seconds(now) / SECONDS_AN_HOUR
        if hours > stale_after_hours:
            warnings.append(f"the live run of {variant} is {hours:.0f} hours old; was a night missed?")
    test_share = state.experiment.percent_test
    for variant, share in ((CONTROL, 100 - test_share), (TEST, test_share)):
        if share and variant not in state.runs:
            instead = state.run_of(variant).variant
            warnings.append(f"{variant} has no live run: its {share} % of users get {instead}'s lists")
    return warnings
