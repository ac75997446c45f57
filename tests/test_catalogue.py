"""The full catalogue protocol against brute force, and its baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.judging import catalogue
from batch.judging.catalogue import Question, ask, full_catalogue, measured, most_popular
from batch.judging.metrics import DEPTH
from batch.learning.gather import Gathered
from batch.loading.likes import Likes
from tests.evaluation_support import fitted, small_network


def question_of(gathered: Gathered, most_users: int = 10_000) -> Question:
    return ask(gathered.network, gathered.at_holdout, gathered.holdout, most_users, seed=1)


def a_question() -> Question:
    """Two users and six posts: user 0 liked post 5 before and will like 0 and 3; user 1 will like 4."""
    likes = Likes(np.array([0, 1, 1]), np.array([5], dtype=np.int32))
    popularity = np.array([0.0, 1, 2, 3, 4, 8])
    return Question(np.array([0, 1]), likes, np.array([2]), np.array([0, 3, 10]), popularity)


def test_figures_agree_with_those_worked_out_by_hand() -> None:
    lists = np.full((2, DEPTH), -1, dtype=np.int32)
    lists[0, :4], lists[1, :5] = [4, 3, 1, 0], [5, 3, 1, 0, 4]
    found = measured(a_question(), lists, seed=1).values
    assert found["hitrate_at_5"] == 1
    assert found["precision_at_5"] == pytest.approx((2 / 5 + 1 / 5) / 2)
    assert found["recall_at_5"] == 1
    assert found["map_at_5"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 5) / 2)
    assert found["full_list_at_5"] == 0.5
    assert found["coverage_at_5"] == 1  # five posts exist already, and all are shown
    mean = (0 + 1 + 3 + 4 + 8) / 5
    assert found["popularity_lift_at_5"] == pytest.approx(((8 / 4) / mean + (16 / 5) / mean) / 2)


def test_the_most_popular_posts_leave_out_likes_and_what_did_not_exist_yet() -> None:
    lists = most_popular(a_question())
    assert lists[0].tolist() == [4, 3, 1, 0] + [-1] * (DEPTH - 4)
    assert lists[1].tolist() == [5, 4, 3, 1, 0] + [-1] * (DEPTH - 5)


def test_random_lists_reach_what_is_expected_of_them() -> None:
    asked, random = a_question(), np.random.default_rng(2)
    candidates = [[0, 1, 3, 4], [0, 1, 3, 4, 5]]
    drawn = []
    for _ in range(1_500):
        lists = np.full((2, DEPTH), -1, dtype=np.int32)
        for user, posts in enumerate(candidates):
            lists[user, : len(posts)] = random.permutation(posts)
        drawn.append(lists)
    expected = catalogue._random(asked, seed=1).values
    many = replace(
        asked,
        users=np.arange(3_000),
        likes=Likes(np.cumsum([0, *([1, 0] * 1_500)]), np.full(1_500, 5, dtype=np.int32)),
        answers=np.concatenate([asked.answers + 12 * draw for draw in range(1_500)]),
    )
    found = measured(many, np.concatenate(drawn), seed=1).values
    for name, value in found.items():
        if not name.startswith("coverage"):  # of 3,000 lists it is another than of two
            assert expected[name] == pytest.approx(value, abs=0.02), name
    assert expected["coverage_at_5"] == pytest.approx(1)


def test_random_coverage_is_expected_to_be_one_less_the_chance_that_nobody_is_shown_a_post() -> None:
    likes = Likes(np.array([0, 1, 1]), np.array([0], dtype=np.int32))
    asked = Question(np.array([0, 1]), likes, np.empty(0, int), np.array([1]), np.ones(20))
    first, others = 1 - (1 - 5 / 20), 1 - (1 - 5 / 19) * (1 - 5 / 20)
    assert catalogue._expected_coverage(asked, 5) == pytest.approx((first + 19 * others) / 20)


def test_lists_are_the_best_by_brute_force_less_what_was_liked(database_url: str) -> None:
    gathered = small_network(database_url)
    model, asked = fitted(database_url, gathered), question_of(gathered)
    history = gathered.at_holdout
    lists = catalogue._lists(model, gathered.network, history, asked, threads=1)
    tables, factors = model.tables(gathered.network, history), model.factors(gathered.network, history)
    posts = np.arange(len(gathered.network.posts))
    assert factors is not None
    assert asked.users.size > 50
    for row, user in enumerate(asked.users):
        users = np.full(posts.size, user)
        scores = model.booster.predict(tables.rows(users, posts), raw_score=True) + factors.dot(users, posts)
        left_out = np.union1d(history.likes.of(int(user)), asked.later)
        shown = lists[row][lists[row] >= 0]
        best = np.sort(scores[np.setdiff1d(posts, left_out)])[::-1][:DEPTH]
        assert not np.isin(shown, left_out).any()
        np.testing.assert_allclose(scores[shown], best, atol=2e-4)


def test_judged_are_those_who_newly_liked_a_post_that_existed(database_url: str) -> None:
    gathered = small_network(database_url)
    asked, posts = question_of(gathered), len(gathered.network.posts)
    expected = set()
    created = list(gathered.network.posts["created_at"])
    for user, post, liked in zip(
        gathered.holdout.users, gathered.holdout.posts, gathered.holdout.liked, strict=True
    ):
        before = post in gathered.at_holdout.likes.of(int(user))
        if liked and not before and created[post] <= gathered.split.holdout_start:
            expected.add((int(user), int(post)))
    rows, answers = np.divmod(asked.answers, posts)
    assert set(zip(asked.users[rows].tolist(), answers.tolist(), strict=True)) == expected
    assert asked.users.size == len({user for user, _ in expected})


def test_the_model_beats_popularity_where_there_is_something_to_learn(database_url: str) -> None:
    gathered = small_network(database_url)
    users, found = full_catalogue(
        fitted(database_url, gathered), gathered.network, gathered.at_holdout, gathered.holdout, 1, 10_000
    )
    assert users == question_of(gathered).users.size
    low, _ = found["model"].interval("ndcg_at_10")
    assert low > found["random"].values["ndcg_at_10"]
    assert found["model"].values["ndcg_at_10"] > found["popularity"].values["ndcg_at_10"]


def test_users_are_drawn_where_there_are_many(database_url: str) -> None:
    gathered = small_network(database_url)
    every, some = question_of(gathered), question_of(gathered, most_users=10)
    assert some.users.size == 10
    assert np.isin(some.users, every.users).all()
    np.testing.assert_array_equal(some.users, question_of(gathered, most_users=10).users)
    for row, user in enumerate(some.users):
        np.testing.assert_array_equal(some.likes.of(row), gathered.at_holdout.likes.of(int(user)))


def test_a_holdout_without_likes_has_no_figures_and_no_error(database_url: str) -> None:
    gathered = small_network(database_url)
    nothing = gathered.holdout
    nothing = replace(nothing, liked=np.zeros(len(nothing), dtype=bool))
    model = fitted(database_url, gathered)
    users, found = full_catalogue(model, gathered.network, gathered.at_holdout, nothing, 1, 10)
    assert users == 0
    assert np.isnan(found["model"].values["hitrate_at_5"])
