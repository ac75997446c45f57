"""Counts of interactions per user and per post, for all cutoffs in one pass.

The cutoffs cut time into periods. Interactions are counted per period; the
counts as of a cutoff are the sums over the periods up to it. The likes that were
taken back later, see taken_back.py, are added as of each cutoff.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Bools, Float64s
from batch.loading.interaction_store import InteractionStore
from batch.loading.taken_back import TakenBack, microseconds
from contract import columns

RECENT = timedelta(days=7)

DAY_MICROSECONDS = 86_400 * 1_000_000

HALF_LIVES = {
    "8_hours": timedelta(hours=8),
    "1_day": timedelta(days=1),
    "3_days": timedelta(days=3),
    "10_days": timedelta(days=10),
    "30_days": timedelta(days=30),
    "90_days": timedelta(days=90),
    "300_days": timedelta(days=300),
}
"""Half-lives of fading likes: a like counts 1 when it happens, 1/2 one half-life later, 1/4 after two."""

HALF_LIFE_DAYS = np.array([half_life / timedelta(days=1) for half_life in HALF_LIVES.values()])

FADING_COLUMNS = tuple(f"likes_fading_{name}" for name in HALF_LIVES)

FADING_UNIT = 2**30
"""Fading likes are summed as integer multiples of 1/FADING_UNIT, so the order of addition does not matter."""

USER_RANGE = "user_row >= $start AND user_row < $stop"

USER_COUNTS = f"""
    SELECT user_row, {{period}} AS period, count(*) FILTER (action = 'view') AS views,
           count(*) FILTER (action = 'like') AS likes, epoch_us(max(happened_at)) AS latest
    FROM interactions WHERE {USER_RANGE} AND happened_at <= $until GROUP BY ALL
"""
POST_COUNTS = """
    SELECT post_id, period, views, likes FROM posts JOIN (
        SELECT post_row, {period} AS period, count(*) FILTER (action = 'view') AS views,
               count(*) FILTER (action = 'like') AS likes
        FROM interactions WHERE {where} GROUP BY ALL
    ) USING (post_row)
"""
POST_LIKES = """
    SELECT post_id, period, fading.* EXCLUDE (post_row, period) FROM posts JOIN (
        SELECT post_row, period, epoch_us(max(happened_at)) AS last, {fading}
        FROM (
            SELECT post_row, happened_at, {period} AS period, {period_end} - epoch_us(happened_at) AS age
            FROM interactions WHERE {where} AND action = 'like' AND happened_at <= $until
        ) likes GROUP BY ALL
    ) fading USING (post_row)
