"""Counts, likes and impressions of users and posts as of a cutoff, read from the interaction store.

Every count ends at its cutoff, which keeps the future out of the features. The
network's own like and view counters of posts hold today's values, so the likes
and views logged after the cutoff are subtracted from them.

All cutoffs are known before counting starts:

    cut time into periods at the cutoffs
    count the interactions of each period, one range of users at a time
    counts as of a cutoff = sum over the periods up to it

Counting by ranges of users bounds the memory, whatever the number of interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from batch.arrays import Bools, Bytes, Float64s, Int32s
from batch.loading.cohorts import Groupings
from batch.loading.group_counts import GroupCounts, count_by_group
from batch.loading.interaction_store import END_OF_TIME, InteractionStore
from batch.loading.left_out import ActedOn, LeftOut, find_own_posts
from batch.loading.likes import Impressions, Likes
from batch.loading.network import Network
from batch.loading.period_counts import (
    FADING_COLUMNS,
    RECENT,
    USER_RANGE,
    PostCounts,
    UserCounts,
    period_sql,
)
from batch.loading.taken_back import TakenBack

FIRST_LIKES = f"""
    SELECT user_row, post_row, min({{period}})::UTINYINT AS period
    FROM interactions WHERE {USER_RANGE} AND action = 'like' AND happened_at <= $until
    GROUP BY ALL ORDER BY ALL
"""
IMPRESSIONS = f"""
    SELECT user_row, post_row, count(*) FILTER (action = 'view') AS views,
           count(*) FILTER (action = 'like') AS likes
    FROM {{known}} WHERE {USER_RANGE} AND happened_at <= $until GROUP BY ALL ORDER BY user_row, post_row
"""


@dataclass(frozen=True, eq=False)
class History:
    """What was known at `cutoff`; users and posts in the order of the network's frames.

    Compared and hashed by identity, so that it can be the key of a cache.

    Attributes
    ----------
    user_counts
        Row per user: `views`, `likes`, `recent` (actions in the last seven
        days) and `days_since` the last action (NaN for a user without any).
    post_counts
        Row per post: `views`, `likes` and `recent_likes`; likes and views are
        the network's own counters where it has them. `last_like` is the number
        of days since the last like (NaN for a post without one). The columns
        of FADING_COLUMNS are the logged likes, fading with each half-life.
        `known` is 1 for a post that existed at the cutoff: created by then or,
        if it has no creation time, with an interaction in the log by then.
    groupings
        The groups of posts that views and likes are counted by.
    of_groups
        Grouping -> views and likes of each user in its groups.
    likes
        Every like up to the cutoff.
    store
        Source of the impressions.
    given_impressions
        Impressions to use instead of those in the store.
    given_exclusions
        Likes that lists leave out, if these are not `likes`.
    own
        Posts of each user's own; None if no post has a known author.
    acted_until
        Lists leave out every post that the user acted on up to this time; None if only liked and own ones.
    """

    cutoff: datetime
    user_counts: pd.DataFrame
    post_counts: pd.DataFrame
    groupings: Groupings
    of_groups: dict[str, GroupCounts]
    likes: Likes
    store: InteractionStore = field(repr=False)

    given_impressions: Impressions | None = field(default=None, repr=False)
    given_exclusions: Likes | None = field(default=None, repr=False)
    own: Likes | None = field(default=None, repr=False)
    acted_until: datetime | None = None

    @property
    def excluded(self) -> Likes:
        """Likes to leave out: every like up to the cutoff and, as of now, also those with later times."""
        return self.likes if self.given_exclusions is None else self.given_exclusions

    @cached_property
    def left_out(self) -> LeftOut:
        """What lists leave out: `excluded`, own posts and, if asked for, all that the user acted on."""
        if self.acted_until is not None:
            return ActedOn(self.store, self.acted_until, self.own)
        return self.excluded if self.own is None else self.excluded.union(self.own)

    @property
    def known(self) -> Bools:
        """(posts,) whether each post existed at the cutoff, see `post_counts`."""
        return self.post_counts["known"].to_numpy() > 0

    @property
    def fading_likes(self) -> Float64s:
        """(posts, len(HALF_LIVES)) likes up to the cutoff, fading with each half-life."""
        return self.post_counts[list(FADING_COLUMNS)].to_numpy(np.float64)

    @property
    def impressions(self) -> Impressions:
        """Each user's impressions up to the cutoff; read from the store on every call unless given."""
        if self.given_impressions is not None:
            return self.given_impressions
        impressions = read_impressions(self.store, self.cutoff)
        self.store.release()
        return impressions

    def with_impressions(self, impressions: Impressions) -> History:
        """Return a copy that holds these impressions in memory."""
        return replace(self, given_impressions=impressions)


