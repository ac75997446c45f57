"""What must not get worse while an experiment is won: popular answers, the other's lists, coverage."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from batch.experiment.metrics import IN_TEST
from batch.experiment.outcomes import POPULATION, came, parameters
from batch.experiment.period import Period
from batch.loading.stream import stream
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
        found = pd.concat(stream(connection, sql.format(came=query), asked), ignore_index=True)
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
