"""`benchmarks.lists` on a database: splits, cutoffs, models that are left out, repeatability."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import lists
from benchmarks.lists import drop_counters, make_splits
from benchmarks.report import ALL_CUTOFFS
from contract.errors import SourceError
from tests.support.batch import FIRST_DAY, execute, make_network
from tests.support.evaluation import pull_database, run_benchmark

CUTOFF = FIRST_DAY + timedelta(days=20)
VOLATILE = ("seconds", "tuned_seconds")


def test_a_split_has_the_log_up_to_its_cutoff_and_warm_users(database_url: str) -> None:
    make_network(database_url, users=120, interactions=6_000)
    pulled = pull_database(database_url, CUTOFF)
    validation, test = make_splits(drop_counters(pulled), CUTOFF, seed=1)
    rows = pulled.store.arrays(
        "SELECT user_row, post_row, action::VARCHAR AS action, happened_at FROM interactions"
    )
    frame = pd.DataFrame(rows)
    until = pd.Timestamp(CUTOFF).tz_localize(None)
    before = frame[frame["happened_at"] <= until].sort_values("happened_at")
    split = before["happened_at"].quantile(lists.VALIDATION_SHARE, interpolation="lower")
    for part, start, end in ((validation, split, until), (test, until, frame["happened_at"].max())):
        known = frame[frame["happened_at"] <= start]
        assert part.log.users.size == len(known)
        likes = frame[frame["action"] == "like"]
        earlier = set(
            map(tuple, likes.loc[likes["happened_at"] <= start, ["user_row", "post_row"]].to_numpy())
        )
        later = likes.loc[(likes["happened_at"] > start) & (likes["happened_at"] <= end)]
        warm, known_posts = (
            {user for user, _ in earlier},
            ~np.isin(np.arange(len(pulled.network.posts)), part.case.hidden),
        )
        expected = {
            (user, post)
            for user, post in later[["user_row", "post_row"]].to_numpy().tolist()
            if user in warm and (user, post) not in earlier and known_posts[post]
        }
        owners, posts = np.divmod(part.case.liked_later, len(pulled.network.posts))
        assert set(zip(part.case.users[owners].tolist(), posts.tolist(), strict=True)) == expected
        counted = np.bincount(known.loc[known["action"] == "like", "post_row"], minlength=len(known_posts))
        np.testing.assert_array_equal(part.case.popularity, counted)


def test_a_comparison_at_several_cutoffs_is_repeatable(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    variables = {
        "DATABASE_URL": database_url, "CUTOFFS": "2", "BUDGET": "2", "NETWORK": "a/small",
        "MODELS": "random,popularity,recency popularity,EASE,LightFM,test",
    }  # fmt: skip
    monkeypatch.delenv("LISTS_PYTHON", raising=False)
    rows = run_benchmark(lists.main, monkeypatch, tmp_path / "rows.json", **variables)
    printed = capsys.readouterr().out
    again = run_benchmark(lists.main, monkeypatch, tmp_path / "again.json", **variables)
    strip = lambda row: {key: value for key, value in row.items() if key not in VOLATILE}  # noqa: E731
    assert [strip(row) for row in rows] == [strip(row) for row in again]
    cutoffs = list(dict.fromkeys(row["cutoff"] for row in rows))
    assert len(cutoffs) == 3
    assert cutoffs[-1] == ALL_CUTOFFS
    evaluated = [row for row in rows if "left_out" not in row]
    for row in evaluated:
        assert row["low"] <= row["ndcg_at_10"] <= row["high"]
        assert row["network"] == "small"
        assert {"hitrate_at_5", "recall_at_20", "coverage_at_10", "overlap_at_10", "users"} <= row.keys()
    assert {row["users"] for row in evaluated if row["cutoff"] != ALL_CUTOFFS} != {0}
    for row in evaluated:
        if row["model"] == "test":
            best = max(
                (
                    each
                    for each in evaluated
                    if each["cutoff"] == row["cutoff"] and each["model"] not in lists.OUR_MODELS
                ),
                key=lambda each: each["ndcg_at_10"],
            )
            assert row["best_other"] == best["model"]
            assert row["minus_best"] == pytest.approx(row["ndcg_at_10"] - best["ndcg_at_10"])
            assert row["minus_best_low"] <= row["minus_best"] <= row["minus_best_high"]
    left_out = [row for row in rows if "left_out" in row]
    assert [row["model"] for row in left_out] == ["LightFM", "LightFM"]
    assert "LightFM              left out: not installed" in printed
    assert "all 2 cutoffs together" in printed


def test_without_users_to_evaluate_one_line_is_printed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_network(database_url, users=20, interactions=500)
    variables = {"DATABASE_URL": database_url, "CUTOFFS": f"{FIRST_DAY},2031-01-01", "MODELS": "random,test"}
    assert run_benchmark(lists.main, monkeypatch, tmp_path / "rows.json", **variables) == []
    printed = capsys.readouterr().out
    assert printed.count("no user can be evaluated at this cutoff; choose another") == 2
    assert "cutoffs together" not in printed


def test_a_model_that_cannot_be_fitted_is_left_out_and_the_others_are_evaluated(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    cutoff = FIRST_DAY + timedelta(minutes=2)
    move = "UPDATE recs.interactions SET happened_at = %s WHERE happened_at <= %s"
    moved = f"'{FIRST_DAY.isoformat()}'", f"'{(FIRST_DAY + timedelta(days=10)).isoformat()}'"
    execute(database_url, move % moved)  # all interactions before the cutoff are within one minute
    variables = {
        "DATABASE_URL": database_url, "CUTOFFS": cutoff.isoformat(), "BUDGET": "1",
        "MODELS": "random,popularity,test",
    }  # fmt: skip
    rows = run_benchmark(lists.main, monkeypatch, tmp_path / "rows.json", **variables)
    assert [row["model"] for row in rows] == ["random", "popularity", "test"]
    assert "all labels lie in 1 minute" in rows[2]["left_out"]
    assert rows[1]["users"] > 0


def test_a_network_without_interactions_is_an_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, users=20, interactions=500)
    execute(database_url, "DELETE FROM recs.interactions")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("CUTOFFS", raising=False)
    with pytest.raises(SourceError, match=r"recs.interactions has no interactions up to now"):
        lists.main()
