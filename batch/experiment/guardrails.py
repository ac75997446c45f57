"""Guardrails: what must not get worse in an experiment: fallback answers, wrong lists, coverage, latency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa
from scipy import stats

from batch.experiment.outcomes import find_population
from batch.experiment.period import Period
from batch.experiment.statistics import CONFIDENCE, IN_TEST, MIN_USERS, Interval
from batch.loading.copy import copy_out
from contract.columns import INTERACTIONS, LIKE_ACTION, POSTS, SCHEMA, VIEW_ACTION
from contract.experiment import CONTROL, TEST

ANSWERS = f"""
    WITH population AS MATERIALIZED ({{population}}), answers AS (
        SELECT e.user_id{{cast}} AS user_id, in_test, count(*) AS answers,
               count(*) FILTER (WHERE e.source = 'popular') AS popular,
               count(*) FILTER (WHERE (e.variant = '{TEST}') <> in_test) AS other
        FROM {SCHEMA}.exposures e JOIN population ON e.user_id{{cast}} = population.user_id
        WHERE e.key_prefix = %(key_prefix)s AND e.served_at >= %(since)s AND e.served_at < %(until)s
        GROUP BY 1, 2
    )
    SELECT in_test, sum(answers) AS answers, sum(popular) AS popular, sum(other) AS other,
           count(*) FILTER (WHERE other > 0) AS users_of_other
    FROM answers GROUP BY 1 ORDER BY 1
"""
REACHED_POSTS = f"""
    WITH population AS MATERIALIZED ({{population}}), by_post AS (
        SELECT in_test, i.post_id, bool_or(i.action = '{VIEW_ACTION}') AS viewed,
               bool_or(i.action = '{LIKE_ACTION}') AS liked
        FROM {SCHEMA}.{INTERACTIONS} i JOIN population ON i.user_id{{cast}} = population.user_id
        WHERE i.happened_at >= population.first_at AND i.happened_at < %(until)s
        GROUP BY 1, 2
    )
    SELECT in_test, count(*) FILTER (WHERE viewed) AS viewed, count(*) FILTER (WHERE liked) AS liked
    FROM by_post GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class Guardrails:
    """Guardrails of the users assigned to one variant; None if exposures were not recorded.

    Attributes
    ----------
    popular_share
        Share of first pages answered from the popular list.
    other_share, users_of_other
        Share of first pages answered from the other variant's list, and the
        number of users who saw at least one such page.
    posts_viewed_share, posts_liked_share
        Share of the network's posts that at least one user viewed, or liked. A
        variant with more users reaches more posts: compare at a 50 % split only.
    """

    popular_share: float | None
    other_share: float | None
    users_of_other: int | None
    posts_viewed_share: float
    posts_liked_share: float


def read_guardrails(
    connection: sa.Connection, period: Period, exposures_recorded: bool
) -> dict[str, Guardrails]:
    """Measure the guardrails of each variant over the period."""
    population = find_population(connection, period, exposures_recorded)

    def read_rows(sql: str) -> dict[str, pd.Series]:
        frames = copy_out(connection, population.query(sql), population.parameters)
        rows = pd.concat(frames, ignore_index=True)
        return {_variant(row[IN_TEST]): row for _, row in rows.iterrows()}

    answers, reached = read_rows(ANSWERS), read_rows(REACHED_POSTS)
    posts = int(connection.scalar(sa.text(f"SELECT count(*) FROM {SCHEMA}.{POSTS}")) or 0)
    return {
        variant: Guardrails(
            popular_share=_answer_share(answers.get(variant), "popular"),
            other_share=_answer_share(answers.get(variant), "other"),
            users_of_other=int(answers[variant]["users_of_other"]) if variant in answers else None,
            posts_viewed_share=_post_share(reached.get(variant), "viewed", posts),
            posts_liked_share=_post_share(reached.get(variant), "liked", posts),
        )
        for variant in (CONTROL, TEST)
    }


def _variant(in_test: str) -> str:
    """Return the variant of a boolean as COPY writes it."""
    return TEST if in_test == "t" else CONTROL


def _answer_share(row: pd.Series | None, column: str) -> float | None:
    return None if row is None else float(row[column] / row["answers"])


def _post_share(row: pd.Series | None, column: str, posts: int) -> float:
    return 0.0 if row is None or posts == 0 else float(row[column] / posts)


MEDIAN, P99 = 0.5, 0.99
MIN_DIFFERENCE_MS = 1.0
MIN_DIFFERENCE_SHARE = 0.1
"""A difference of p99 matters if it is at least 1 ms and at least 10 % of control's p99."""

