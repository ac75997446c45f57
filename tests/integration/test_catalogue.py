"""The full catalogue protocol against brute force and values computed by hand."""

from __future__ import annotations

import numpy as np

from batch.evaluation.catalogue_case import (
    CatalogueCase,
    build_case,
    rank_by_score,
)
from batch.training.dataset import Dataset
from tests.support.batch import execute, make_network, query
from tests.support.evaluation import load_database, load_small_network


def build_holdout_case(dataset: Dataset, max_users: int = 10_000) -> CatalogueCase:
    return build_case(dataset.network, dataset.at_holdout, dataset.now.likes, max_users, seed=1)


def test_judged_are_those_who_newly_liked_a_post_that_was_known(database_url: str) -> None:
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
