"""What was known of users and posts as of a cutoff: counts, likes and impressions, asked of the store.

Every count here ends at its cutoff; that is what keeps the future out of the
features. There is one exception, which takes the future *out* of a number: a
network's own counter stands at what it is now, so the likes and views logged
since the cutoff are subtracted from it.

Cutoffs are known before anything is counted. They cut time into periods, the
interactions are counted once by period, and the counts as of a cutoff are the
sums over the periods up to it. Users are counted range by range, so that memory
does not grow with the number of interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Bools, Bytes, Float32s, Float64s, Int32s
from batch.loading.impressions import Impressions
from batch.loading.interaction_store import InteractionStore
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.post_groups import Groupings
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
"""Fading likes: a like counts 1 when it happens, 1/2 after one half-life, 1/4 after two, and so on."""

FADING = tuple(f"likes_fading_{name}" for name in HALF_LIVES)

FADING_UNIT = 2**30
"""Fading likes are added up as whole numbers of 1/FADING_UNIT: exact, in whatever order threads add."""

OF_USERS = "user_row >= $start AND user_row < $stop"

USER_COUNTS = f"""
    SELECT user_row, {{period}} AS period, count(*) FILTER (action = 'view') AS views,
           count(*) FILTER (action = 'like') AS likes, epoch_us(max(happened_at)) AS latest
    FROM interactions WHERE {OF_USERS} AND happened_at <= $until GROUP BY ALL
"""
GROUP_ROWS = f"""
    SELECT user_row, post_row, action = 'like' AS liked, {{period}} AS period
    FROM interactions WHERE {OF_USERS} AND happened_at <= $until
"""
FIRST_LIKES = f"""
    SELECT user_row, post_row, min({{period}})::UTINYINT AS period
    FROM interactions WHERE {OF_USERS} AND action = 'like' AND happened_at <= $until
    GROUP BY ALL ORDER BY ALL
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
IMPRESSIONS = f"""
    SELECT user_row, post_row, count(*) FILTER (action = 'view') AS views,
           count(*) FILTER (action = 'like') AS likes
    FROM interactions WHERE {OF_USERS} AND happened_at <= $until GROUP BY ALL ORDER BY user_row, post_row
"""


@dataclass(frozen=True, eq=False)
class History:
    """What was known at `cutoff`; users and posts in the order of the network's frames.

    One is equal to itself alone, so that what was made of it can be found again by it.

    Attributes
    ----------
    user_counts
        Row per user: `views`, `likes`, `recent` (actions in the last seven
        days) and `days_since` the last action (NaN for a user without any).
    post_counts
        Row per post: `views`, `likes` and `recent_likes`; likes and views are
        the network's own counters where it has them. `first_like` and
        `last_like` are days since then (NaN for a post without one), and the
        columns of FADING are the likes in the log, fading with each half-life.
        `known` is 1 for a post that existed at the cutoff: created by then or,
        if it has no creation time, with an interaction in the log by then.
    groupings
        The groups of posts that views and likes are counted by.
    views_of_group, likes_of_group
        For each grouping: (users, groups) float32 counts.
    likes
        Every like up to the cutoff.
    store, given_impressions
        Where the impressions are read from, or the impressions.
    """

    cutoff: datetime
    user_counts: pd.DataFrame
    post_counts: pd.DataFrame
    groupings: Groupings
    views_of_group: dict[str, Float32s]
    likes_of_group: dict[str, Float32s]
    likes: Likes
    store: InteractionStore = field(repr=False)

    given_impressions: Impressions | None = field(default=None, repr=False)

    @property
    def known(self) -> Bools:
        """(posts,) whether the post existed at the cutoff, see `post_counts`."""
        return self.post_counts["known"].to_numpy() > 0

    @property
    def fading_likes(self) -> Float64s:
        """(posts, len(HALF_LIVES)) likes up to the cutoff, fading with each half-life."""
        return self.post_counts[list(FADING)].to_numpy(np.float64)

    @property
    def impressions(self) -> Impressions:
        """What each user was shown and liked up to the cutoff; read from the store unless given."""
        if self.given_impressions is not None:
            return self.given_impressions
        impressions = read_impressions(self.store, self.cutoff)
        self.store.release()
        return impressions

    def with_impressions(self, impressions: Impressions) -> History:
        """Return the same history with impressions in memory, those read or others."""
        return replace(self, given_impressions=impressions)


