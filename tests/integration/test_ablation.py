"""`benchmarks.ablation` on a database: what a case changes, what it is compared with, what is left out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.loading.examples import Examples
from batch.training import fit
from batch.training.dataset import Dataset
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, RANKED, RECIPES
from batch.variants import MODELS
from benchmarks import ablation
from benchmarks.ablation import (
    CASES,
    COUNTERS,
    RECENCY,
    MissingPartError,
    Setup,
    fit_setup,
    hide_columns,
    limit_windows,
    merge_windows,
)
from contract.experiment import CONTROL, TEST
from tests.support.batch import FIRST_DAY, execute, make_network
from tests.support.evaluation import load_database, load_small_network, make_settings, run_benchmark

CUTOFF = FIRST_DAY + timedelta(days=20)
BY_NAME = {case.name: case for case in CASES}
METRICS = ("ndcg_at_10", "low", "high", "recall_at_20", "coverage_at_10", "users", "seconds")


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fit.PARAMETERS, "num_iterations", 10)


def features_of(name: str, case: str, dataset: Dataset) -> set[str]:
    """Fit one case of a variant, and return the names of its features."""
    setup = BY_NAME[case].change(Setup(MODELS[name], LIKED), dataset)
    dataset = replace(dataset, network=hide_columns(dataset.network, setup))
    model = fit_setup(setup, dataset, make_settings("postgresql://unused"))
    return {feature.name for feature in model.tables(dataset.network, dataset.now).columns}


def test_a_case_leaves_out_its_features_and_no_others(database_url: str) -> None:
    make_network(database_url, users=120, interactions=6_000)
    execute(
        database_url,
        "ALTER TABLE recs.posts ADD COLUMN length integer",
        "UPDATE recs.posts SET length = post_id % 9",
    )
    dataset = load_database(database_url, CUTOFF)
    profile = {"user_age", "user_city", "user_subscribed"}
    base = features_of(CONTROL, "base", dataset)
    text = {feature.name for feature in dataset.text.features}
    assert text | profile | {"post_length"} < base
    left_out = {
        "without fading likes": {name for name in base if "fading" in name},
        "without recency": {name for name in base if name.startswith(RECENCY)},
        "without counters of posts": {name for name in base if name.startswith(COUNTERS)},
        "without columns of posts": {"post_length"},
        "without text": text,
        "without profile of users": profile,
        "without affinity by topic": {"topic_share", "topic_like_rate"},
        "liked with 8 negatives": set(),
        "one window": set(),
    }
    for case, features in left_out.items():
        assert base - features_of(CONTROL, case, dataset) == features, case
    for prefix in (*COUNTERS, *RECENCY):
        assert any(name.startswith(prefix) for name in base), prefix


def test_a_part_that_only_test_has_is_left_out_of_test(database_url: str) -> None:
    dataset = load_small_network(database_url)
    base = features_of(TEST, "base", dataset)
    of_clusters = {name for name in base if name.startswith("cluster_")}
    assert {"topic_people", "cluster_people"} < base
    assert base - features_of(TEST, "without affinity by cluster", dataset) == of_clusters
    cohorts = {"topic_people", "cluster_people"}
    assert base - features_of(TEST, "without people like the user", dataset) == cohorts
    setup = BY_NAME["without factors"].change(Setup(MODELS[TEST], LIKED), dataset)
    settings = make_settings(database_url)
    assert fit_setup(setup, dataset, settings).log_odds is None
    assert fit_setup(Setup(MODELS[TEST], LIKED), dataset, settings).log_odds is not None


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_windows_have_the_same_labels_and_earlier_features(database_url: str, count: int) -> None:
    windows = load_small_network(database_url).windows
    assert len(windows) > 3
    merged = merge_windows(windows, count)
    assert len(merged) == count
    assert merged[0].history is windows[0].history
    starts = [windows.index(next(old for old in windows if old.history is new.history)) for new in merged]
    sizes = np.diff([*starts, len(windows)])
    assert max(sizes) - min(sizes) <= 1
    for new, start, stop in zip(merged, starts, [*starts[1:], len(windows)], strict=True):
        assert new.later_likes is windows[stop - 1].later_likes
        views = Examples.concatenate([old.views for old in windows[start:stop]])
        np.testing.assert_array_equal(new.views.posts, views.posts)
        np.testing.assert_array_equal(new.views.liked, views.liked)
    before, after = merged[0].history.likes, merged[0].later_likes
    liked = merged[0].examples(LIKED, 10**6, 1).liked.sum()
    assert 0 < liked <= after.posts.size - before.posts.size
    if count == 1:
        assert after is windows[-1].later_likes


def test_windows_cannot_be_merged_into_as_many_as_there_are(database_url: str) -> None:
    dataset = load_small_network(database_url)
    few = replace(dataset, windows=dataset.windows[-3:])
    with pytest.raises(MissingPartError, match="this network has 3 windows"):
        limit_windows(3)(Setup(MODELS[CONTROL], LIKED), few)


def test_cases_are_compared_at_several_cutoffs_and_together(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    variables = {
        "DATABASE_URL": database_url, "CUTOFFS": "2", "NETWORK": "a/small",
        "CASES": "control, without factors, liked with 8 negatives",
    }  # fmt: skip
    rows = run_benchmark(ablation.main, monkeypatch, tmp_path / "rows.json", **variables)
    printed = capsys.readouterr().out
    assert len({row["cutoff"] for row in rows}) == 3
    assert "all 2 cutoffs together" in printed
    assert {row["network"] for row in rows} == {"small"}
    expected = {(CONTROL, case.name) for case in CASES if CONTROL in case.variants}
    expected |= {(TEST, name) for name in ("base", LIKED.name, "liked with 8 negatives", "without factors")}
    names = {(row["cutoff"], row["variant"], row["case"]): row for row in rows}
    assert {name[1:] for name in names} == expected
    assert len(names) == len(rows)
    evaluated = [row for row in rows if "left_out" not in row]
    assert len(evaluated) == len(rows) - 2  # posts have no additional columns, at either cutoff
    for row in evaluated:
        assert all(row[metric] is not None for metric in METRICS)
        assert row["low"] <= row["ndcg_at_10"] <= row["high"]
        if (row["variant"], row["case"]) == (CONTROL, "base"):
            assert row["compared_with"] is row["difference"] is row["difference_high"] is None
            continue
        variant, case = row["compared_with"].split(" ", 1)
        other = names[row["cutoff"], variant, case]
        assert row["difference"] == pytest.approx(row["ndcg_at_10"] - other["ndcg_at_10"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert row["users"] == other["users"] > 0
    compared = {(row["variant"], row["case"]): row["compared_with"] for row in evaluated}
    assert compared[TEST, "base"] == "control base"
    assert compared[TEST, "without factors"] == "test base"
    assert compared[CONTROL, "liked with 8 negatives"] == "control liked"
    assert any(row["difference"] for row in evaluated if row["case"] == "one window")


def test_cases_use_the_named_recipes_and_fit_the_recipe_of_the_base_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    fitted: list[Setup] = []
    fit_and_rank = ablation.fit_and_rank

    def count(setup: Setup, *rest: Any) -> Any:
        fitted.append(setup)
        return fit_and_rank(setup, *rest)

    monkeypatch.setattr(ablation, "fit_and_rank", count)
    monkeypatch.setenv("OVERNIGHT_RECIPE", RANKED.name)
    names = [f"{CONTROL} {name}" for name in RECIPES]
    variables = {"DATABASE_URL": database_url, "CUTOFFS": CUTOFF.isoformat(), "CASES": ",".join(names)}
    rows = run_benchmark(ablation.main, monkeypatch, tmp_path / "rows.json", **variables)
    assert {row["case"]: row["recipe"] for row in rows} == {"base": RANKED.name} | {n: n for n in RECIPES}
    assert [setup.recipe for setup in fitted] == [RANKED, LIKED_IF_VIEWED, LIKED]
    base, same = (next(row for row in rows if row["case"] == name) for name in ("base", RANKED.name))
    assert (same["difference"], same["ndcg_at_10"]) == (0, base["ndcg_at_10"])


def test_parts_that_a_network_lacks_are_left_out_with_a_reason(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    drop = [f"ALTER TABLE recs.users DROP COLUMN {name}" for name in ("age", "city", "subscribed")]
    execute(
        database_url,
        *drop,
        "UPDATE recs.posts SET topic = 'one', text = NULL",
        "DELETE FROM recs.interactions WHERE action = 'view'",
    )
    variables = {
        "DATABASE_URL": database_url, "CUTOFFS": CUTOFF.isoformat(),
        "CASES": "test liked-if-viewed,test without columns of posts,test without text,"
        "test without profile of users,test without affinity by topic,test without people like the user,"
        "test without sentence embeddings",
    }  # fmt: skip
    rows = run_benchmark(ablation.main, monkeypatch, tmp_path / "rows.json", **variables)
    assert {row["case"]: row["left_out"] for row in rows if "left_out" in row} == {
        "liked-if-viewed": "the views before the holdout are all liked or all not liked",
        "without columns of posts": "posts have no additional columns",
        "without text": "there are too few texts",
        "without profile of users": "users have no columns",
        "without affinity by topic": "all posts are in one group by topic",
        "without people like the user": "users have no columns",
        "without sentence embeddings": "there is no encoder, or too few texts",
    }
    assert [row["case"] for row in rows if "left_out" not in row] == ["base"]
    assert rows[0]["compared_with"] is None  # control was not selected
    assert (
        "test without text                      left out: there are too few texts" in capsys.readouterr().out
    )


def test_a_base_that_cannot_be_fitted_is_left_out_with_its_cases(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    execute(database_url, "DELETE FROM recs.interactions WHERE action = 'view'")
    monkeypatch.setenv("OVERNIGHT_RECIPE", LIKED_IF_VIEWED.name)
    variables = {"DATABASE_URL": database_url, "CASES": "without text"}
    cutoffs = f"{CUTOFF.isoformat()},{FIRST_DAY.isoformat()},2031-01-01"
    rows = run_benchmark(ablation.main, monkeypatch, tmp_path / "rows.json", **variables, CUTOFFS=cutoffs)
    printed = capsys.readouterr().out
    assert [(row["variant"], row["case"]) for row in rows] == [(CONTROL, "base"), (TEST, "base")] * 2
    assert "has no likes up to" in rows[0]["left_out"]
    assert "OVERNIGHT_RECIPE=liked-if-viewed learns from views" in rows[2]["left_out"]
    assert printed.count("no user can be evaluated at this cutoff; choose another") == 1
    assert "cutoffs together" not in printed
