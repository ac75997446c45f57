"""Intervals: whole users are drawn, pairs stay paired, and 95 % intervals have about their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.arrays import Float64s
from batch.evaluation.bootstrap import MAX_DRAWS, MIN_DRAWS, PointwiseRows, bootstrap, draw_weights


def make_rows(users: int, rows_each: int, seed: int) -> PointwiseRows:
    """Make rows whose users differ in like rate, with noisy scores."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows_each)
    probability: Float64s = random.beta(2, 4, users)[user]
    liked = random.random(user.size) < probability
    return PointwiseRows(user, liked, probability + random.normal(0, 0.1, user.size), probability)


def test_a_draw_takes_as_many_users_as_there_are() -> None:
    assert {weights.sum() for weights in draw_weights(30, 20, seed=1)} == {30}


def test_the_same_seed_gives_the_same_draws() -> None:
    for one, other in zip(draw_weights(30, 20, seed=1), draw_weights(30, 20, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_draws_agree_with_metrics_of_rows_taken_one_by_one() -> None:
    pointwise = make_rows(users=25, rows_each=8, seed=2)
    lists = {"hitrate_at_5": np.random.default_rng(3).random(25)}
    result = bootstrap(lists, np.arange(25), pointwise, seed=4)
    for draw, weights in enumerate(draw_weights(25, 5, seed=4)):
        drawn = np.repeat(np.arange(25), weights.astype(int))
        rows = np.concatenate([np.flatnonzero(pointwise.users == user) for user in drawn])
        auc = roc_auc_score(pointwise.liked[rows], pointwise.scores[rows])
        assert result.draws["roc_auc"][draw] == pytest.approx(auc)
        assert result.draws["hitrate_at_5"][draw] == pytest.approx(lists["hitrate_at_5"][drawn].mean())
        assert pointwise.probabilities is not None
        picked = np.where(pointwise.liked, pointwise.probabilities, 1 - pointwise.probabilities)[rows]
        assert result.draws["log_loss"][draw] == pytest.approx(-np.log(picked).mean())


def test_an_interval_over_users_agrees_with_the_normal_approximation() -> None:
    values = (np.random.default_rng(5).random(2_000) < 0.3).astype(float)
    result = bootstrap({"hitrate_at_5": values}, np.arange(2_000), None, seed=6)
    low, high = result.interval("hitrate_at_5")
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half, abs=half / 4)
    assert high == pytest.approx(values.mean() + half, abs=half / 4)


def test_several_lists_of_one_user_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(7).random(50), 4)
    together = bootstrap({"metric": values}, np.repeat(np.arange(50), 4), None, seed=8)
    apart = bootstrap({"metric": values}, np.arange(200), None, seed=8)
    assert together.values == pytest.approx(apart.values)
    assert together.draws["metric"].std() > 1.5 * apart.draws["metric"].std()


def test_users_without_a_value_are_left_out_of_the_mean() -> None:
    result = bootstrap({"recall_at_5": np.array([1.0, np.nan, 0.5])}, np.arange(3), None, seed=1)
    assert result.values["recall_at_5"] == 0.75


def test_a_paired_difference_is_tighter_than_two_intervals_side_by_side() -> None:
    random = np.random.default_rng(9)
    base = random.random(500)
    one = bootstrap({"metric": base}, np.arange(500), None, seed=10)
    other = bootstrap({"metric": base + 0.01}, np.arange(500), None, seed=10)
    difference, low, high = other.minus(one)["metric"]
    assert difference == pytest.approx(0.01)
    assert (low, high) == pytest.approx((0.01, 0.01))
    assert one.interval("metric")[1] - one.interval("metric")[0] > 0.02


def test_nobody_gives_nan_and_no_error() -> None:
    nobody = np.empty(0, int)
    nothing = PointwiseRows(nobody, nobody.astype(bool), np.empty(0), np.empty(0))
    result = bootstrap({"hitrate_at_5": np.empty(0)}, nobody, nothing, seed=1)
    assert all(math.isnan(value) for value in result.values.values())
    assert all(math.isnan(bound) for name in result.values for bound in result.interval(name))


def test_many_rows_make_do_with_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.evaluation.bootstrap.MAX_ROWS_DRAWN", 3_000)
    few = bootstrap({"metric": np.ones(5)}, np.arange(5), None, seed=1)
    some = bootstrap({"metric": np.ones(10)}, np.arange(10), None, seed=1)
    many = bootstrap({"metric": np.ones(400)}, np.arange(400), None, seed=1)
    assert [result.draws["metric"].size for result in (few, some, many)] == [MAX_DRAWS, 300, MIN_DRAWS]