@dataclass(frozen=True)
class FirstLikes:
    """Who likes what, and by which of some times: pairs ascend by user, then post.

    Attributes
    ----------
    users, posts
        (pairs,) int32 rows.
    periods
        (pairs,) uint8 index of the first of the times at which the pair was liked.
    times
        Ascending.
    user_count
        Users of the network.
    """

    users: Int32s
    posts: Int32s
    periods: Bytes
    times: list[datetime]
    user_count: int

    def until(self, time: datetime) -> Likes:
        """Return the likes up to one of the times."""
        known = self.periods <= self.times.index(time)
        return Likes.from_sorted_pairs(self.users[known], self.posts[known], self.user_count)


def count_histories(
    store: InteractionStore,
    network: Network,
    cutoffs: Sequence[datetime],
    groupings: Groupings,
    post_counts: PostCounts | None = None,
) -> list[History]:
    """Collect what was known at each of the cutoffs, in one pass over the store.

    Parameters
    ----------
    post_counts
        Of all users, for a store that has some users only; None counts them in the store.
    """
    bounds = sorted({moment for cutoff in cutoffs for moment in (cutoff - RECENT, cutoff)})
    users = _UserCounts(len(network.users), bounds)
    groups = _GroupCounts(len(network.users), sorted(set(cutoffs)), groupings)
    likes = _first_likes(store, sorted(set(cutoffs)), len(network.users))
    for start, stop in store.user_ranges():
        users.add(store, {"start": start, "stop": stop})
        groups.add(store, {"start": start, "stop": stop})
    if post_counts is None:
        post_counts = PostCounts(network.posts, bounds)
        post_counts.add(store)
    views_of_group, likes_of_group = groups.totals()
    histories = []
    for cutoff in cutoffs:
        at = groups.cutoffs.index(cutoff)
        histories.append(
            History(
                cutoff=cutoff,
                user_counts=users.as_of(cutoff),
                post_counts=post_counts.as_of(cutoff),
                groupings=groupings,
                views_of_group={name: counts[at] for name, counts in views_of_group.items()},
                likes_of_group={name: counts[at] for name, counts in likes_of_group.items()},
                likes=likes.until(cutoff),
                store=store,
            )
        )
    return histories


def read_likes(store: InteractionStore, until: datetime, user_count: int) -> Likes:
    """Read every like up to a time; `user_count` are the users of the network."""
    return _first_likes(store, [until], user_count).until(until)


def _first_likes(store: InteractionStore, times: list[datetime], user_count: int) -> FirstLikes:
    """Find the first like of each pair, up to the last of the times."""
    query, parts = FIRST_LIKES.format(period=period_of(times)), []
    for start, stop in store.user_ranges():
        parts.append(store.arrays(query, {"start": start, "stop": stop, "until": times[-1]}))
    users, posts, periods = (
        np.concatenate([part.pop(name) for part in parts]) for name in ("user_row", "post_row", "period")
    )
    return FirstLikes(users, posts, periods, times, user_count)


def count_history(
    store: InteractionStore, network: Network, cutoff: datetime, groupings: Groupings
) -> History:
    """Collect what was known at one cutoff."""
    return count_histories(store, network, [cutoff], groupings)[0]


def regrouped(history: History, groupings: Groupings) -> History:
    """Count views and likes of a history by other groups of posts."""
    counts = _GroupCounts(len(history.user_counts), [history.cutoff], groupings)
    for start, stop in history.store.user_ranges():
        counts.add(history.store, {"start": start, "stop": stop})
    views, likes = counts.totals()
    return replace(
        history,
        groupings=groupings,
        views_of_group={name: of_group[0] for name, of_group in views.items()},
        likes_of_group={name: of_group[0] for name, of_group in likes.items()},
    )


def read_impressions(store: InteractionStore, until: datetime) -> Impressions:
    """Read what each user was shown and liked up to a time."""
    parts = []
    for start, stop in store.user_ranges():
        found = store.arrays(IMPRESSIONS, {"start": start, "stop": stop, "until": until})
        parts.append(
            Impressions.from_pairs(
                found["user_row"] - start, found["post_row"], found["views"], found["likes"], stop - start
            )
        )
    return Impressions.concatenate(parts)


