"""The statistics of an experiment against truths that are known: drawn, resampled, or worked out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from batch.experiment.report import analyse
from batch.experiment.statistics import (
    BEFORE_PREFIX,
    HITRATE,
    IN_TEST,
    LIKE_RATE,
    LIKES_PER_USER,
    METRICS,
    check_sample_ratio,
    compare_days,
    compare_metric,
)
from batch.experiment.verdict import Outcome
from contract.experiment import TEST
from tests.support.experiment import a_period, draw_users, within_binomial_bounds

TRIALS = 80


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_delta_method_gives_the_interval_of_the_bootstrap_over_users(metric: object) -> None:
    users = draw_users(1, 2_000, effect=0.1)
    found = compare_metric(users, metric)
    assert found is not None
    random = np.random.default_rng(2)
    drawn = []
    for _ in range(300):
        sample = users.iloc[random.integers(0, len(users), len(users))]
        arms = [sample[sample[IN_TEST] == in_test] for in_test in (False, True)]
        bottoms = [len(arm) if metric.denominator is None else arm[metric.denominator].sum() for arm in arms]
        rates = [arm[metric.numerator].sum() / bottom for arm, bottom in zip(arms, bottoms, strict=True)]
        drawn.append(rates[1] - rates[0])
    half = (found.unadjusted.high - found.unadjusted.low) / 2
    assert half == pytest.approx(1.96 * np.std(drawn), rel=0.15)
    assert found.unadjusted.value == pytest.approx(found.test - found.control)


def test_a_ratio_judged_as_if_views_were_independent_would_call_far_too_often() -> None:
    ours = naive = 0
    for seed in range(TRIALS):
        users = draw_users(seed, 300)
        found = compare_metric(users, LIKE_RATE)
        ours += found.p_value < 0.05
        sums = users.groupby(IN_TEST)[["likes", "views"]].sum()
        table = [sums.likes.tolist(), (sums.views - sums.likes).tolist()]
        naive += stats.chi2_contingency(table, correction=False).pvalue < 0.05
    assert within_binomial_bounds(ours, TRIALS, 0.05)
    assert naive > 2 * ours


@pytest.mark.parametrize("effect", [0.0, 0.2])
def test_the_interval_covers_the_truth_as_often_as_it_says(effect: float) -> None:
    covered = 0
    for seed in range(TRIALS):
        found = compare_metric(draw_users(1_000 + seed, 400, effect=effect), LIKE_RATE).relative
        covered += found.low <= effect <= found.high
    assert within_binomial_bounds(covered, TRIALS, 0.95)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_cuped_narrows_the_interval_and_does_not_move_what_it_is_around(metric: object) -> None:
    found = [compare_metric(draw_users(seed, 400, effect=0.1), metric) for seed in range(TRIALS)]
    plain, adjusted = (
        np.array([interval.value for interval in values])
        for values in ([f.unadjusted for f in found], [f.absolute for f in found])
    )
    assert abs((adjusted - plain).mean()) < 4 * (adjusted - plain).std() / math.sqrt(TRIALS)
    mean_reduction = np.mean([each.variance_reduction for each in found])
    assert mean_reduction > 0.1
    assert mean_reduction == pytest.approx(1 - adjusted.var() / plain.var(), abs=0.2)


def test_cuped_takes_nothing_where_nobody_did_anything_before() -> None:
    users = draw_users(3)
    users[[name for name in users if name.startswith(BEFORE_PREFIX)]] = 0
    found = compare_metric(users, LIKE_RATE)
    assert found.variance_reduction == 0
    assert found.absolute == found.unadjusted


def test_a_difference_of_the_size_said_to_be_detectable_is_found_in_eight_of_ten_experiments() -> None:
    detectable = np.mean(
        [compare_metric(draw_users(s, 600), LIKE_RATE).detectable_relative for s in range(20)]
    )
    found = sum(
        compare_metric(draw_users(5_000 + s, 600, effect=detectable), LIKE_RATE).p_value < 0.05
        for s in range(TRIALS)
    )
    # The spread grows with the rate, so the power at the raised rate is a little below the 80 %.
    assert found / TRIALS == pytest.approx(0.8, abs=0.09)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(METRICS))
def test_swapping_the_variants_turns_the_difference_round(seed: int, metric: object) -> None:
    users = draw_users(seed, 60)
    there, back = compare_metric(users, metric), compare_metric(users.assign(in_test=~users[IN_TEST]), metric)
    assert there.absolute.value == pytest.approx(-back.absolute.value)
    assert there.absolute.low == pytest.approx(-back.absolute.high)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.absolute.low <= there.absolute.value <= there.absolute.high
    assert (there.p_value < 0.05) == (not there.absolute.low <= 0 <= there.absolute.high)


@pytest.mark.parametrize(
    ("control", "test", "percent", "broken"),
    [
        (5_000, 5_000, 50, False), (5_050, 4_950, 50, False), (5_300, 4_700, 50, True),
        (9_000, 1_000, 10, False), (9_000, 1_200, 10, True),
        (100, 0, 0, False), (99, 1, 0, True), (0, 100, 100, False), (1, 99, 100, True),
    ],
)  # fmt: skip
def test_a_split_that_is_not_the_one_asked_for_is_noticed(
    control: int, test: int, percent: int, broken: bool
) -> None:
    assert check_sample_ratio(control, test, percent).broken is broken


def test_a_broken_split_voids_even_a_great_difference() -> None:
    users = draw_users(4, 4_000, effect=0.5)
    sound, lost = (
        analyse(users, a_period()),
        analyse(users.drop(users[users[IN_TEST]].index[:400]), a_period()),
    )
    assert (sound.verdict.outcome, sound.verdict.winner) == (Outcome.DECIDED, TEST)
    assert (lost.verdict.outcome, lost.verdict.winner) == (Outcome.VOID, None)
    assert lost.verdict.sentence.startswith(
        "Nothing can be concluded: 2,019 users are in control and 1,581 in test"
    )


def test_looking_every_day_at_two_variants_that_are_alike_names_no_winner_before_the_end() -> None:
    days, looked, called, would_have = (1, 7, 13), 0, 0, 0
    for seed in range(25):
        users = draw_users(20_000 + seed, 300)
        for day in days:
            # A user's days come one by one; the first so many stand for a share of the counts.
            so_far = users.assign(**{name: users[name] * day // 14 for name in ("views", "likes")})
            verdict = analyse(so_far, a_period(days=day))
            looked += 1
            called += verdict.verdict.winner is not None
            would_have += verdict.differences[0].p_value < 0.05
            assert verdict.verdict.outcome is Outcome.EARLY
    assert looked == 25 * len(days)
    assert called == 0
    assert would_have > 0


def test_days_are_compared_as_the_users_of_that_day_alone_would_be() -> None:
    users = draw_users(6, 500, effect=0.3)
    views, likes = users.views, users.likes
    sums = users.assign(
        day="2022-01-04", users=1, views_views=views**2, likes_likes=likes**2, views_likes=views * likes
    )
    mean_reduction = ["users", "views", "likes", "views_views", "likes_likes", "views_likes"]
    days = sums.groupby([IN_TEST, "day"])[mean_reduction].sum().reset_index()
    (found,) = compare_days(days)
    whole = compare_metric(users, LIKE_RATE).unadjusted
    assert found.difference.value == pytest.approx(whole.value)
    assert found.difference.low == pytest.approx(whole.low, rel=0.01)


def test_metrics_without_a_value_are_left_out_and_the_next_one_decides() -> None:
    users = draw_users(7)
    no_views = users.assign(views=0, days=0, hits=0)
    found = analyse(no_views, a_period())
    assert [each.metric for each in found.differences] == [LIKES_PER_USER]
    assert analyse(users[users[IN_TEST]], a_period(percent_test=100)).verdict.outcome is Outcome.EMPTY
    assert analyse(users.iloc[:0], a_period()).verdict.outcome is Outcome.EMPTY
    assert compare_metric(users.assign(hits=0), HITRATE) is None


def test_likes_per_user_is_the_plain_mean() -> None:
    users = pd.DataFrame(
        {IN_TEST: [False, False, True, True], "likes": [1, 3, 4, 6], BEFORE_PREFIX + "likes": [0, 0, 0, 0]}
    )
    found = compare_metric(users, LIKES_PER_USER)
    expected = stats.ttest_ind([4, 6], [1, 3], equal_var=False)
    assert (found.control, found.test, found.absolute.value) == (2, 5, 3)
    assert found.p_value == pytest.approx(expected.pvalue)
