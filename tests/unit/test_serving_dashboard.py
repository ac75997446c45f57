"""Dashboard, alert rules and README against the metrics that the code declares."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from contract.experiment import NO_EXPERIMENT
from serving.metrics import Metrics
from serving.state import Run, State
from serving.texts import Texts
from tests.support.readme_checks import ROOT, rows
from tests.support.serving import CONTROL_RUN

DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = YAML(typ="safe").load(ROOT / "docs/alert-rules.yml")["groups"][0]["rules"]

SUFFIX = re.compile(r"_(bucket|count|sum)$")
RATE_INTERVAL = "$__rate_interval"


def declared() -> dict[str, set[str]]:
    """Return every metric of serving with its labels, as Prometheus is told of them."""
    run = Run(CONTROL_RUN, "control", datetime.now(UTC), [])
    state = State({"control": run}, NO_EXPERIMENT, frozenset(), Texts({}))
    metrics = Metrics()
    metrics.count("route", 200, "personal", "control", 0.001)
    metrics.other_variant.labels("test").inc()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition(state).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels.setdefault(SUFFIX.sub("", sample.name), set()).update(set(sample.labels) - {"le"})
    return labels


def queries() -> list[str]:
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [expr.replace(RATE_INTERVAL, "5m") for expr in shown] + [rule["expr"] for rule in RULES]


@pytest.mark.parametrize("query", queries())
def test_a_query_is_promql_over_metrics_and_labels_that_are_there(query: str) -> None:
    promql_parser.parse(query)
    metrics = {SUFFIX.sub("", name) for name in re.findall(r"\bovernight_\w+", query)}
    assert metrics
    labels = set().union(*(declared()[name] for name in metrics))
    grouped = {label.strip() for words in re.findall(r"by \(([^)]*)\)", query) for label in words.split(",")}
    matched = set(re.findall(r"[{,](\w+)[=!]", query))
    assert grouped | matched <= labels | {"le"}


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert {SUFFIX.sub("", name) for name in re.findall(r"\bovernight_\w+", shown)} == set(declared())


def test_panels_have_places_of_their_own() -> None:
    cells = [
        (position["x"] + x, position["y"] + y)
        for position in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(position["w"])
        for y in range(position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_reference_lists_every_metric() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    listed = {name: set(re.findall(r"`(\w+)`", meaning)) for name, meaning in rows(page, "Metric")}
    assert listed == declared()
