"""Intervals: whole users are drawn, pairs stay paired, and 95 % covers about as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.arrays import Float64s
from batch.evaluation import bootstrap
from batch.evaluation.bootstrap import FEWEST_DRAWS, MOST_DRAWS, Pooled, measure, resamples


def pooled_of(users: int, rows_each: int, seed: int) -> Pooled:
    """Make rows whose users differ in how often they like, scored by a noisy guess."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows_each)
    probability: Float64s = random.beta(2, 4, users)[user]
    liked = random.random(user.size) < probability
    return Pooled(user, liked, probability + random.normal(0, 0.1, user.size), probability)


def test_a_draw_takes_as_many_users_as_there_are() -> None:
    assert {weights.sum() for weights in resamples(30, 20, seed=1)} == {30}


def test_the_same_seed_gives_the_same_draws() -> None:
    for one, other in zip(resamples(30, 20, seed=1), resamples(30, 20, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_draws_agree_with_metrics_of_rows_taken_one_by_one() -> None:
    pooled = pooled_of(users=25, rows_each=8, seed=2)
    lists = {"hitrate_at_5": np.random.default_rng(3).random(25)}
    found = measure(lists, np.arange(25), pooled, seed=4)
    for draw, weights in enumerate(resamples(25, 5, seed=4)):
        drawn = np.repeat(np.arange(25), weights.astype(int))
        rows = np.concatenate([np.flatnonzero(pooled.users == user) for user in drawn])
        auc = roc_auc_score(pooled.liked[rows], pooled.scores[rows])
        assert found.draws["roc_auc"][draw] == pytest.approx(auc)
        assert found.draws["hitrate_at_5"][draw] == pytest.approx(lists["hitrate_at_5"][drawn].mean())
        assert pooled.probabilities is not None
        picked = np.where(pooled.liked, pooled.probabilities, 1 - pooled.probabilities)[rows]
        assert found.draws["log_loss"][draw] == pytest.approx(-np.log(picked).mean())


def test_an_interval_over_users_agrees_with_the_normal_approximation() -> None:
    values = (np.random.default_rng(5).random(2_000) < 0.3).astype(float)
    found = measure({"hitrate_at_5": values}, np.arange(2_000), None, seed=6)
    low, high = found.interval("hitrate_at_5")
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half, abs=half / 4)
    assert high == pytest.approx(values.mean() + half, abs=half / 4)


def test_several_lists_of_one_user_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(7).random(50), 4)
    together = measure({"metric": values}, np.repeat(np.arange(50), 4), None, seed=8)
    apart = measure({"metric": values}, np.arange(200), None, seed=8)
    assert together.values == pytest.approx(apart.values)
    assert together.draws["metric"].std() > 1.5 * apart.draws["metric"].std()


def test_users_without_a_value_are_left_out_of_the_mean() -> None:
    found = measure({"recall_at_5": np.array([1.0, np.nan, 0.5])}, np.arange(3), None, seed=1)
    assert found.values["recall_at_5"] == 0.75


def test_a_paired_difference_is_tighter_than_two_intervals_side_by_side() -> None:
    random = np.random.default_rng(9)
    base = random.random(500)
    one = measure({"metric": base}, np.arange(500), None, seed=10)
    other = measure({"metric": base + 0.01}, np.arange(500), None, seed=10)
    difference, low, high = other.minus(one)["metric"]
    assert difference == pytest.approx(0.01)
    assert (low, high) == pytest.approx((0.01, 0.01))
    assert one.interval("metric")[1] - one.interval("metric")[0] > 0.02


def test_nobody_gives_nan_and_no_error() -> None:
    nobody = np.empty(0, int)
    nothing = Pooled(nobody, nobody.astype(bool), np.empty(0), np.empty(0))
    found = measure({"hitrate_at_5": np.empty(0)}, nobody, nothing, seed=1)
    assert all(math.isnan(value) for value in found.values.values())
    assert all(math.isnan(bound) for name in found.values for bound in found.interval(name))


def test_many_rows_make_do_with_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ROWS_DRAWN", 3_000)
    few = measure({"metric": np.ones(5)}, np.arange(5), None, seed=1)
    some = measure({"metric": np.ones(10)}, np.arange(10), None, seed=1)
    many = measure({"metric": np.ones(400)}, np.arange(400), None, seed=1)
    assert [found.draws["metric"].size for found in (few, some, many)] == [MOST_DRAWS, 300, FEWEST_DRAWS]