class _UserCounts:
    """Each user's actions by period: the periods end at `bounds`, ascending."""

    def __init__(self, users: int, bounds: Sequence[datetime]) -> None:
        self._bounds = list(bounds)
        shape = (len(bounds), users)
        self._views, self._likes = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._latest = np.full(shape, np.iinfo(np.int64).min)

    def add(self, store: InteractionStore, part: dict[str, int]) -> None:
        """Count a range of users."""
        query = USER_COUNTS.format(period=period_of(self._bounds))
        found = store.arrays(query, part | {"until": self._bounds[-1]})
        at = (found["period"], found["user_row"])
        self._views[at], self._likes[at], self._latest[at] = found["views"], found["likes"], found["latest"]

    def as_of(self, cutoff: datetime) -> pd.DataFrame:
        """Return the counts as of a cutoff, see `History.user_counts`."""
        periods = self._bounds.index(cutoff) + 1
        before = self._bounds.index(cutoff - RECENT) + 1
        views, likes = self._views[:periods].sum(axis=0), self._likes[:periods].sum(axis=0)
        recent = (self._views[before:periods] + self._likes[before:periods]).sum(axis=0)
        latest = self._latest[:periods].max(axis=0)
        since = (_microseconds(cutoff) - latest.astype(np.float64)) / DAY_MICROSECONDS
        days_since = np.where(views + likes > 0, since, np.nan)
        counts = {"views": views, "likes": likes, "recent": recent, "days_since": days_since}
        return pd.DataFrame(counts).astype(np.float64)


class _GroupCounts:
    """Each user's views and likes of each group of posts, under each grouping, as of each cutoff."""

    def __init__(self, users: int, cutoffs: list[datetime], groupings: Groupings) -> None:
        self.cutoffs = cutoffs
        self._users, self._groupings = users, groupings
        self._counts = {  # grouping -> (views or likes, cutoffs, users, groups)
            name: np.zeros((2, len(cutoffs), users, size), np.float32)
            for name, size in zip(groupings.names, groupings.sizes, strict=True)
        }

    def add(self, store: InteractionStore, part: dict[str, int]) -> None:
        """Count a range of users."""
        query = GROUP_ROWS.format(period=period_of(self.cutoffs))
        found = store.arrays(query, part | {"until": self.cutoffs[-1]})
        of_user = found["liked"].astype(np.int64) * len(self.cutoffs) + found["period"]
        of_user = of_user * self._users + found["user_row"]
        for name, counts in self._counts.items():
            group = self._groupings.of_post(name)[found["post_row"]]
            np.add.at(counts.reshape(-1), of_user * counts.shape[-1] + group, np.float32(1))

    def totals(self) -> tuple[dict[str, Float32s], dict[str, Float32s]]:
        """Return views and likes: grouping -> (cutoffs, users, groups)."""
        for counts in self._counts.values():
            for later in range(1, len(self.cutoffs)):
                counts[:, later] += counts[:, later - 1]
        return (
            {name: counts[0] for name, counts in self._counts.items()},
            {name: counts[1] for name, counts in self._counts.items()},
        )


