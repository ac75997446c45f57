"""Ranking and pointwise metrics against values computed by hand and slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from batch.arrays import Float64s
from batch.evaluation.ranking_metrics import (
    DEPTH,
    KS,
    Auc,
    Calibration,
    RankedLists,
    calibration_error,
    compute_metrics,
    compute_random_metrics,
    log_losses,
    rank_rows,
)

Row = tuple[int, int, int, float]

SEEDS = st.integers(0, 2**32 - 1)


def rank(rows: list[Row]) -> RankedLists:
    users, posts, liked, scores = zip(*rows, strict=True)
    return rank_rows(np.array(users), np.array(posts), np.array(liked, dtype=bool), np.array(scores))


def mean_metrics(rows: list[Row], k: int) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in compute_metrics(rank(rows), (k,)).items()}


def make_rows(seed: int, users: int = 12, posts: int = 15) -> list[Row]:
    """Make rows of several users with some tied scores."""
    random = np.random.default_rng(seed)
    return [
        (user, int(post), int(random.random() < 0.3), float(random.integers(0, 6)))
        for user in range(users)
        for post in random.choice(posts, size=random.integers(1, posts + 1), replace=False)
    ]


def test_ranking_metrics_agree_with_values_computed_by_hand() -> None:
    rows = [
        # user 1: ranked 10, 11, 12; likes 11 and 12, so one of the first two
        (1, 10, 0, 0.9), (1, 11, 1, 0.8), (1, 12, 1, 0.1),
        # user 2: ranked 21, 20; likes neither
        (2, 20, 0, 0.2), (2, 21, 0, 0.3),
        # user 3: ranked 31, 32, 30; likes 30 alone, which comes third
        (3, 30, 1, 0.1), (3, 31, 0, 0.3), (3, 32, 0, 0.2),
    ]  # fmt: skip
    found = mean_metrics(rows, k=2)
    assert found["hitrate_at_2"] == pytest.approx(1 / 3)
    assert found["precision_at_2"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall_at_2"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["map_at_2"] == pytest.approx(((1 / 2) / 2 + 0) / 2)
    gain, ideal = 1 / math.log2(3), 1 + 1 / math.log2(3)
    assert found["ndcg_at_2"] == pytest.approx((gain / ideal + 0) / 2)
    assert mean_metrics(rows, k=3)["map_at_3"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 3) / 2)


def test_a_perfect_ranking_of_more_likes_than_k_has_ndcg_and_map_one() -> None:
    found = mean_metrics([(1, post, int(post < 7), -float(post)) for post in range(10)], k=5)
    assert found["ndcg_at_5"] == pytest.approx(1)
    assert found["map_at_5"] == pytest.approx(1)
    assert found["precision_at_5"] == 1
    assert found["recall_at_5"] == pytest.approx(5 / 7)


def test_equal_scores_rank_the_lower_post_first() -> None:
    assert mean_metrics([(1, 3, 0, 0.5), (1, 1, 1, 0.5), (1, 2, 0, 0.5)], k=1)["hitrate_at_1"] == 1


def test_a_user_with_fewer_posts_than_k_still_counts() -> None:
    found = mean_metrics([(1, 1, 1, 0.5)], k=5)
    assert found.pop("precision_at_5") == pytest.approx(0.2)
    assert set(found.values()) == {1}


def test_metrics_of_likes_are_not_defined_for_a_user_who_liked_nothing() -> None:
    found = compute_metrics(rank([(1, 1, 0, 0.5), (1, 2, 0, 0.1)]))
    undefined = {name for name, values in found.items() if np.isnan(values[0])}
    assert undefined == {f"{name}_at_{k}" for name in ("recall", "map", "ndcg") for k in KS}


@settings(max_examples=40)
@given(SEEDS)
def test_every_metric_agrees_with_a_slow_reference(seed: int) -> None:
    rows = make_rows(seed)
    found = compute_metrics(rank(rows))
    for index, user in enumerate(sorted({row[0] for row in rows})):
        own = sorted((row for row in rows if row[0] == user), key=lambda row: (-row[3], row[1]))
        liked = [row[2] for row in own]
        for k, first in ((k, liked[:k]) for k in KS):
            assert found[f"hitrate_at_{k}"][index] == any(first)
            assert found[f"precision_at_{k}"][index] == pytest.approx(sum(first) / k)
            if not any(liked):
                continue
            precision = sum(sum(first[: at + 1]) / (at + 1) for at in range(len(first)) if first[at])
            assert found[f"recall_at_{k}"][index] == pytest.approx(sum(first) / sum(liked))
            assert found[f"map_at_{k}"][index] == pytest.approx(precision / min(k, sum(liked)))
            if len(own) > 1:
                order = -np.arange(len(own), dtype=float)
                wanted = ndcg_score([liked], [order], k=k)
                assert found[f"ndcg_at_{k}"][index] == pytest.approx(wanted)


@pytest.mark.parametrize(("posts", "likes"), [(1, 0), (1, 1), (4, 2), (6, 1), (6, 5), (6, 6), (7, 3)])
def test_metrics_of_random_order_are_the_mean_over_every_order(posts: int, likes: int) -> None:
    every = list(set(itertools.permutations([True] * likes + [False] * (posts - likes))))
    hits = np.zeros((len(every), DEPTH), dtype=bool)
    hits[:, :posts] = every
    counts = (np.full(len(every), likes), np.full(len(every), posts))
    expected = compute_random_metrics(np.array([likes]), np.array([posts]))
    for name, values in compute_metrics(RankedLists(hits, *counts)).items():
        assert expected[name][0] == pytest.approx(values.mean(), nan_ok=True), name


def test_no_users_give_no_values_and_no_error() -> None:
    empty = np.empty(0)
    nobody = compute_metrics(rank_rows(empty.astype(int), empty.astype(int), empty.astype(bool), empty))
    assert {values.size for values in nobody.values()} == {0}
    assert math.isnan(Auc(np.ones(3, dtype=bool), np.arange(3.0)).compute(np.ones(3)))
    assert math.isnan(Auc(empty.astype(bool), empty).compute(empty))


def test_auc_and_log_loss_agree_with_values_computed_by_hand() -> None:
    liked = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert Auc(liked, scores).compute(np.ones(4)) == pytest.approx(3 / 4)
    by_hand = -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.9)) / 4
    assert log_losses(liked, scores).mean() == pytest.approx(by_hand)


@settings(max_examples=40)
@given(SEEDS)
def test_pointwise_metrics_agree_with_scikit_learn_under_any_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    liked, scores = random.random(60) < 0.4, random.integers(0, 20, 60) / 20
    liked[:2] = True, False
    weights: Float64s = random.integers(0, 4, 60).astype(float)
    weights[:2] = 1
    auc = Auc(liked, scores)
    assert auc.compute(weights[auc.order]) == pytest.approx(
        roc_auc_score(liked, scores, sample_weight=weights)
    )
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    assert log_losses(liked, scores).mean() == pytest.approx(log_loss(liked, clipped))


def test_calibration_error_agrees_with_a_value_computed_by_hand() -> None:
    # Two bins have rows: 0.2 predicted and 1 of 4 liked, 0.8 predicted and 4 of 4 liked.
    probabilities = np.array([0.2] * 4 + [0.8] * 4)
    liked = np.array([True, False, False, False] + [True] * 4)
    calibration = Calibration.from_rows(np.array([0, 1] * 4), 2, liked, probabilities)
    assert calibration.deciles() == [
        {"rows": 4, "predicted": 0.2, "liked": 0.25},
        {"rows": 4, "predicted": 0.8, "liked": 1.0},
    ]
    assert calibration_error(calibration.sums.sum(axis=0)) == pytest.approx((0.05 + 0.2) / 2)


def test_deciles_hold_a_tenth_of_the_rows_each() -> None:
    random = np.random.default_rng(3)
    calibration = Calibration.from_rows(
        np.zeros(1000, int), 1, random.random(1000) < 0.5, random.random(1000)
    )
    assert [each["rows"] for each in calibration.deciles()] == [100] * 10