TIMED = f"""
    WITH population AS MATERIALIZED ({{population}}), timed AS (
        SELECT e.user_id{{cast}} AS user_id, in_test, e.took_ms
        FROM {SCHEMA}.exposures e JOIN population ON e.user_id{{cast}} = population.user_id
        WHERE e.key_prefix = %(key_prefix)s AND e.served_at >= %(since)s AND e.served_at < %(until)s
          AND e.took_ms IS NOT NULL
    )
"""
ANSWERS_BY_TIME = f"""{TIMED}
    SELECT in_test, took_ms, count(*) AS answers FROM timed GROUP BY 1, 2 ORDER BY 1, 2
"""
SLOW_ANSWER_SUMS = f"""{TIMED}, users AS (
        SELECT in_test, count(*) AS answers,
               count(*) FILTER (
                   WHERE took_ms >= CASE WHEN in_test THEN %(test)s ELSE %(control)s END::real
               ) AS slow
        FROM timed GROUP BY user_id, in_test
    )
    SELECT in_test, count(*) AS users, sum(answers) AS answers, sum(slow) AS slow,
           sum(answers * answers) AS answers_answers, sum(slow * slow) AS slow_slow,
           sum(answers * slow) AS answers_slow
    FROM users GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class Latency:
    """Latency of the first pages of one variant; no bounds of p99 if there are too few answers."""

    answers: int
    p50_ms: float
    p99_ms: float
    p99_low: float | None
    p99_high: float | None


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of each variant (None without records), and the difference of p99 (test minus control)."""

    control: Latency | None
    test: Latency | None
    difference: Interval | None
    matters: bool
    sentence: str


def read_latencies(connection: sa.Connection, period: Period, exposures_recorded: bool) -> LatencyComparison:
    """Measure and compare the latency of answers, from their exposures."""
    population = find_population(connection, period, exposures_recorded)

    def read_frames(sql: str, **more: float) -> dict[str, pd.DataFrame]:
        frames = copy_out(connection, population.query(sql), population.parameters | more)
        rows = pd.concat(frames, ignore_index=True)
        return {_variant(str(in_test)): group for in_test, group in rows.groupby(IN_TEST)}

    times = read_frames(ANSWERS_BY_TIME)
    p99 = {variant: time_quantile(rows, P99) for variant, rows in times.items()}
    if not p99:
        return compare_latencies(None, None)
    sums = read_frames(SLOW_ANSWER_SUMS, control=p99.get(CONTROL, 0.0), test=p99.get(TEST, 0.0))
    found = {variant: measure_latency(times[variant], sums[variant].iloc[0]) for variant in p99}
    return compare_latencies(found.get(CONTROL), found.get(TEST))


def time_quantile(times: pd.DataFrame, share: float) -> float:
    """Return the smallest time within which `share` of the answers were given, in ms.

    Parameters
    ----------
    times
        Row per time: `took_ms`, ascending, and the number of `answers`.
    """
    total = times["answers"].cumsum().to_numpy()
    row = np.searchsorted(total, share * total[-1] - 1e-9)
    return float(times["took_ms"].iloc[min(int(row), len(times) - 1)])


def measure_latency(times: pd.DataFrame, sums: pd.Series) -> Latency:
    """Compute p50, p99 and the bounds of p99, over users: answers to one user are correlated.

    The share of slow answers is a ratio over users; the delta method gives its
    standard error. The quantiles one confidence interval below and above p99
    bound it (Woodruff, 1952; for A/B tests: Deng, Knoblich and Lu, 2018).

    Parameters
    ----------
    times
        Row per time: `took_ms`, ascending, and the number of `answers`.
    sums
        `users`, `answers`, `slow` (answers of p99 and longer), and sums over
        users of their products.
    """
    answers, users = int(sums["answers"]), int(sums["users"])
    p50, p99 = time_quantile(times, MEDIAN), time_quantile(times, P99)
    if users < MIN_USERS:
        return Latency(answers, p50, p99, None, None)
    share = sums["slow"] / answers
    squares = sums["slow_slow"] - 2 * share * sums["answers_slow"] + share**2 * sums["answers_answers"]
    error = math.sqrt(max(float(squares), 0.0) * users / (users - 1)) / answers
    low, high = stats.norm.interval(CONFIDENCE, P99, error) if error > 0 else (P99, P99)
    if high >= 1 or low <= 0:
        return Latency(answers, p50, p99, None, None)
    return Latency(answers, p50, p99, time_quantile(times, float(low)), time_quantile(times, float(high)))


def compare_latencies(control: Latency | None, test: Latency | None) -> LatencyComparison:
    """Compare p99; a difference matters if its interval excludes 0 and it is large enough."""
    if control is None or test is None:
        return LatencyComparison(control, test, None, False, "not recorded in both variants, so not compared")
    difference = _p99_difference(control, test)
    if difference is None:
        return LatencyComparison(control, test, None, False, "too few answers to compare p99")
    values = f"{difference.value:+.1f} ms (95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    matters = False
    if difference.low <= 0 <= difference.high:
        sentence = f"no significant difference of p99: {values}"
    elif abs(difference.value) < max(MIN_DIFFERENCE_MS, MIN_DIFFERENCE_SHARE * control.p99_ms):
        sentence = f"p99 differs by too little to matter: {values}"
    else:
        matters = True
        sentence = f"{TEST if difference.value > 0 else CONTROL} is SLOWER: p99 differs by {values}"
    return LatencyComparison(control, test, difference, matters, sentence)


def _p99_difference(control: Latency, test: Latency) -> Interval | None:
    """Return the difference of p99; its bounds come from those of each (Zou and Donner, 2008)."""
    if control.p99_low is None or control.p99_high is None or test.p99_low is None or test.p99_high is None:
        return None
    value = test.p99_ms - control.p99_ms
    below = math.hypot(test.p99_ms - test.p99_low, control.p99_high - control.p99_ms)
    above = math.hypot(test.p99_high - test.p99_ms, control.p99_ms - control.p99_low)
    return Interval(value, value - below, value + above)