class PostCounts:
    """Each post's views and likes by period: the last period is what came after `bounds`.

    Parameters
    ----------
    posts
        `Network.posts`.
    bounds
        Where periods end, ascending: each cutoff, and `RECENT` before it.
    """

    def __init__(self, posts: pd.DataFrame, bounds: Sequence[datetime]) -> None:
        self._posts, self._bounds = posts, list(bounds)
        shape = (len(bounds) + 1, len(posts))
        self._views, self._likes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._last = np.full(shape, np.iinfo(np.int64).min)
        self._fading = np.zeros((len(bounds), len(posts), len(HALF_LIVES)))

    def add(
        self, store: InteractionStore, where: str = "true", parameters: dict[str, Any] | None = None
    ) -> None:
        """Count the interactions of a store that a condition lets through, on posts that are counted here."""
        period = period_of(self._bounds)
        found = store.arrays(POST_COUNTS.format(period=period, where=where), parameters)
        at, known = self._at(found)
        self._views[at] += found["views"][known]
        self._likes[at] += found["likes"][known]
        fading = ", ".join(
            f"sum(round({FADING_UNIT} * pow(2, -age / {_in_microseconds(half_life)}.0))::BIGINT) AS {name}"
            for name, half_life in zip(FADING, HALF_LIVES.values(), strict=True)
        )
        ends = [_microseconds(bound) for bound in self._bounds]
        query = POST_LIKES.format(
            period=period, period_end=_case(self._bounds, ends), fading=fading, where=where
        )
        found = store.arrays(query, (parameters or {}) | {"until": self._bounds[-1]})
        at, known = self._at(found)
        self._last[at] = np.maximum(self._last[at], found["last"][known])
        sums = np.stack([found[name][known].astype(np.float64) for name in FADING], axis=1)
        self._fading[at] += sums / FADING_UNIT

    def _at(
        self, found: dict[str, npt.NDArray[Any]]
    ) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], Bools]:
        """Return (periods, rows of posts) of rows of a query, and which of its rows are of known posts."""
        rows = self._posts.index.get_indexer(pd.Index(found["post_id"]))
        known = rows >= 0
        return (found["period"][known], rows[known]), known

    def as_of(self, cutoff: datetime) -> pd.DataFrame:
        """Return the counts as of a cutoff, see `History.post_counts`."""
        periods = self._bounds.index(cutoff) + 1
        before = self._bounds.index(cutoff - RECENT) + 1
        found = {"recent_likes": self._likes[before:periods].sum(axis=0).astype(np.float64)}
        for name, counter, counts in (
            ("views", columns.VIEW_COUNT, self._views),
            ("likes", columns.LIKE_COUNT, self._likes),
        ):
            own, later = self._posts[counter].to_numpy(np.float64), counts[periods:].sum(axis=0)
            logged = counts[:periods].sum(axis=0).astype(np.float64)
            found[name] = np.where(np.isnan(own), logged, np.maximum(own - later, 0))
        liked = self._likes[:periods].any(axis=0)
        last = self._last[:periods].max(axis=0)
        days = (_microseconds(cutoff) - last.astype(np.float64)) / DAY_MICROSECONDS
        found["last_like"] = np.where(liked, days, np.nan)
        found |= dict(zip(FADING, self._faded(cutoff).T, strict=True))
        created = self._posts[columns.CREATED_AT]
        logged = (self._views[:periods] + self._likes[:periods]).any(axis=0)
        known = np.where(created.isna(), logged, created <= pd.Timestamp(cutoff))
        names = ["views", "likes", "recent_likes", "last_like", *FADING]
        return pd.DataFrame(found, index=self._posts.index)[names].assign(known=known.astype(np.float64))

    def _faded(self, cutoff: datetime) -> Float64s:
        """Return (posts, len(HALF_LIVES)): the periods' fading likes, faded on to the cutoff and added up."""
        total = np.zeros(self._fading.shape[1:])
        half_lives = np.array([half_life / timedelta(days=1) for half_life in HALF_LIVES.values()])
        for period in range(self._bounds.index(cutoff) + 1):
            age = (cutoff - self._bounds[period]) / timedelta(days=1)
            total += self._fading[period] * 2.0 ** (-age / half_lives)
        return total


def period_of(bounds: Sequence[datetime]) -> str:
    """Return SQL for the period of `happened_at`: 0 up to the first bound, and so on; bounds ascend."""
    return _case(bounds, range(len(bounds) + 1))


def _case(bounds: Sequence[datetime], values: Sequence[int]) -> str:
    """Return SQL for one value a period; without a value for the period after the last bound, null there."""
    times = (bound.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ") for bound in bounds)
    cases = " ".join(
        f"WHEN happened_at <= TIMESTAMP '{time}' THEN {value}"
        for time, value in zip(times, values, strict=False)
    )
    return f"CASE {cases} ELSE {values[len(bounds)] if len(values) > len(bounds) else 'NULL'} END"


def _microseconds(time: datetime) -> int:
    return _in_microseconds(time - datetime(1970, 1, 1, tzinfo=UTC))


def _in_microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
