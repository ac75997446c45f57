"""What must not get worse while an experiment is won: popular answers, the other's lists, coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa
from scipy import stats

from batch.experiment.outcomes import POPULATION, came, parameters
from batch.experiment.period import Period
from batch.experiment.statistics import CONFIDENCE, FEWEST_USERS, IN_TEST, Interval
from batch.loading.copy import copy_out
from contract.columns import INTERACTIONS, LIKE_ACTION, POSTS, SCHEMA, VIEW_ACTION
from contract.experiment import CONTROL, TEST

ANSWERS = f"""
    WITH population AS MATERIALIZED ({POPULATION}), answers AS (
        SELECT user_id, in_test, count(*) AS answers,
               count(*) FILTER (WHERE e.source = 'popular') AS popular,
               count(*) FILTER (WHERE (e.variant = '{TEST}') <> in_test) AS other
        FROM {SCHEMA}.exposures e JOIN population USING (user_id)
        WHERE e.key_prefix = %(key_prefix)s AND e.served_at >= %(since)s AND e.served_at < %(until)s
        GROUP BY 1, 2
    )
    SELECT in_test, sum(answers) AS answers, sum(popular) AS popular, sum(other) AS other,
           count(*) FILTER (WHERE other > 0) AS users_of_other
    FROM answers GROUP BY 1 ORDER BY 1
"""
SHOWN = f"""
    WITH population AS MATERIALIZED ({POPULATION}), by_post AS (
        SELECT in_test, i.post_id, bool_or(i.action = '{VIEW_ACTION}') AS viewed,
               bool_or(i.action = '{LIKE_ACTION}') AS liked
        FROM {SCHEMA}.{INTERACTIONS} i JOIN population USING (user_id)
        WHERE i.happened_at >= population.first_at AND i.happened_at < %(until)s
        GROUP BY 1, 2
    )
    SELECT in_test, count(*) FILTER (WHERE viewed) AS viewed, count(*) FILTER (WHERE liked) AS liked
    FROM by_post GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class GuardRails:
    """Of the users assigned to one variant; None where exposures were not recorded.

    Attributes
    ----------
    popular_share
        Share of first pages answered from the popular list.
    other_share, users_of_other
        Share of first pages that the other variant's list answered, and how
        many users saw such a page at least once.
    posts_viewed_share, posts_liked_share
        Share of the network's posts that anybody viewed, or liked. A variant
        with more users reaches more posts: compare at an even split only.
    """

    popular_share: float | None
    other_share: float | None
    users_of_other: int | None
    posts_viewed_share: float
    posts_liked_share: float


def read_guard_rails(connection: sa.Connection, period: Period, recorded: bool) -> dict[str, GuardRails]:
    """Measure each variant's guard rails over the period."""
    query = came(connection, period, recorded)
    asked = parameters(period)

    def rows(sql: str) -> dict[str, pd.Series]:
        found = pd.concat(copy_out(connection, sql.format(came=query), asked), ignore_index=True)
        return {TEST if row[IN_TEST] == "t" else CONTROL: row for _, row in found.iterrows()}

    answers, shown = rows(ANSWERS), rows(SHOWN)
    posts = int(connection.scalar(sa.text(f"SELECT count(*) FROM {SCHEMA}.{POSTS}")) or 0)
    return {
        variant: GuardRails(
            popular_share=_share(answers.get(variant), "popular", "answers"),
            other_share=_share(answers.get(variant), "other", "answers"),
            users_of_other=int(answers[variant]["users_of_other"]) if variant in answers else None,
            posts_viewed_share=_part(shown.get(variant), "viewed", posts),
            posts_liked_share=_part(shown.get(variant), "liked", posts),
        )
        for variant in (CONTROL, TEST)
    }


def _share(row: pd.Series | None, top: str, bottom: str) -> float | None:
    return None if row is None else float(row[top] / row[bottom])


def _part(row: pd.Series | None, name: str, whole: int) -> float:
    return 0.0 if row is None or whole == 0 else float(row[name] / whole)


MEDIAN, SLOW = 0.5, 0.99
MATTERS_MS = 1.0
MATTERS_SHARE = 0.1
"""A difference of p99 matters from a millisecond on, if that is a tenth of control's at least."""

