"""The full catalogue protocol against brute force and values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.evaluation.catalogue_case import (
    CatalogueCase,
    build_case,
    measure_lists,
    rank_by_score,
    score_lists,
    score_random,
    summarise,
)
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.likes import Likes
from batch.training.dataset import Dataset
from tests.support.batch_support import execute, make_network, query
from tests.support.catalogue_cases import compute_overlap, make_case, pad_lists
from tests.support.evaluation_support import load_database, load_small_network


def build_holdout_case(dataset: Dataset, max_users: int = 10_000) -> CatalogueCase:
    return build_case(dataset.network, dataset.at_holdout, dataset.now.likes, max_users, seed=1)


def test_metrics_agree_with_values_computed_by_hand() -> None:
    metrics = measure_lists(make_case(), pad_lists([4, 3, 1, 0], [5, 3, 1, 0, 4]), seed=1).values
    assert metrics["hitrate_at_5"] == 1
    assert metrics["precision_at_5"] == pytest.approx((2 / 5 + 1 / 5) / 2)
    assert metrics["recall_at_5"] == metrics["recall_at_20"] == 1
    assert metrics["map_at_5"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 5) / 2)
    gain = 1 / np.log2(np.arange(5) + 2)
    ideal = gain[0] + gain[1]
    assert metrics["ndcg_at_10"] == pytest.approx(((gain[1] + gain[3]) / ideal + gain[4] / gain[0]) / 2)
    assert metrics["full_list_at_5"] == 0.5
    assert metrics["coverage_at_5"] == 1  # five posts are known, and all are shown
    assert metrics["overlap_at_10"] == pytest.approx((4 / 4 + 4 / 5) / 2)
    mean = (0 + 1 + 3 + 4 + 8) / 5
    assert metrics["popularity_lift_at_5"] == pytest.approx(((8 / 4) / mean + (16 / 5) / mean) / 2)


def test_recall_looks_at_twenty_posts() -> None:
    later = np.array([5, 19])
    case = replace(make_case(), users=np.array([0]), user_ids=np.array([7]), liked_later=later)
    case = replace(case, likes=Likes(np.zeros(2, np.int64), np.empty(0, np.int32)), hidden=np.empty(0, int))
    case = replace(case, popularity=np.ones(30))
    metrics = measure_lists(case, pad_lists(list(range(20))), seed=1).values
    assert (metrics["recall_at_10"], metrics["recall_at_20"]) == (0.5, 1)


def test_overlap_is_the_mean_over_all_pairs_of_users_and_its_draws_spread_as_they_do() -> None:
    random, users, posts = np.random.default_rng(3), 60, 40
    lists = np.array([random.permutation(posts)[:DEPTH] for _ in range(users)], dtype=np.int32)
    lists[::3] = lists[0]  # a third of the users are shown the same
    lists[1, 4:] = -1
    case = CatalogueCase(
        users=np.arange(users),
        user_ids=np.arange(users),
        likes=Likes(np.zeros(users + 1, np.int64), np.empty(0, np.int32)),
        hidden=np.empty(0, np.int64),
        liked_later=np.arange(users) * posts,
        popularity=np.ones(posts),
    )
    metrics = measure_lists(case, lists, seed=1)
    assert metrics.values["overlap_at_10"] == pytest.approx(compute_overlap(lists, 10))
    heads = (np.arange(posts) == lists[:, :10, None]).any(axis=1)
    shares = (heads @ heads.T.astype(float)) / heads.sum(axis=1)[:, None]
    drawn = []
    for _ in range(1_000):
        some = random.integers(0, users, users)
        other = some[:, None] != some[None, :]
        drawn.append(shares[np.ix_(some, some)][other].mean())
    assert np.std(metrics.draws["overlap_at_10"]) == pytest.approx(np.std(drawn), rel=0.2)


def test_one_user_alone_overlaps_with_nobody() -> None:
    alone = make_case().keep_users(np.array([True, False]))
    assert np.isnan(measure_lists(alone, pad_lists([4, 3]), seed=1).values["overlap_at_10"])
    assert np.isnan(summarise([score_random(alone)], seed=1).values["overlap_at_10"])


def test_ranking_by_a_score_leaves_out_likes_and_what_was_not_known() -> None:
    lists = rank_by_score(make_case(), make_case().popularity)
    assert lists[0].tolist() == [4, 3, 1, 0] + [-1] * (DEPTH - 4)
    assert lists[1].tolist() == [5, 4, 3, 1, 0] + [-1] * (DEPTH - 5)
    assert rank_by_score(make_case(), np.zeros(6))[1, :5].tolist() == [0, 1, 3, 4, 5]


def test_random_lists_reach_what_is_expected_of_them() -> None:
    case, random = make_case(), np.random.default_rng(2)
    candidates = [[0, 1, 3, 4], [0, 1, 3, 4, 5]]
    drawn = []
    for _ in range(1_500):
        lists = np.full((2, DEPTH), -1, dtype=np.int32)
        for user, posts in enumerate(candidates):
            lists[user, : len(posts)] = random.permutation(posts)
        drawn.append(lists)
    expected = summarise([score_random(case)], seed=1).values
    many = replace(
        case,
        users=np.arange(3_000),
        user_ids=np.arange(3_000),
        likes=Likes(np.cumsum([0, *([1, 0] * 1_500)]), np.full(1_500, 5, dtype=np.int32)),
        liked_later=np.concatenate([case.liked_later + 12 * draw for draw in range(1_500)]),
    )
    metrics = measure_lists(many, np.concatenate(drawn), seed=1).values
    assert set(metrics) == set(expected)
    for name, value in metrics.items():
        if not name.startswith(("coverage", "overlap")):  # of 3,000 lists they are others than of two
            assert expected[name] == pytest.approx(value, abs=0.02), name
    assert expected["coverage_at_5"] == pytest.approx(1)


def test_random_lists_overlap_and_cover_as_much_as_is_expected_of_them() -> None:
    random, users, posts = np.random.default_rng(5), 30, 35
    liked = random.random((users, posts)) < np.linspace(0, 0.6, users)[:, None]
    likes = Likes.from_pairs(*(each.astype(np.int32) for each in np.nonzero(liked)), users)
    case = CatalogueCase(
        users=np.arange(users),
        user_ids=np.arange(users),
        likes=likes,
        hidden=np.array([3, 9]),
        liked_later=np.arange(users) * posts,
        popularity=random.random(posts),
    )
    drawn: list[dict[str, float]] = []
    for _ in range(300):
        lists = np.full((users, DEPTH), -1, dtype=np.int32)
        for user in range(users):
            left = random.permutation(np.setdiff1d(np.flatnonzero(~liked[user]), case.hidden))[:DEPTH]
            lists[user, : left.size] = left
        scored = score_lists(case, lists)
        drawn.append({"overlap_at_10": float(scored.values["overlap_at_10"].mean())} | scored.coverage)
    expected = summarise([score_random(case)], seed=1).values
    for name in drawn[0]:
        assert expected[name] == pytest.approx(np.mean([each[name] for each in drawn]), abs=0.01), name


def test_random_coverage_is_expected_to_be_one_less_the_chance_that_nobody_is_shown_a_post() -> None:
    case = replace(
        make_case(),
        likes=Likes(np.array([0, 1, 1]), np.array([0], dtype=np.int32)),
        hidden=np.empty(0, int),
        popularity=np.ones(20),
    )
    first, others = 1 - (1 - 5 / 20), 1 - (1 - 5 / 19) * (1 - 5 / 20)
    assert score_random(case).coverage["coverage_at_5"] == pytest.approx((first + 19 * others) / 20)


def test_evaluated_users_are_those_who_newly_liked_a_post_that_was_known(database_url: str) -> None:
    make_network(database_url, users=120, interactions=6_000)
    execute(database_url, "UPDATE recs.posts SET created_at = NULL WHERE post_id % 3 = 0")
    start = load_database(database_url).split.holdout_start
    # Post 102 has no time of its own, and nobody came across it before the holdout.
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE post_id = 102 AND happened_at <= '{start.isoformat()}'",
    )
    dataset = load_database(database_url)
    assert dataset.split.holdout_start >= start
    start = dataset.split.holdout_start
    expected = set(
        query(
            database_url,
            f"""
            SELECT DISTINCT user_id, post_id FROM recs.interactions i JOIN recs.posts p USING (post_id)
            WHERE action = 'like' AND happened_at > '{start.isoformat()}'
            AND coalesce(created_at, (SELECT min(happened_at) FROM recs.interactions f
                WHERE f.post_id = i.post_id)) <= '{start.isoformat()}'
            AND NOT EXISTS (SELECT FROM recs.interactions b WHERE b.action = 'like'
                AND b.user_id = i.user_id AND b.post_id = i.post_id
                AND b.happened_at <= '{start.isoformat()}')
            """,
        )
    )
    case, posts = build_holdout_case(dataset), dataset.network.posts.index
    rows, liked = np.divmod(case.liked_later, len(posts))
    assert set(zip(case.user_ids[rows].tolist(), posts[liked].tolist(), strict=True)) == expected
    assert case.users.size == len({user for user, _ in expected}) > 50


def test_warm_users_are_those_who_liked_something_before(database_url: str) -> None:
    case = build_holdout_case(load_small_network(database_url, interactions=1_500))
    for index, warm in enumerate(case.warm):
        assert warm == (case.likes.of(index).size > 0)
    assert 0 < case.warm.sum() < case.users.size
    cold = case.keep_users(~case.warm)
    assert cold.likes.posts.size == 0
    assert cold.relevant.tolist() == case.relevant[~case.warm].tolist()
    lists = rank_by_score(case, case.popularity)
    np.testing.assert_array_equal(rank_by_score(cold, case.popularity), lists[~case.warm])


def test_users_are_drawn_where_there_are_many(database_url: str) -> None:
    dataset = load_small_network(database_url)
    every, some = build_holdout_case(dataset), build_holdout_case(dataset, max_users=10)
    assert some.users.size == 10
    assert np.isin(some.users, every.users).all()
    np.testing.assert_array_equal(some.users, build_holdout_case(dataset, max_users=10).users)
    for row, user in enumerate(some.users):
        np.testing.assert_array_equal(some.likes.of(row), dataset.at_holdout.likes.of(int(user)))


def test_what_is_pooled_has_the_mean_of_the_lists_and_users_are_drawn_whole() -> None:
    case, lists = make_case(), pad_lists([4, 3, 1, 0], [5, 3, 1, 0, 4])
    once = score_lists(case, lists)
    one, twice = summarise([once], seed=1), summarise([once, once], seed=1)
    assert twice.values == pytest.approx(one.values)
    assert twice.interval("ndcg_at_10") == pytest.approx(one.interval("ndcg_at_10"))
