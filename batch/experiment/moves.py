"""How many users a change of the split moves from one variant to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.experiment.history import bucket_sql
from contract.columns import SCHEMA, USER_ID, USERS
from contract.experiment import Experiment

MAX_COUNTED = 100_000
"""Users up to which a change is counted one by one; of more users the share is known by the rule."""

COUNT = """
SELECT count(*),
  count(*) FILTER (WHERE bucket_before >= :percent_before AND bucket_after < :percent_after),
  count(*) FILTER (WHERE bucket_before < :percent_before AND bucket_after >= :percent_after)
FROM (
  SELECT {before} AS bucket_before, {after} AS bucket_after
  FROM (SELECT {user_id} FROM {users} LIMIT :most) AS counted
  WHERE {user_id}::text <> ALL (CAST(:pinned AS text[]))
) AS assigned
"""


@dataclass(frozen=True)
class Moves:
    """Users, or percent of the users, that go to either variant; pinned users do not move."""

    to_test: float
    to_control: float


def share_of_moves(before: Experiment, after: Experiment) -> Moves:
    """Return the percentages of the users that move.

    With the same salt they are exact up to the rounding of buckets. Another salt assigns each user
    independently of before.
    """
    old, new = before.percent_test, after.percent_test
    if before.salt == after.salt:
        return Moves(max(new - old, 0), max(old - new, 0))
    return Moves((100 - old) * new / 100, old * (100 - new) / 100)


def count_moves(
    connection: sa.Connection, before: Experiment, after: Experiment, max_users: int = MAX_COUNTED
) -> tuple[Moves, int] | None:
    """Count the users of `recs.users` that move, and those that were asked about: all but pinned ones.

    Returns None if there are more than `max_users`.
    """
    query = COUNT.format(
        before=bucket_sql(USER_ID, ":salt_before"), after=bucket_sql(USER_ID, ":salt_after"),
        user_id=USER_ID, users=f"{SCHEMA}.{USERS}",
    )  # fmt: skip
    pinned: Sequence[str] = sorted({*before.pins, *after.pins})
    values: dict[str, Any] = {
        "percent_before": before.percent_test, "salt_before": before.salt,
        "percent_after": after.percent_test, "salt_after": after.salt,
        "pinned": list(pinned), "most": max_users + len(pinned) + 1,
    }  # fmt: skip
    users, to_test, to_control = connection.execute(sa.text(query), values).one()
    return None if users > max_users else (Moves(to_test, to_control), users)