TIMED = f"""
    WITH population AS MATERIALIZED ({POPULATION}), timed AS (
        SELECT user_id, in_test, e.took_ms
        FROM {SCHEMA}.exposures e JOIN population USING (user_id)
        WHERE e.key_prefix = %(key_prefix)s AND e.served_at >= %(since)s AND e.served_at < %(until)s
          AND e.took_ms IS NOT NULL
    )
"""
TIMES = f"""{TIMED}
    SELECT in_test, took_ms, count(*) AS answers FROM timed GROUP BY 1, 2 ORDER BY 1, 2
"""
SPREAD = f"""{TIMED}, users AS (
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
    """Of the first pages answered to users of one variant; p99 without bounds where answers are too few."""

    answers: int
    p50_ms: float
    p99_ms: float
    p99_low: float | None
    p99_high: float | None


@dataclass(frozen=True)
class Latencies:
    """Each variant's, None where none was noted; the difference of p99 (test less control), if it is told."""

    control: Latency | None
    test: Latency | None
    difference: Interval | None
    matters: bool
    sentence: str


def read_latencies(connection: sa.Connection, period: Period, recorded: bool) -> Latencies:
    """Measure and compare how long answers took, by exposures."""
    asked, query = parameters(period), came(connection, period, recorded)

    def rows(sql: str, **more: float) -> dict[str, pd.DataFrame]:
        found = pd.concat(copy_out(connection, sql.format(came=query), asked | more), ignore_index=True)
        return {TEST if in_test == "t" else CONTROL: part for in_test, part in found.groupby(IN_TEST)}

    times = rows(TIMES)
    slow = {variant: quantile(found, SLOW) for variant, found in times.items()}
    if not slow:
        return compare_latencies(None, None)
    spread = rows(SPREAD, control=slow.get(CONTROL, 0.0), test=slow.get(TEST, 0.0))
    found = {variant: latency(times[variant], spread[variant].iloc[0]) for variant in slow}
    return compare_latencies(found.get(CONTROL), found.get(TEST))


def quantile(times: pd.DataFrame, share: float) -> float:
    """Return the least time within which so great a share was answered: `took_ms`, ascending, `answers`."""
    total = times["answers"].cumsum().to_numpy()
    place = np.searchsorted(total, share * total[-1] - 1e-9)
    return float(times["took_ms"].iloc[min(int(place), len(times) - 1)])


def latency(times: pd.DataFrame, spread: pd.Series) -> Latency:
    """Put bounds to p99, over users: answers to one user are alike.

    The share of slow answers is a ratio over users, whose error the delta
    method tells; the quantiles that far from p99 on either side bound it
    (Woodruff, 1952; for A/B tests: Deng, Knoblich and Lu, 2018).

    Parameters
    ----------
    times
        Row per time: `took_ms`, ascending, and `answers`.
    spread
        `users`, `answers`, `slow` (those of p99 and longer), and sums over
        users of their products.
    """
    answers, users = int(spread["answers"]), int(spread["users"])
    middle, slow = quantile(times, MEDIAN), quantile(times, SLOW)
    if users < FEWEST_USERS:
        return Latency(answers, middle, slow, None, None)
    share = spread["slow"] / answers
    squares = spread["slow_slow"] - 2 * share * spread["answers_slow"] + share**2 * spread["answers_answers"]
    error = math.sqrt(max(float(squares), 0.0) * users / (users - 1)) / answers
    low, high = stats.norm.interval(CONFIDENCE, SLOW, error) if error > 0 else (SLOW, SLOW)
    if high >= 1 or low <= 0:
        return Latency(answers, middle, slow, None, None)
    return Latency(answers, middle, slow, quantile(times, float(low)), quantile(times, float(high)))


def compare_latencies(control: Latency | None, test: Latency | None) -> Latencies:
    """Compare p99; a difference matters if its interval leaves out 0 and its size is not too small."""
    if control is None or test is None:
        return Latencies(control, test, None, False, "not noted in both variants, so nothing to compare")
    difference = _difference(control, test)
    if difference is None:
        return Latencies(control, test, None, False, "too few answers to compare p99")
    told = f"{difference.value:+.1f} ms (95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    enough = abs(difference.value) >= max(MATTERS_MS, MATTERS_SHARE * control.p99_ms)
    if difference.low <= 0 <= difference.high:
        return Latencies(control, test, difference, False, f"no difference of p99 is shown: {told}")
    if not enough:
        return Latencies(control, test, difference, False, f"p99 differs by too little to matter: {told}")
    slower = TEST if difference.value > 0 else CONTROL
    return Latencies(control, test, difference, True, f"{slower} is SLOWER: p99 differs by {told}")


def _difference(control: Latency, test: Latency) -> Interval | None:
    """Return the difference of p99; its bounds come from those of each (Zou and Donner, 2008)."""
    if control.p99_low is None or control.p99_high is None or test.p99_low is None or test.p99_high is None:
        return None
    value = test.p99_ms - control.p99_ms
    below = math.hypot(test.p99_ms - test.p99_low, control.p99_high - control.p99_ms)
    above = math.hypot(test.p99_high - test.p99_ms, control.p99_ms - control.p99_low)
    return Interval(value, value - below, value + above)
