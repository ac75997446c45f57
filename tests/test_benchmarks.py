"""The benchmark's ways of scoring agree with each other, and fill its rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batch.judging.catalogue import Question
from batch.judging.metrics import DEPTH
from batch.loading.likes import Likes
from benchmarks import exposures, publish
from benchmarks.case import Case
from benchmarks.catalogue import best
from benchmarks.network import make_likes, make_tables, train
from benchmarks.ways import SAMPLES, Measured, error, measure

USERS, POSTS = 300, 90


@pytest.fixture(scope="module")
def case() -> Case:
    tables = make_tables(USERS, POSTS)
    return Case(train(tables, 20).model_to_string(), tables, None, make_likes(tables), n=10, budget_mib=64)


@pytest.mark.parametrize("factors", [0, 4])
def test_our_lists_hold_the_scores_that_lightgbm_gives(tmp_path: Path, case: Case, factors: int) -> None:
    if factors:
        random = np.random.default_rng(3)
        users, posts = (random.normal(size=(n, factors)).astype(np.float32) for n in (USERS, POSTS))
        case = replace(case, factors=(users, posts))
    case.save(tmp_path / "case")
    found: dict[str, Measured] = {
        way: measure(way, tmp_path / "case", 2, tmp_path / SAMPLES[way]) for way in ("booster", "overnight")
    }
    assert all(measured.pairs == USERS * POSTS for measured in found.values())
    assert all(measured.peak_mib > 0 for measured in found.values())
    assert error(tmp_path / SAMPLES["overnight"], tmp_path / SAMPLES["booster"]) < 1e-5


def test_publishing_is_measured_beside_redis_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("redis-cli") is None and shutil.which("valkey-cli") is None:
        pytest.skip("no redis-cli here")
    monkeypatch.setattr(publish, "USERS", 1_000)
    monkeypatch.setattr(publish, "ROUNDS", 1)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    publish.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"users_per_second", "pipe_users_per_second", "bytes_per_user"} <= set(figures)
    assert min(figures.values()) > 0
    assert "redis-cli --pipe" in capsys.readouterr().out


def test_publishing_is_not_measured_without_redis_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="apt-get install redis-tools"):
        publish.main()


def test_the_cost_of_exposures_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("no wrk here")
    for name, value in (("USERS", 100), ("WARM_UP", 0), ("ROUNDS", 1), ("SECONDS", 1)):
        monkeypatch.setattr(exposures, name, value)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    exposures.main()
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["requests_per_second_on"] > 0
    told = capsys.readouterr().out
    assert "cost to throughput" in told
    assert "exposures dropped: 0" in told


def test_the_best_products_are_ranked_without_what_was_liked_or_came_later() -> None:
    random = np.random.default_rng(4)
    users, posts = (random.normal(size=(n, 3)).astype(np.float32) for n in (7, 25))
    likes = Likes.from_pairs(np.array([0, 0, 6], np.int32), np.array([3, 24, 1], np.int32), 7)
    later = np.array([2, 5, 8])
    asked = Question(np.arange(7), likes, later, np.empty(0, np.int64), np.ones(25))
    lists = best(users, posts, asked)
    for user in range(7):
        allowed = [post for post in range(25) if post not in {*later, *likes.of(user)}]
        ranked = sorted(allowed, key=lambda post: -float(users[user] @ posts[post]))[:DEPTH]
        assert lists[user, : len(ranked)].tolist() == ranked
        assert (lists[user, len(ranked) :] == -1).all()
