"""Backtests: the lists are those of `run --as-of`, evaluated on later likes; nothing is published."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from batch.evaluation import MODEL, RANKERS
from batch.evaluation.protocols import PastNight, backtest, find_cutoffs
from batch.loading.split import split_by_time
from batch.postgres import connected
from batch.variants import MODELS
from contract.errors import OvernightError
from tests.support.batch import execute, live_lists, make_network, query, run_here
from tests.support.batch_live import check_error
from tests.support.evaluation import CLOCK, make_settings, pull_database

CUTOFF = datetime.fromisoformat("2021-10-20T00:00:00+00:00")
LATER = CUTOFF + timedelta(days=5)
CONTROL = ("backtest", "--variant", "control")


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """The servers with a small network, and a folder for models, as options of `run_here`."""
    make_network(database_url, users=120, interactions=6_000)
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


def run_backtest(database_url: str, *cutoffs: datetime) -> list[PastNight]:
    settings = make_settings(database_url)
    with connected(settings) as engine:
        return backtest(engine, settings, [MODELS["control"]], cutoffs, clock=CLOCK, max_users=10_000)[0]


def model_lists(night: PastNight, post_ids: np.ndarray) -> dict[int, list[int]]:
    """Return user_id -> post_ids of the model's list."""
    case = night.cases["control"]
    return {
        int(user): post_ids[row[row >= 0]].tolist()
        for user, row in zip(case.case.user_ids, case.lists[MODEL], strict=True)
    }


def test_the_lists_are_those_of_a_run_as_of_the_cutoff(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    (night,) = run_backtest(servers["database_url"], CUTOFF)
    done = run_here("run", "--variant", "control", "--as-of", CUTOFF.isoformat(), "--force", **servers)
    assert done.returncode == 0, done.stderr
    written = live_lists(redis_client)
    post_ids = pull_database(servers["database_url"], CUTOFF).network.posts.index.to_numpy()
    found = model_lists(night, post_ids)
    assert len(found) > 50
    for user, posts in found.items():
        assert posts == [post for post, _ in written[user]][: len(posts)]


def test_hits_are_the_likes_between_a_cutoff_and_the_next(servers: dict[str, Any]) -> None:
    nights = run_backtest(servers["database_url"], LATER, CUTOFF)
    assert [(night.cutoff, night.until) for night in nights] == [(CUTOFF, LATER), (LATER, CLOCK)]
    for night in nights:
        since, until = night.cutoff.isoformat(), night.until.isoformat()
        expected = set(
            query(
                servers["database_url"],
                f"""
                SELECT DISTINCT user_id, post_id FROM recs.interactions i JOIN recs.posts p USING (post_id)
                WHERE action = 'like' AND happened_at > '{since}' AND happened_at <= '{until}'
                AND created_at <= '{since}'
                AND NOT EXISTS (SELECT FROM recs.interactions b WHERE b.action = 'like'
                    AND b.user_id = i.user_id AND b.post_id = i.post_id AND b.happened_at <= '{since}')
                """,
            )
        )
        case = night.cases["control"].case
        posts = pull_database(servers["database_url"], night.cutoff).network.posts.index
        rows, liked = np.divmod(case.liked_later, len(posts))
        assert set(zip(case.user_ids[rows].tolist(), posts[liked].tolist(), strict=True)) == expected


def test_likes_after_a_cutoff_change_neither_its_lists_nor_its_model(servers: dict[str, Any]) -> None:
    posts = pull_database(servers["database_url"], CUTOFF).network.posts.index.to_numpy()
    (before,) = run_backtest(servers["database_url"], CUTOFF)
    execute(
        servers["database_url"],
        "INSERT INTO recs.interactions SELECT user_id, post_id, 'like', "
        f"'{CUTOFF.isoformat()}'::timestamptz + interval '1 s' FROM recs.users, recs.posts",
    )
    (after,) = run_backtest(servers["database_url"], CUTOFF)
    lists = model_lists(after, posts)
    for user, ranked in model_lists(before, posts).items():
        assert lists[user] == ranked
    assert after.cases["control"].half_life == before.cases["control"].half_life
    assert after.results["control"].users["all"] > before.results["control"].users["all"]


def test_cutoffs_are_the_starts_of_the_holdouts_of_consecutive_nights(
    servers: dict[str, Any],
) -> None:
    settings, pulled = make_settings(servers["database_url"]), pull_database(servers["database_url"])
    fractions = settings.night.history_fraction, settings.night.holdout_fraction
    assert pulled.latest is not None
    last = split_by_time(pulled.store, pulled.latest, *fractions).holdout_start
    first = split_by_time(pulled.store, last, *fractions).holdout_start
    with connected(settings) as engine:
        assert find_cutoffs(engine, settings, 2, CLOCK) == [first, last]
        with pytest.raises(OvernightError, match=r"only \d+ of 10000 cutoffs can be evaluated"):
            find_cutoffs(engine, settings, 10_000, CLOCK)


def test_each_model_has_a_table_with_the_baselines_and_nothing_is_published(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    done = run_here("backtest", "--cutoffs", "2", **servers)
    assert done.returncode == 0, done.stderr
    assert redis_client.dbsize() == 0
    assert list(servers["model_dir"].rglob("*")) == []
    for words in ("control, night by night", "test, night by night", "recency popularity", "warm users"):
        assert words in done.stdout
    assert "test minus control, paired by user" in done.stdout
    assert done.stderr.count(" users: model ") == 4
    record = json.loads(run_here(*CONTROL, "--cutoffs", "2", "--json", **servers).stdout)["control"]
    first, second = record["cutoffs"]
    assert first["until"] == second["cutoff"]
    assert record["pooled"]["lists"] == sum(cutoff["users"] for cutoff in record["cutoffs"])
    for ranker in RANKERS:
        low, high = record["pooled"]["intervals"][ranker]["ndcg_at_10"]
        assert low <= record["pooled"][ranker]["ndcg_at_10"] <= high


def test_a_cutoff_without_later_likes_is_reported(servers: dict[str, Any]) -> None:
    execute(
        servers["database_url"],
        f"DELETE FROM recs.interactions WHERE happened_at > '{LATER.isoformat()}'",
    )
    done = run_here(*CONTROL, "--at", LATER.isoformat(), **servers)
    assert done.returncode == 0, done.stderr
    message = (
        f"no likes to evaluate after {LATER.isoformat()}: no user liked a post that they had not liked before"
    )
    assert message in done.stdout
    assert "0.0000" not in done.stdout


def test_invalid_options_are_reported_in_one_line(servers: dict[str, Any]) -> None:
    both = run_here(*CONTROL, "--at", CUTOFF.isoformat(), "--cutoffs", "2", **servers)
    check_error(both, 2, "give one of them")
    early = run_here(*CONTROL, "--at", "2021-09-01", **servers)
    check_error(early, 1, "as of 2021-09-01T00:00:00+00:00: recs.interactions has no likes up to")