@dataclass(frozen=True)
class FirstLikes:
    """Each (user, post) pair that was liked, and the first of some times by which it was liked.

    Pairs ascend by user, then post.

    Attributes
    ----------
    users, posts
        (pairs,) int32 rows.
    periods
        (pairs,) uint8 index into `times` of the first time by which the pair was liked; `len(times)`
        for a pair that was liked later.
    times
        Ascending.
    user_count
        Number of users of the network.
    taken_back
        Likes that were undone later; the arrays above are without them.
    """

    users: Int32s
    posts: Int32s
    periods: Bytes
    times: list[datetime]
    user_count: int
    taken_back: TakenBack

    def ever(self) -> Likes | None:
        """Return the likes up to the last of the times and after it; None if there are none after it."""
        if not (self.periods == len(self.times)).any():
            return None
        undone_later = self.taken_back.at(self.times[-1])
        users, posts = np.append(self.users, undone_later.users), np.append(self.posts, undone_later.posts)
        return Likes.from_pairs(users, posts, self.user_count)

    def until(self, time: datetime, known: datetime | None = None) -> Likes:
        """Return the likes up to one of the times.

        Parameters
        ----------
        known
            Likes that were taken back by then are left out; None for `time`.
        """
        early = self.periods <= self.times.index(time)
        users, posts = self.users[early], self.posts[early]
        if len(undone_later := self.taken_back.at(time, known)):
            users, posts = np.append(users, undone_later.users), np.append(posts, undone_later.posts)
            return Likes.from_pairs(users, posts, self.user_count)
        return Likes.from_sorted_pairs(users, posts, self.user_count)


def count_histories(
    store: InteractionStore,
    network: Network,
    cutoffs: Sequence[datetime],
    groupings: Groupings,
    post_counts: PostCounts | None = None,
    *,
    exclude_later: bool = False,
    leave_out_viewed: bool = False,
) -> list[History]:
    """Count what was known at each cutoff, in one pass over the store.

    Parameters
    ----------
    exclude_later
        Whether lists as of the last cutoff also leave out likes with later times, see `History.excluded`.
    leave_out_viewed
        Whether lists leave out every post that the user acted on; otherwise liked and own posts only.
    post_counts
        Counts by all users, if the store holds only some of them; None counts those in the store.
    """
    bounds = sorted({time for cutoff in cutoffs for time in (cutoff - RECENT, cutoff)})
    likes = read_first_likes(store, sorted(set(cutoffs)), len(network.users), later=exclude_later)
    of_groups = count_by_group(store, len(network.users), likes.times, groupings)
    users = UserCounts(len(network.users), bounds, likes.taken_back)
    for start, stop in store.user_ranges():
        users.add(store, {"start": start, "stop": stop})
    if post_counts is None:
        post_counts = PostCounts(network.posts, bounds)
        post_counts.add(store)
        post_counts.add_taken_back(store)
    own, histories = find_own_posts(network), []
    for cutoff in cutoffs:
        left_out_until = END_OF_TIME if exclude_later and cutoff == likes.times[-1] else cutoff
        histories.append(
            History(
                cutoff=cutoff,
                user_counts=users.as_of(cutoff),
                post_counts=post_counts.as_of(cutoff),
                groupings=groupings,
                of_groups=of_groups[likes.times.index(cutoff)],
                likes=likes.until(cutoff),
                store=store,
                given_exclusions=likes.ever() if cutoff == likes.times[-1] else None,
                own=own,
                acted_until=left_out_until if leave_out_viewed else None,
            )
        )
    return histories


def read_likes(store: InteractionStore, until: datetime, user_count: int) -> Likes:
    """Read all likes up to a time; `user_count` is the number of users of the network."""
    return read_first_likes(store, [until], user_count).until(until)


def read_first_likes(
    store: InteractionStore, times: list[datetime], user_count: int, *, later: bool = False
) -> FirstLikes:
    """Read the first like of each pair, up to the last of the times or, if `later`, of all times."""
    until = END_OF_TIME if later else times[-1]
    query, parts = FIRST_LIKES.format(period=period_sql(times)), []
    for start, stop in store.user_ranges():
        parts.append(store.arrays(query, {"start": start, "stop": stop, "until": until}))
    users, posts, periods = (
        np.concatenate([part.pop(name) for part in parts]) for name in ("user_row", "post_row", "period")
    )
    return FirstLikes(users, posts, periods, times, user_count, TakenBack.read(store))


def count_history(
    store: InteractionStore, network: Network, cutoff: datetime, groupings: Groupings
) -> History:
    """Count what was known at one cutoff."""
    return count_histories(store, network, [cutoff], groupings)[0]


def regroup(history: History, groupings: Groupings) -> History:
    """Return the history with views and likes counted by other groups of posts."""
    counts = count_by_group(history.store, len(history.user_counts), [history.cutoff], groupings)
    return replace(history, groupings=groupings, of_groups=counts[0])


def read_impressions(store: InteractionStore, until: datetime) -> Impressions:
    """Read each user's impressions up to a time."""
    parts = []
    for start, stop in store.user_ranges():
        found = store.arrays(
            IMPRESSIONS.format(known=store.known_at(until)), {"start": start, "stop": stop, "until": until}
        )
        parts.append(
            Impressions.from_pairs(
                found["user_row"] - start, found["post_row"], found["views"], found["likes"], stop - start
            )
        )
    return Impressions.concatenate(parts)
