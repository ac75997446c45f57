import math

import numpy as np
import pytest

from batch.metrics import probability_metrics, ranking_metrics


def arrays(rows: list[tuple[int, int, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    users, posts, liked, scores = zip(*rows, strict=True)
    return np.array(users), np.array(posts), np.array(liked, dtype=bool), np.array(scores, dtype=float)


def test_ranking_metrics_agree_with_figures_worked_out_by_hand() -> None:
    rows = [
        # user 1: ranked 10, 11, 12; likes 11 and 12, so one of the first two
        (1, 10, 0, 0.9), (1, 11, 1, 0.8), (1, 12, 1, 0.1),
        # user 2: ranked 21, 20; likes neither
        (2, 20, 0, 0.2), (2, 21, 0, 0.3),
        # user 3: ranked 31, 32, 30; likes 30 alone, which comes third
        (3, 30, 1, 0.1), (3, 31, 0, 0.3), (3, 32, 0, 0.2),
    ]  # fmt: skip
    found = ranking_metrics(*arrays(rows), k=2)
    assert found["hitrate_at_2"] == pytest.approx(1 / 3)
    assert found["precision_at_2"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall_at_2"] == pytest.approx((1 / 2 + 0) / 2)
    gain, ideal = 1 / math.log2(3), 1 + 1 / math.log2(3)
    assert found["ndcg_at_2"] == pytest.approx((gain / ideal + 0) / 2)


def test_a_perfect_ranking_of_more_likes_than_k_has_ndcg_one() -> None:
    rows = [(1, post, int(post < 7), -float(post)) for post in range(10)]
    found = ranking_metrics(*arrays(rows), k=5)
    assert found["ndcg_at_5"] == pytest.approx(1)
    assert found["precision_at_5"] == 1
    assert found["recall_at_5"] == pytest.approx(5 / 7)


def test_equal_scores_rank_the_lower_post_first() -> None:
    rows = [(1, 3, 0, 0.5), (1, 1, 1, 0.5), (1, 2, 0, 0.5)]
    assert ranking_metrics(*arrays(rows), k=1)["hitrate_at_1"] == 1


def test_a_user_with_fewer_posts_than_k_still_counts() -> None:
    assert ranking_metrics(*arrays([(1, 1, 1, 0.5)]), k=5) == {
        "hitrate_at_5": 1,
        "precision_at_5": pytest.approx(0.2),
        "recall_at_5": 1,
        "ndcg_at_5": 1,
    }


def test_nobody_to_judge_gives_nan_and_no_error() -> None:
    empty = np.empty(0)
    nobody = ranking_metrics(empty.astype(int), empty.astype(int), empty.astype(bool), empty)
    assert all(math.isnan(value) for value in nobody.values())
    alike = probability_metrics(np.ones(3, dtype=bool), np.arange(3.0), None)
    assert all(math.isnan(value) for value in alike.values())


def test_auc_and_log_loss_agree_with_figures_worked_out_by_hand() -> None:
    liked = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    found = probability_metrics(liked, scores, scores)
    assert found["roc_auc"] == pytest.approx(3 / 4)
    assert found["log_loss"] == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.9)) / 4
    )