"""


class UserCounts:
    """Actions of each user per period; the periods end at `bounds`, which ascend."""

    def __init__(self, users: int, bounds: Sequence[datetime], taken_back: TakenBack) -> None:
        self._bounds, self._taken_back = list(bounds), taken_back
        shape = (len(bounds), users)
        self._views, self._likes = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._latest = np.full(shape, np.iinfo(np.int64).min)

    def add(self, store: InteractionStore, part: dict[str, int]) -> None:
        """Count a range of users."""
        query = USER_COUNTS.format(period=period_sql(self._bounds))
        found = store.arrays(query, part | {"until": self._bounds[-1]})
        index = (found["period"], found["user_row"])
        self._views[index], self._likes[index] = found["views"], found["likes"]
        self._latest[index] = found["latest"]

    def as_of(self, cutoff: datetime) -> pd.DataFrame:
        """Return the counts as of a cutoff, see `History.user_counts`."""
        periods = self._bounds.index(cutoff) + 1
        before = self._bounds.index(cutoff - RECENT) + 1
        views, likes = self._views[:periods].sum(axis=0), self._likes[:periods].sum(axis=0)
        recent = (self._views[before:periods] + self._likes[before:periods]).sum(axis=0)
        latest = self._latest[:periods].max(axis=0)
        if len(undone_later := self._taken_back.at(cutoff)):
            likes = likes + undone_later.count_by_user(likes.size)
            recent = recent + undone_later.since(cutoff - RECENT).count_by_user(likes.size)
            np.maximum.at(latest, undone_later.users, undone_later.happened_at)
        since = (microseconds(cutoff) - latest.astype(np.float64)) / DAY_MICROSECONDS
        days_since = np.where(views + likes > 0, since, np.nan)
        counts = {"views": views, "likes": likes, "recent": recent}
        return pd.DataFrame(counts).astype(np.int32).assign(days_since=days_since)


class PostCounts:
    """Views and likes of each post per period; the last period is the time after the last bound.

    Parameters
    ----------
    posts
        `Network.posts`.
    bounds
        Ends of the periods, ascending: each cutoff, and `RECENT` before it.
    """

    def __init__(self, posts: pd.DataFrame, bounds: Sequence[datetime]) -> None:
        self._posts, self._bounds = posts, list(bounds)
        shape = (len(bounds) + 1, len(posts))
        self._views, self._likes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._last = np.full(shape, np.iinfo(np.int64).min)
        self._fading = np.zeros((len(bounds), len(posts), len(HALF_LIVES)))
        self._taken_back: list[TakenBack] = []

    def add(
        self, store: InteractionStore, where: str = "true", parameters: dict[str, Any] | None = None
    ) -> None:
        """Count those interactions of a store that meet a SQL condition; ignore posts not in `posts`."""
        period = period_sql(self._bounds)
        found = store.arrays(POST_COUNTS.format(period=period, where=where), parameters)
        index, known = self._index(found)
        self._views[index] += found["views"][known]
        self._likes[index] += found["likes"][known]
        fading = ", ".join(
            f"sum(round({FADING_UNIT} * pow(2, -age / {_in_microseconds(half_life)}.0))::BIGINT) AS {name}"
            for name, half_life in zip(FADING_COLUMNS, HALF_LIVES.values(), strict=True)
        )
        ends = [microseconds(bound) for bound in self._bounds]
        query = POST_LIKES.format(
            period=period, period_end=_case_sql(self._bounds, ends), fading=fading, where=where
        )
        found = store.arrays(query, (parameters or {}) | {"until": self._bounds[-1]})
        index, known = self._index(found)
        self._last[index] = np.maximum(self._last[index], found["last"][known])
        sums = np.stack([found[name][known].astype(np.float64) for name in FADING_COLUMNS], axis=1)
        self._fading[index] += sums / FADING_UNIT

    def add_taken_back(
        self, store: InteractionStore, where: str = "true", parameters: dict[str, Any] | None = None
    ) -> None:
        """Count the likes of a store that were taken back later, as `add` counts the others."""
        if not store.has_unlikes:
            return
        likes = TakenBack.read(store, where, parameters)
        post_ids = store.arrays("SELECT post_id FROM posts ORDER BY post_row")["post_id"]
        rows = self._posts.index.get_indexer(pd.Index(post_ids[likes.posts]))
        self._taken_back.append(replace(likes, posts=rows.astype(np.int32)).select(rows >= 0))

    def _index(
        self, found: dict[str, npt.NDArray[Any]]
    ) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], Bools]:
        """Return (periods, post rows) of a query's rows with known posts, and a mask of those rows."""
        rows = self._posts.index.get_indexer(pd.Index(found["post_id"]))
        known = rows >= 0
        return (found["period"][known], rows[known]), known

    def as_of(self, cutoff: datetime) -> pd.DataFrame:
        """Return the counts as of a cutoff, see `History.post_counts`."""
        periods = self._bounds.index(cutoff) + 1
        before = self._bounds.index(cutoff - RECENT) + 1
        found = {"recent_likes": self._likes[before:periods].sum(axis=0).astype(np.float64)}
        views, likes = (counts[:periods].sum(axis=0) for counts in (self._views, self._likes))
        later_views, later_likes = (counts[periods:].sum(axis=0) for counts in (self._views, self._likes))
        last, fading = self._last[:periods].max(axis=0), self._fading_at(cutoff)
        for taken_back in self._taken_back:
            undone_later = taken_back.at(cutoff)
            count = undone_later.count_by_post(likes.size)
            likes, later_likes = likes + count, later_likes - count
            found["recent_likes"] += undone_later.since(cutoff - RECENT).count_by_post(likes.size)
            np.maximum.at(last, undone_later.posts, undone_later.happened_at)
            age = (microseconds(cutoff) - undone_later.happened_at)[:, None] / DAY_MICROSECONDS
            np.add.at(fading, undone_later.posts, 2.0 ** (-age / HALF_LIFE_DAYS))
        for name, counter, logged, later in (
            ("views", columns.VIEW_COUNT, views, later_views),
            ("likes", columns.LIKE_COUNT, likes, later_likes),
        ):
            own = self._posts[counter].to_numpy(np.float64)
            found[name] = np.where(np.isnan(own), logged.astype(np.float64), np.maximum(own - later, 0))
        days = (microseconds(cutoff) - last.astype(np.float64)) / DAY_MICROSECONDS
        found["last_like"] = np.where(likes > 0, days, np.nan)
        found |= dict(zip(FADING_COLUMNS, fading.T, strict=True))
        created = self._posts[columns.CREATED_AT]
        known = np.where(created.isna(), views + likes > 0, created <= pd.Timestamp(cutoff))
        names = ["views", "likes", "recent_likes", "last_like", *FADING_COLUMNS]
        return pd.DataFrame(found, index=self._posts.index)[names].assign(known=known.astype(np.float64))

    def _fading_at(self, cutoff: datetime) -> Float64s:
        """Return (posts, len(HALF_LIVES)): fading likes of all periods as of the cutoff."""
        total = np.zeros(self._fading.shape[1:])
        for period in range(self._bounds.index(cutoff) + 1):
            age = (cutoff - self._bounds[period]) / timedelta(days=1)
            total += self._fading[period] * 2.0 ** (-age / HALF_LIFE_DAYS)
        return total


def period_sql(bounds: Sequence[datetime]) -> str:
    """Return SQL for the index of the period of `happened_at`; period 0 ends at the first bound."""
    return _case_sql(bounds, range(len(bounds) + 1))


def _case_sql(bounds: Sequence[datetime], values: Sequence[int]) -> str:
    """Return SQL that maps each period to a value; NULL after the last bound if there is no value for it."""
    times = (bound.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ") for bound in bounds)
    cases = " ".join(
        f"WHEN happened_at <= TIMESTAMP '{time}' THEN {value}"
        for time, value in zip(times, values, strict=False)
    )
    return f"CASE {cases} ELSE {values[len(bounds)] if len(values) > len(bounds) else 'NULL'} END"


def _in_microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
