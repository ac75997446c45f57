"""Views and likes of each user in each group of posts, as of several cutoffs.

Most users have acted in few groups and few periods, so only counts that are not zero are held: a *cell* is
a user, a period between two cutoffs, and a group of posts. The counts as of a cutoff are the sums over the
cells up to it, and are made for some users at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from batch.arrays import Float32s, Float64s, Int32s, Int64s, Rows
from batch.loading.cohorts import Groupings
from batch.loading.interaction_store import InteractionStore
from batch.loading.likes import Integers, smallest
from batch.loading.period_counts import USER_RANGE, period_sql
from batch.loading.taken_back import TakenBack, microseconds

GROUP_ROWS = f"""
    SELECT user_row, post_row, action = 'like' AS liked, {{period}} AS period
    FROM interactions WHERE {USER_RANGE} AND happened_at <= $until
"""


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """Views and likes of users in the groups of one grouping, as of one cutoff.

    Attributes
    ----------
    groups
        Number of groups.
    periods
        Cells of the first so many periods count.
    starts
        (users + 1,) int64: the cells of user u are `starts[u]` to `starts[u + 1] - 1`.
    columns
        (cells,) period * `groups` + group, of the smallest unsigned type; ascending within a user.
    views, likes
        (cells,) counts, of the smallest type. Likes that were taken back are subtracted in the period when
        they were, so a count may be negative.
    """

    groups: int
    periods: int
    starts: Int64s
    columns: Integers
    views: Integers
    likes: Integers

    def of_users(self, rows: Rows) -> tuple[Float32s, Float32s]:
        """Return views and likes of some users: (users, groups) float32 each."""
        first = self.starts[:-1][rows]
        counts = self.starts[1:][rows] - first
        cells = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        owners, columns = np.repeat(np.arange(counts.size), counts), self.columns[cells]
        early = columns < self.periods * self.groups
        index, cells = (owners * self.groups + columns % self.groups)[early], cells[early]
        views, likes = (
            _sum_by(index, values[cells], counts.size * self.groups).astype(np.float32)
            for values in (self.views, self.likes)
        )
        shape = (counts.size, self.groups)
        return views.reshape(shape), likes.reshape(shape)

    def totals(self) -> tuple[Float64s, Float64s]:
        """Return views and likes of all users: (groups,) each."""
        early = self.columns < self.periods * self.groups
        group = self.columns[early] % self.groups
        return _sum_by(group, self.views[early], self.groups), _sum_by(group, self.likes[early], self.groups)


def _sum_by(index: Integers, values: Integers, size: int) -> Float64s:
    """Return (size,) the sum of the values of each index."""
    return np.asarray(np.bincount(index, values, size), np.float64)


def count_by_group(
    store: InteractionStore, users: int, cutoffs: Sequence[datetime], groupings: Groupings
) -> list[dict[str, GroupCounts]]:
    """Count views and likes in groups of posts, one range of users at a time.

    Parameters
    ----------
    users
        Number of users of the network.
    cutoffs
        Ascending.

    Returns
    -------
    For each cutoff: grouping -> counts.
    """
    taken_back = TakenBack.read(store)
    parts: dict[str, list[_Cells]] = {name: [] for name in groupings.names}
    for start, stop in store.user_ranges():
        actions = _read_actions(store, (start, stop), cutoffs, taken_back)
        for name, size in zip(groupings.names, groupings.sizes, strict=True):
            parts[name].append(_count_cells(actions, groupings.of_post(name), size, len(cutoffs)))
    counts = {}
    for name, size in zip(groupings.names, groupings.sizes, strict=True):
        owners, columns, views, likes = map(np.concatenate, zip(*parts.pop(name), strict=True))
        starts = np.zeros(users + 1, np.int64)
        np.cumsum(np.bincount(owners, minlength=users), out=starts[1:])
        counts[name] = GroupCounts(size, len(cutoffs), starts, columns, views, likes)
    return [
        {name: replace(each, periods=index + 1) for name, each in counts.items()}
        for index in range(len(cutoffs))
    ]


class _Cells(NamedTuple):
    """Cells of a range of users, ascending by user and column: (cells,) each, see `GroupCounts`."""

    users: Integers
    columns: Integers
    views: Integers
    likes: Integers


VIEW, LIKE, UNLIKE = range(3)


class _Actions(NamedTuple):
    """Actions in any order: rows of users and posts, periods, and what each is (VIEW, LIKE or UNLIKE)."""

    users: Int64s
    posts: Int64s
    periods: Int64s
    kinds: Int64s


def _read_actions(
    store: InteractionStore, users: tuple[int, int], cutoffs: Sequence[datetime], taken_back: TakenBack
) -> _Actions:
    """Read the actions of a range of users up to the last cutoff."""
    start, stop = users
    query = GROUP_ROWS.format(period=period_sql(cutoffs))
    found = store.arrays(query, {"start": start, "stop": stop, "until": cutoffs[-1]})
    undone = taken_back.select((taken_back.users >= start) & (taken_back.users < stop))
    ends = [microseconds(cutoff) for cutoff in cutoffs]
    blocks = [(found["user_row"], found["post_row"], found["period"], np.where(found["liked"], LIKE, VIEW))]
    for times, kind in ((undone.happened_at, LIKE), (undone.undone_at, UNLIKE)):
        period = np.searchsorted(ends, times)
        known = period < len(ends)
        kinds = np.full(np.count_nonzero(known), kind)
        blocks.append((undone.users[known], undone.posts[known], period[known], kinds))
    return _Actions(*(np.concatenate(each).astype(np.int64) for each in zip(*blocks, strict=True)))


def _count_cells(actions: _Actions, group_of_post: Int32s, groups: int, periods: int) -> _Cells:
    """Add up actions by cell."""
    cell = (actions.users * periods + actions.periods) * groups + group_of_post[actions.posts]
    found, counts = np.unique(cell * 3 + actions.kinds, return_counts=True)
    cell, kind = np.divmod(found, 3)
    distinct, index = np.unique(cell, return_inverse=True)
    views, likes, unlikes = (
        np.bincount(index[kind == each], counts[kind == each], distinct.size).astype(np.int64)
        for each in (VIEW, LIKE, UNLIKE)
    )
    users, columns = np.divmod(distinct, periods * groups)
    return _Cells(users.astype(np.int32), smallest(columns), smallest(views), smallest(likes - unlikes))
