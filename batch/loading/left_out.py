"""What a user's list leaves out: liked posts, the user's own, and, if asked for, all that the user acted on.

Liked and own posts are few, and in memory. Viewed ones are many more: they are
read from the store while users are scored, one range of users at a time, and each
range once if the users are asked for in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batch.loading.interaction_store import InteractionStore
from batch.loading.likes import Likes
from batch.loading.network import Network, rows_of_nullable_ids
from batch.loading.period_counts import USER_RANGE
from contract.columns import AUTHOR_ID

ACTED_ON = """
    SELECT DISTINCT user_row, post_row FROM {pulled} WHERE {users} AND happened_at <= $until ORDER BY ALL
"""
OF_ROWS = "user_row IN (SELECT unnest($users))"


class LeftOut(Protocol):
    """Posts to leave out per user; `Likes` is one."""

    def of_users(self, start: int, stop: int) -> Likes:
        """Return those of users `start` to `stop - 1`."""

    def of_rows(self, users: npt.NDArray[np.intp]) -> Likes:
        """Return those of the users in these rows, in this order."""


def find_own_posts(network: Network) -> Likes | None:
    """Return the posts that each user wrote; None if the network knows no author of a post."""
    if AUTHOR_ID not in network.posts:
        return None
    authors = rows_of_nullable_ids(network.users, network.posts[AUTHOR_ID])
    posts = np.flatnonzero(authors >= 0)
    return Likes.from_pairs(authors[posts], posts, len(network.users)) if posts.size else None


@dataclass(frozen=True)
class ActedOn:
    """Posts that users viewed, liked or unliked, read from the store, and their own posts.

    Attributes
    ----------
    until
        Later actions do not count.
    own
        Own posts, in memory; None if there are none.
    """

    store: InteractionStore
    until: datetime
    own: Likes | None
    _last: dict[tuple[int, int], Likes] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        return self.store.user_ranges()

    def of_users(self, start: int, stop: int) -> Likes:
        """Return the posts of users `start` to `stop - 1`; at most one range of users stays in memory."""
        parts = []
        for low, high in self._ranges:
            if low < stop and start < high:
                found = self._read_range(low, high)
                parts.append(found.of_users(max(start - low, 0), min(stop, high) - low))
        acted_on = Likes.concatenate(parts)
        return acted_on if self.own is None else acted_on.union(self.own.of_users(start, stop))

    def of_rows(self, users: npt.NDArray[np.intp]) -> Likes:
        """Return the posts of the users in these rows, in this order, all in memory."""
        distinct, rows = np.unique(users, return_inverse=True)
        query = ACTED_ON.format(pulled=self.store.pulled, users=OF_ROWS)
        found = self.store.arrays(query, {"users": distinct.tolist(), "until": self.until})
        self.store.release()
        owners = np.searchsorted(distinct, found["user_row"])
        acted_on = Likes.from_sorted_pairs(owners, found["post_row"], distinct.size).of_rows(rows)
        return acted_on if self.own is None else acted_on.union(self.own.of_rows(users))

    def _read_range(self, start: int, stop: int) -> Likes:
        if (start, stop) not in self._last:
            query = ACTED_ON.format(pulled=self.store.pulled, users=USER_RANGE)
            found = self.store.arrays(query, {"start": start, "stop": stop, "until": self.until})
            self.store.release()  # the memory is for scoring now
            self._last.clear()
            self._last[start, stop] = Likes.from_sorted_pairs(
                found["user_row"] - start, found["post_row"], stop - start
            )
        return self._last[start, stop]
