"""What the users of an experiment did, summed by Postgres: a row per user, and a row per variant and day.

The population: users exposed at least once in the period, counted from their
first exposure on, in the variant that the split assigns (intention to treat).
Which list they were served does not matter: if a variant had no live run for a
while, dropping its users would drop one variant's bad days. Pinned users were
not assigned at random and are left out, and so are ids that are not in
`recs.users`: a request with any id is recorded as an exposure. If exposures are
not recorded, the first view replaces the first exposure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from batch.experiment.history import bucket_sql
from batch.experiment.period import Period
from batch.experiment.statistics import BEFORE_PREFIX, COUNTS, IN_TEST
from batch.loading.copy import copy_out
from batch.runs.tables import exposures
from batch.runs.user_ids import keep_numbers, user_id_cast
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, USER_ID, USERS, VIEW_ACTION

DAY = "day"
FIRST_POSTS = 5
"""HitRate@5 uses the first five different posts that a user viewed on a day."""

EXPOSED = f"""
    SELECT user_id{{cast}} AS user_id, min(served_at) AS first_at FROM {SCHEMA}.exposures
    WHERE key_prefix = %(key_prefix)s AND served_at >= %(since)s AND served_at < %(until)s GROUP BY 1
"""
VIEWED = f"""
    SELECT user_id{{cast}} AS user_id, min(happened_at) AS first_at FROM {SCHEMA}.{INTERACTIONS}
    WHERE happened_at >= %(since)s AND happened_at < %(until)s AND action = '{VIEW_ACTION}'
      AND user_id IS NOT NULL GROUP BY 1
"""
IS_USER = f"EXISTS (SELECT FROM {SCHEMA}.{USERS} AS known WHERE known.user_id{{cast}} = first_seen.user_id)"
POPULATION = f"""
    SELECT user_id, first_at, {bucket_sql("user_id", "%(salt)s")} < %(percent_test)s AS in_test
    FROM ({{first_seen}}) AS first_seen
    WHERE user_id <> ALL (%(pinned)s::{{kind}}[]) AND {IS_USER}
"""
UNKNOWN_IDS = f"""
    SELECT count(*) AS ids FROM ({{first_seen}}) AS first_seen
    WHERE user_id <> ALL (%(pinned)s::{{kind}}[]) AND NOT {IS_USER}
"""
BY_POST = f"""
    SELECT i.user_id{{cast}} AS user_id,
           (i.happened_at::timestamptz AT TIME ZONE 'UTC')::date AS day, i.post_id,
           count(*) FILTER (WHERE i.action = '{VIEW_ACTION}') AS views,
           count(*) FILTER (WHERE i.action = '{LIKE_ACTION}') AS likes,
           min(i.happened_at) FILTER (WHERE i.action = '{VIEW_ACTION}') AS first_view,
           max(i.happened_at) FILTER (WHERE i.action = '{LIKE_ACTION}') AS last_like
    FROM {SCHEMA}.{INTERACTIONS} i JOIN population ON i.user_id{{cast}} = population.user_id
    WHERE i.happened_at >= %(first)s AND i.happened_at < %(last)s
      AND (NOT %(exposed)s OR i.happened_at >= population.first_at)
    GROUP BY 1, 2, 3
"""
BY_DAY = f"""
    SELECT user_id, day, sum(views) AS views, sum(likes) AS likes, (sum(views) > 0)::int AS days,
           coalesce(bool_or(view_rank <= {FIRST_POSTS} AND last_like >= first_view), false)::int AS hits
    FROM (SELECT *, row_number() OVER (PARTITION BY user_id, day ORDER BY first_view, post_id) AS view_rank
          FROM ({BY_POST}) AS posts) AS ranked
    GROUP BY 1, 2
