"""How runs are listed and shown, and how the command line explains itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from batch.commands.runs import render_summary
from batch.evaluation import PRIMARY_METRICS
from batch.evaluation.recipe_choice import Candidate, RecipeChoice
from batch.evaluation.render import sort_metrics
from batch.training.recipe import LIKED_IF_VIEWED, RANKED
from contract.manifest import Manifest
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)


def test_runs_are_listed_newest_first_for_people_and_for_scripts(night: LiveNetwork) -> None:
    records = night.run_json("runs")
    assert [record["run_id"] for record in records] == [night.run_of("test"), night.run_of("control")]
    assert {"variant", "state", "cutoff", "started_at", "actor", "reason"} <= set(records[0])
    assert records[0]["recipe"] == night.run_json("show", night.run_of("test"))["manifest"]["recipe"]["name"]
    assert records[0]["ndcg_at_10"] > 0
    assert records[0]["hitrate_at_5"] > 0
    assert [line.split()[0] for line in night.batch("runs").stdout.splitlines()[1:]] == [
        record["run_id"] for record in records
    ]
    assert len(night.run_json("runs", "--count", "1")) == 1


def test_show_tells_the_metrics_in_order_and_the_story_of_the_states(night: LiveNetwork) -> None:
    run_id = night.run_of("control")
    record = night.run_json("show", run_id)
    assert [change["state"] for change in record["changes"]] == ["building", "built", "live"]
    assert record["manifest"]["metrics"]["model"]["hitrate_at_5"] == night.run_json("runs")[1]["hitrate_at_5"]
    shown = night.batch("show", run_id).stdout.splitlines()
    forecast = record["manifest"]["publish"]["forecast_bytes"] / 2**20
    assert shown[2].startswith(f"Redis: forecast {forecast:.1f} MiB, reported ")
    viewed = next(number for number, line in enumerate(shown) if line.startswith("holdout (viewed-only)"))
    metrics = [
        line.split()[0]
        for line in shown[viewed:]
        if line.startswith(("hitrate", "roc_auc", "log_loss", "ndcg"))
    ]
    assert metrics[:6] == [
        "hitrate_at_5", "ndcg_at_5", "hitrate_at_10", "ndcg_at_10", "roc_auc", "log_loss"
    ]  # fmt: skip


def test_metrics_are_in_the_order_of_the_night_whatever_order_the_ledger_gives_them() -> None:
    of_the_night = ["hitrate_at_5", "map_at_5", "coverage_at_5", "hitrate_at_10", "ndcg_at_10", "roc_auc"]
    assert sort_metrics(sorted(of_the_night, key=len)) == of_the_night


NEW = ("judged", "why_not_judged", "recency_popularity", "warm", "cold", "differences", "recency")
"""What manifests of earlier releases do not have."""

GATE: list[dict[str, Any]] = [
    {"rule": "roc_auc", "value": None, "bound": -0.01, "passed": True, "why": "nothing is live"},
    {"rule": "users covered", "value": 1.0, "bound": 0.99, "passed": True, "why": "all of 60"},
    {"rule": "churn", "value": 0.02, "bound": [0.1, 1.0], "passed": False, "why": "0.08 too little"},
]


def test_a_run_that_the_gate_judged_shows_its_rules_those_it_failed_first(night: LiveNetwork) -> None:
    manifest = night.run_json("show", night.run_of("control"))["manifest"]
    lines = render_summary(Manifest.from_record(manifest | {"gate": GATE, "forced": True})).splitlines()
    at = lines.index("gate: 1 of 3 rules passed, 1 refused, 1 not compared, published anyway with --force")
    assert lines[at + 2].split() == ["REFUSED", "churn", "0.02", "0.1", "to", "1.0", "0.08", "too", "little"]
    assert lines[at + 3].startswith("not compared  roc_auc")
    assert lines[at + 4].startswith("passed        users covered")


def test_the_full_catalogue_comes_first_and_holdouts_that_cannot_judge_say_so(night: LiveNetwork) -> None:
    manifest = night.run_json("show", night.run_of("control"))["manifest"]
    lines = render_summary(Manifest.from_record(manifest)).splitlines()
    (full,) = [number for number, line in enumerate(lines) if line.startswith("full catalogue with likes")]
    (viewed,) = [number for number, line in enumerate(lines) if line.startswith("holdout (viewed-only)")]
    assert full < viewed
    assert lines[full + 2].split() == ["metric", "model", "random", "popularity", "recency", "popularity"]
    names = [line.split()[0] for line in lines[full + 3 : full + 9]]
    assert names == list(PRIMARY_METRICS)
    assert any(line.startswith("ndcg_at_10 of the model minus that of recency popularity") for line in lines)
    assert any(line.startswith("warm users: ") for line in lines[full:viewed])
    silent = {"judged": False, "why_not_judged": "no user liked a post"}
    metrics = manifest["metrics"]
    metrics |= {"full_catalogue": metrics["full_catalogue"] | silent}
    assert "too little data to evaluate a model: no user liked a post" in render_summary(
        Manifest.from_record(manifest)
    )


def test_a_manifest_of_an_earlier_release_is_still_shown(night: LiveNetwork) -> None:
    manifest = night.run_json("show", night.run_of("control"))["manifest"]
    for record in (manifest["metrics"], manifest["metrics"]["full_catalogue"]):
        for name in NEW:
            record.pop(name, None)
    for ranker in ("model", "random", "popularity"):
        for metric in ("overlap_at_10", "recall_at_20"):
            manifest["metrics"]["full_catalogue"][ranker].pop(metric)
    manifest["gate"] = GATE
    lines = render_summary(Manifest.from_record(manifest)).splitlines()
    assert [line.split() for line in lines].count(["metric", "model", "random", "popularity"]) == 2
    assert not any("recency" in line or "overlap" in line for line in lines)


def test_show_tells_what_was_learnt_and_what_it_was_chosen_from(night: LiveNetwork) -> None:
    manifest = night.run_json("show", night.run_of("control"))["manifest"]
    window = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC)
    tried = (Candidate(LIKED_IF_VIEWED, 0.02, 0.0, 0.0), Candidate(RANKED, 0.0312, 0.0112, 0.004))
    choice = RecipeChoice(RANKED, "it is best", tried, window, 321)
    lines = render_summary(Manifest.from_record(manifest | {"recipe": choice.record()})).splitlines()
    at = lines.index(
        f"recipe ranked: likes, each with 8 drawn posts; objective lambdarank; score: {RANKED.score_meaning}"
    )
    assert lines[at + 1 : at + 6] == [
        "chosen before the holdout, by the likes of 321 users from 2026-11-20T00:00:00+00:00 to "
        "2026-11-22T00:00:00+00:00: it is best",
        "recipe           ndcg@10  minus liked-if-viewed  standard error",
        "liked-if-viewed  0.0200   -                      -",
        "ranked           0.0312   +0.0112                0.0040",
        "",
    ]


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (RecipeChoice(LIKED_IF_VIEWED, "set by OVERNIGHT_RECIPE"), "set by OVERNIGHT_RECIPE"),
        (None, "the only recipe when the run was made"),
    ],
)
def test_show_has_one_line_where_there_was_no_choice(
    night: LiveNetwork, choice: RecipeChoice | None, why: str
) -> None:
    manifest = night.run_json("show", night.run_of("control"))["manifest"]
    del manifest["recipe"]
    lines = render_summary(
        Manifest.from_record(manifest | ({} if choice is None else {"recipe": choice.record()}))
    ).splitlines()
    at = lines.index(
        f"recipe liked-if-viewed ({why}): logged views; objective binary; "
        f"score: {LIKED_IF_VIEWED.score_meaning}"
    )
    assert lines[at - 1] == lines[at + 1] == ""
