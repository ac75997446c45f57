"""What the users of an experiment did, added up by Postgres: a row per user, and a row per variant and day.

Who counts: users exposed at least once in the period, from their first
exposure on, in the variant that the split assigns them (intention to treat).
What was served instead, where a variant had no run, changes nothing about
that: leaving such users out would leave out one variant's bad days. Users
pinned by hand were not assigned by chance and are left out. Where exposures
are not recorded, the first view stands for the first exposure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from batch.experiment.assignment import bucket_sql
from batch.experiment.period import Period
from batch.experiment.statistics import BEFORE, COUNTS, IN_TEST
from batch.loading.copy import copy_out
from batch.runs.tables import exposures
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, USER_ID, VIEW_ACTION

DAY = "day"
FIRST_POSTS = 5
"""The first so many different posts that a user viewed on a day; HitRate@5 looks at them."""

EXPOSED = f"""
    SELECT user_id, min(served_at) AS first_at FROM {SCHEMA}.exposures
    WHERE key_prefix = %(key_prefix)s AND served_at >= %(since)s AND served_at < %(until)s GROUP BY 1
"""
VIEWED = f"""
    SELECT user_id, min(happened_at) AS first_at FROM {SCHEMA}.{INTERACTIONS}
    WHERE happened_at >= %(since)s AND happened_at < %(until)s AND action = '{VIEW_ACTION}'
      AND user_id IS NOT NULL GROUP BY 1
"""
POPULATION = f"""
    SELECT user_id, first_at, {bucket_sql("user_id", "%(salt)s")} < %(percent_test)s AS in_test
    FROM ({{came}}) AS came
    WHERE user_id <> ALL (%(pinned)s::bigint[])
"""
BY_POST = f"""
    SELECT i.user_id, (i.happened_at::timestamptz AT TIME ZONE 'UTC')::date AS day, i.post_id,
           count(*) FILTER (WHERE i.action = '{VIEW_ACTION}') AS views,
           count(*) FILTER (WHERE i.action = '{LIKE_ACTION}') AS likes,
           min(i.happened_at) FILTER (WHERE i.action = '{VIEW_ACTION}') AS first_view,
           max(i.happened_at) FILTER (WHERE i.action = '{LIKE_ACTION}') AS last_like
    FROM {SCHEMA}.{INTERACTIONS} i JOIN population USING (user_id)
    WHERE i.happened_at >= %(first)s AND i.happened_at < %(last)s
      AND (NOT %(exposed)s OR i.happened_at >= population.first_at)
    GROUP BY 1, 2, 3
"""
BY_DAY = f"""
    SELECT user_id, day, sum(views) AS views, sum(likes) AS likes, (sum(views) > 0)::int AS days,
           coalesce(bool_or(place <= {FIRST_POSTS} AND last_like >= first_view), false)::int AS hits
    FROM (SELECT *, row_number() OVER (PARTITION BY user_id, day ORDER BY first_view, post_id) AS place
          FROM ({BY_POST}) AS posts) AS placed
    GROUP BY 1, 2
"""
SUMS = f"""
    WITH population AS MATERIALIZED ({POPULATION}), user_days AS ({BY_DAY})
    SELECT user_id, in_test, day, count(*) AS users,
           coalesce(sum(views), 0) AS views, coalesce(sum(likes), 0) AS likes,
           coalesce(sum(days), 0) AS days, coalesce(sum(hits), 0) AS hits,
           sum(views * views) AS views_views, sum(likes * likes) AS likes_likes,
           sum(views * likes) AS views_likes
    FROM population LEFT JOIN user_days USING (user_id)
    GROUP BY GROUPING SETS ((user_id, in_test), (in_test, day)) ORDER BY 1, 3, 2
"""


@dataclass(frozen=True)
class Outcomes:
    """What users did.

    Attributes
    ----------
    users
        Row per user with the columns that `batch.experiment.statistics` names, index `user_id`.
    days
        Row per variant and day: `in_test`, `day`, `users` who acted, their
        `views`, `likes`, and sums over users of `views_views`, `likes_likes`
        and `views_likes`.
    by_exposure
        False where no exposures were recorded, so that views stand for them.
    """

    users: pd.DataFrame
    days: pd.DataFrame
    by_exposure: bool


def came(connection: sa.Connection, period: Period, recorded: bool) -> str:
    """Return the query of who came: by their exposures, or by their views where none were recorded."""
    if not recorded:
        return VIEWED
    ours = exposures.c.key_prefix == period.split.key_prefix
    served_at = exposures.c.served_at
    any_at_all = sa.exists().where(ours, served_at >= period.since, served_at < period.until)
    return EXPOSED if connection.scalar(sa.select(any_at_all)) else VIEWED


def parameters(period: Period) -> dict[str, Any]:
    """Return what the queries of a period ask for."""
    experiment = period.split.experiment
    return {
        "since": period.since,
        "until": period.until,
        "salt": experiment.salt,
        "percent_test": experiment.percent_test,
        "pinned": list(period.split.pinned),
        "key_prefix": period.split.key_prefix,
    }


def read_outcomes(connection: sa.Connection, period: Period, recorded: bool) -> Outcomes:
    """Add up what users did in the period and before it.

    Parameters
    ----------
    recorded
        Whether exposures are recorded at all; False takes views in their place.
    """
    query = came(connection, period, recorded)
    asked = parameters(period)
    within = asked | {"first": period.since, "last": period.until, "exposed": True}
    earlier = asked | {"first": period.before_since, "last": period.before_until, "exposed": False}
    now, before = (_sums(connection, query, window) for window in (within, earlier))
    users = _per_user(now).join(_per_user(before)[list(COUNTS)].add_prefix(BEFORE))
    days = now[now[USER_ID].isna() & now[DAY].notna()].drop(columns=[USER_ID, "days", "hits"])
    return Outcomes(users, days.reset_index(drop=True), query is EXPOSED)


def _sums(connection: sa.Connection, query: str, asked: dict[str, Any]) -> pd.DataFrame:
    rows = pd.concat(copy_out(connection, SUMS.format(came=query), asked, text=(DAY,)), ignore_index=True)
    return rows.assign(**{IN_TEST: rows[IN_TEST] == "t"})


def _per_user(sums: pd.DataFrame) -> pd.DataFrame:
    rows = sums[sums[USER_ID].notna()].set_index(USER_ID)
    return rows[[IN_TEST, *COUNTS]].astype(dict.fromkeys(COUNTS, "int64"))
