"""What explored places earned: their likes per view, and those of the other places.

A pair of a user and a post counts once, by its first view since the user's first exposure. It is of an
explored place if the post was served to the user there up to a day before that view. It is liked if the
user liked the post at the view or later in the period.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Float64s
from batch.experiment.outcomes import find_population
from batch.experiment.period import Period
from batch.experiment.statistics import IN_TEST, Interval, Metric, normal_interval
from batch.loading.copy import copy_out
from batch.loading.explored import TABLE, VIEWED_WITHIN
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, VIEW_ACTION
from contract.experiment import CONTROL, TEST

MIN_VIEWERS = 30
"""Fewest users with a view in a sort of places; for fewer, the normal interval is too narrow."""

SAME = 1e-9
"""Values that differ by less are equal but for rounding."""

IN_PERIOD = "key_prefix = %(key_prefix)s AND served_at >= %(since)s AND served_at < %(until)s"
ANY_SERVED = f"SELECT EXISTS (SELECT FROM {TABLE} WHERE {IN_PERIOD})"
BY_USER = f"""
    WITH population AS MATERIALIZED ({{population}}), served AS MATERIALIZED (
        SELECT e.user_id{{cast}} AS user_id, e.post_id, e.served_at
        FROM {TABLE} e JOIN population ON e.user_id{{cast}} = population.user_id WHERE e.{IN_PERIOD}
    ), viewed AS (
        SELECT i.user_id{{cast}} AS user_id, i.post_id::text AS post_id,
               min(i.happened_at::timestamptz) FILTER (WHERE i.action = '{VIEW_ACTION}') AS first_view,
               max(i.happened_at::timestamptz) FILTER (WHERE i.action = '{LIKE_ACTION}') AS last_like
        FROM {SCHEMA}.{INTERACTIONS} i JOIN population ON i.user_id{{cast}} = population.user_id
        WHERE i.happened_at >= population.first_at AND i.happened_at < %(until)s
        GROUP BY 1, 2
    ), pairs AS (
        SELECT user_id, coalesce(last_like >= first_view, false) AS liked,
               EXISTS (SELECT FROM served WHERE served.user_id = viewed.user_id
                       AND served.post_id = viewed.post_id AND served.served_at <= viewed.first_view
                       AND viewed.first_view - served.served_at <= %(within)s) AS explored
        FROM viewed WHERE first_view IS NOT NULL
    ), by_user AS (
        SELECT user_id, count(*) FILTER (WHERE explored) AS explored_viewed,
               count(*) FILTER (WHERE explored AND liked) AS explored_liked,
               count(*) FILTER (WHERE NOT explored) AS other_viewed,
               count(*) FILTER (WHERE NOT explored AND liked) AS other_liked
        FROM pairs GROUP BY 1
    ), served_posts AS (
        SELECT user_id, count(DISTINCT post_id) AS served FROM served GROUP BY 1
    )
    SELECT in_test, coalesce(served, 0) AS served,
           coalesce(explored_viewed, 0) AS explored_viewed, coalesce(explored_liked, 0) AS explored_liked,
           coalesce(other_viewed, 0) AS other_viewed, coalesce(other_liked, 0) AS other_liked
    FROM population LEFT JOIN by_user USING (user_id) LEFT JOIN served_posts USING (user_id)
"""

EXPLORED = Metric("explored", "likes per view in explored places", "explored_liked", "explored_viewed")
OTHER = Metric("other", "likes per view in other places", "other_liked", "other_viewed")


@dataclass(frozen=True)
class Place:
    """Posts of one sort of places: viewed, liked, and likes per view (None if too few to tell)."""

    viewed: int
    liked: int
    like_rate: Interval | None


@dataclass(frozen=True)
class ExploredOutcome:
    """What the users of one variant did with posts in explored places.

    Attributes
    ----------
    served
        Pairs of a user and a post that was served in an explored place.
    explored, other
        The viewed pairs of explored places, and all others.
    difference
        Likes per view, explored minus other, paired by user; None if one of them is None.
    """

    served: int
    explored: Place
    other: Place
    difference: Interval | None


def read_explored_outcomes(
    connection: sa.Connection, period: Period, exposures_recorded: bool
) -> dict[str, ExploredOutcome] | None:
    """Sum what explored places earned in each variant; None if the period has none."""
    population = find_population(connection, period, exposures_recorded)
    if not connection.exec_driver_sql(ANY_SERVED, population.parameters).scalar():
        return None
    parameters = population.parameters | {"within": VIEWED_WITHIN}
    rows = pd.concat(copy_out(connection, population.query(BY_USER), parameters), ignore_index=True)
    in_test = (rows.pop(IN_TEST) == "t").to_numpy()
    return {CONTROL: summarise(rows[~in_test]), TEST: summarise(rows[in_test])}


def summarise(users: pd.DataFrame) -> ExploredOutcome:
    """Sum the users of one variant.

    Parameters
    ----------
    users
        Row per user with `served`, `explored_viewed`, `explored_liked`, `other_viewed` and `other_liked`.
    """
    explored, other = _values(users, EXPLORED), _values(users, OTHER)
    return ExploredOutcome(
        served=int(users["served"].sum()),
        explored=_place(users, EXPLORED, explored),
        other=_place(users, OTHER, other),
        difference=None if explored is None or other is None else _interval(explored - other),
    )


def _values(users: pd.DataFrame, metric: Metric) -> Float64s | None:
    """Return (users,) values whose mean is the metric; None if few users have views, or all agree."""
    if int((users[metric.denominator] > 0).sum()) < MIN_VIEWERS:
        return None
    values = metric.values(users)
    return None if values is None or np.ptp(values) < SAME else values


def _place(users: pd.DataFrame, metric: Metric, values: Float64s | None) -> Place:
    viewed, liked = (int(users[name].sum()) for name in (f"{metric.name}_viewed", f"{metric.name}_liked"))
    return Place(viewed, liked, None if values is None else _interval(values))


def _interval(values: Float64s) -> Interval:
    """Return the mean of users' values with its interval, which has no width if all agree."""
    return normal_interval(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))
