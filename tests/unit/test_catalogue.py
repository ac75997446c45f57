from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.evaluation.catalogue_case import (
    CatalogueCase,
    measure_lists,
    rank_by_score,
    score_lists,
    score_random,
    summarise,
)
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.likes import Likes
from tests.support.catalogue_cases import compute_overlap, make_case, pad_lists


def test_figures_agree_with_those_worked_out_by_hand() -> None:
    found = measure_lists(make_case(), pad_lists([4, 3, 1, 0], [5, 3, 1, 0, 4]), seed=1).values
    assert found["hitrate_at_5"] == 1
    assert found["precision_at_5"] == pytest.approx((2 / 5 + 1 / 5) / 2)
    assert found["recall_at_5"] == found["recall_at_20"] == 1
    assert found["map_at_5"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 5) / 2)
    gain = 1 / np.log2(np.arange(5) + 2)
    ideal = gain[0] + gain[1]
    assert found["ndcg_at_10"] == pytest.approx(((gain[1] + gain[3]) / ideal + gain[4] / gain[0]) / 2)
    assert found["full_list_at_5"] == 0.5
    assert found["coverage_at_5"] == 1  # five posts are known, and all are shown
    assert found["overlap_at_10"] == pytest.approx((4 / 4 + 4 / 5) / 2)
    mean = (0 + 1 + 3 + 4 + 8) / 5
    assert found["popularity_lift_at_5"] == pytest.approx(((8 / 4) / mean + (16 / 5) / mean) / 2)


def test_recall_looks_at_twenty_posts() -> None:
    later = np.array([5, 19])
    case = replace(make_case(), users=np.array([0]), user_ids=np.array([7]), liked_later=later)
    case = replace(case, likes=Likes(np.zeros(2, np.int64), np.empty(0, np.int32)), hidden=np.empty(0, int))
    case = replace(case, popularity=np.ones(30))
    found = measure_lists(case, pad_lists(list(range(20))), seed=1).values
    assert (found["recall_at_10"], found["recall_at_20"]) == (0.5, 1)


def test_overlap_is_the_mean_over_all_pairs_of_users_and_its_draws_spread_as_they_do() -> None:
    random, users, posts = np.random.default_rng(3), 60, 40
    lists = np.array([random.permutation(posts)[:DEPTH] for _ in range(users)], dtype=np.int32)
    lists[::3] = lists[0]  # a third of the users are shown the same
    lists[1, 4:] = -1
    case = CatalogueCase(
        users=np.arange(users),
        user_ids=np.arange(users),
        likes=Likes.none(users),
        left_out=Likes.none(users),
        hidden=np.empty(0, np.int64),
        liked_later=np.arange(users) * posts,
        popularity=np.ones(posts),
    )
    found = measure_lists(case, lists, seed=1)
    assert found.values["overlap_at_10"] == pytest.approx(compute_overlap(lists, 10))
    heads = (np.arange(posts) == lists[:, :10, None]).any(axis=1)
    shares = (heads @ heads.T.astype(float)) / heads.sum(axis=1)[:, None]
    drawn = []
    for _ in range(1_000):
        some = random.integers(0, users, users)
        other = some[:, None] != some[None, :]
        drawn.append(shares[np.ix_(some, some)][other].mean())
    assert np.std(found.draws["overlap_at_10"]) == pytest.approx(np.std(drawn), rel=0.2)


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
    found = measure_lists(many, np.concatenate(drawn), seed=1).values
    assert set(found) == set(expected)
    for name, value in found.items():
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
        left_out=likes,
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


def test_what_is_pooled_has_the_mean_of_the_lists_and_users_are_drawn_whole() -> None:
    case, lists = make_case(), pad_lists([4, 3, 1, 0], [5, 3, 1, 0, 4])
    once = score_lists(case, lists)
    one, twice = summarise([once], seed=1), summarise([once, once], seed=1)
    assert twice.values == pytest.approx(one.values)
    assert twice.interval("ndcg_at_10") == pytest.approx(one.interval("ndcg_at_10"))