"""
SUMS = f"""
    WITH population AS MATERIALIZED ({{population}}), user_days AS ({BY_DAY})
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
        False if no exposures were recorded and views replace them.
    unknown_ids
        Number of ids that were exposed and are not in `recs.users`; they are not counted as users.
    """

    users: pd.DataFrame
    days: pd.DataFrame
    by_exposure: bool
    unknown_ids: int


def has_exposures(connection: sa.Connection, period: Period, exposures_recorded: bool) -> bool:
    """Return whether the period has exposures; False without a query if they are not recorded."""
    if not exposures_recorded:
        return False
    ours = exposures.c.key_prefix == period.split.key_prefix
    served_at = exposures.c.served_at
    any_exposure = sa.exists().where(ours, served_at >= period.since, served_at < period.until)
    return bool(connection.scalar(sa.select(any_exposure)))


@dataclass(frozen=True)
class Population:
    """The users that are counted, and the parameters of queries over them.

    Attributes
    ----------
    by_exposure
        False if no exposures were recorded and views replace them.
    cast
        By which ids of the views and of the exposures compare, see `user_id_cast`.
    """

    by_exposure: bool
    cast: str
    parameters: dict[str, Any]

    def query(self, template: str) -> str:
        """Return a query over the population.

        Parameters
        ----------
        template
            With `{population}`, whose rows have `user_id`, `first_at` and `in_test`; `{cast}` follows other
            ids of users in it.
        """
        names = {"cast": self.cast, "kind": self.cast.removeprefix("::") or "bigint"}
        first_seen = (EXPOSED if self.by_exposure else VIEWED).format(**names)
        population = POPULATION.format(first_seen=first_seen, **names)
        return template.format(population=population, first_seen=first_seen, **names)


def find_population(connection: sa.Connection, period: Period, exposures_recorded: bool) -> Population:
    """Return the population of a period.

    Parameters
    ----------
    exposures_recorded
        Whether serving records exposures; if False, views replace them.
    """
    experiment, cast, pinned = period.split.experiment, user_id_cast(connection), period.split.pinned
    return Population(
        has_exposures(connection, period, exposures_recorded),
        cast,
        {
            "since": period.since,
            "until": period.until,
            "salt": experiment.salt,
            "percent_test": experiment.percent_test,
            "pinned": list(pinned) if cast else keep_numbers(pinned),
            "key_prefix": period.split.key_prefix,
        },
    )


def read_outcomes(connection: sa.Connection, period: Period, exposures_recorded: bool) -> Outcomes:
    """Sum what users did in the period and before it; parameters as in `find_population`."""
    population = find_population(connection, period, exposures_recorded)
    during = {"first": period.since, "last": period.until, "exposed": True}
    before = {"first": period.before_since, "last": period.before_until, "exposed": False}
    sums, sums_before = (_read_sums(connection, population, times) for times in (during, before))
    users = _user_rows(sums).join(_user_rows(sums_before)[list(COUNTS)].add_prefix(BEFORE_PREFIX))
    days = sums[sums[USER_ID].isna() & sums[DAY].notna()].drop(columns=[USER_ID, "days", "hits"])
    unknown = connection.exec_driver_sql(population.query(UNKNOWN_IDS), population.parameters).scalar_one()
    return Outcomes(users, days.reset_index(drop=True), population.by_exposure, int(unknown))


def _read_sums(connection: sa.Connection, population: Population, times: dict[str, Any]) -> pd.DataFrame:
    text = (DAY, USER_ID) if population.cast else (DAY,)
    frames = copy_out(connection, population.query(SUMS), population.parameters | times, text=text)
    rows = pd.concat(frames, ignore_index=True)
    return rows.assign(**{IN_TEST: rows[IN_TEST] == "t"})


def _user_rows(sums: pd.DataFrame) -> pd.DataFrame:
    rows = sums[sums[USER_ID].notna()].set_index(USER_ID)
    return rows[[IN_TEST, *COUNTS]].astype(dict.fromkeys(COUNTS, "int64"))
