"""Likes that a later `unlike` undid: likes at the cutoffs in between, and at no other.

The counts of period_counts.py are sums over periods, and a like that ends does not fit in them. So these
likes, which are few, are kept apart (`taken_back` of the store) and added as of each cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from batch.arrays import Bools, Int32s, Int64s
from batch.loading.interaction_store import InteractionStore

TAKEN_BACK = """
    SELECT user_row, post_row, epoch_us(happened_at) AS happened_at, epoch_us(undone_at) AS undone_at
    FROM taken_back WHERE {where} ORDER BY ALL
"""


@dataclass(frozen=True)
class TakenBack:
    """Likes that were taken back, one row each.

    Attributes
    ----------
    users, posts
        (likes,) int32 rows.
    happened_at, undone_at
        (likes,) microseconds since 1970; `undone_at` is not earlier.
    """

    users: Int32s
    posts: Int32s
    happened_at: Int64s
    undone_at: Int64s

    @classmethod
    def read(
        cls, store: InteractionStore, where: str = "true", parameters: dict[str, Any] | None = None
    ) -> TakenBack:
        """Read those of a store that meet a SQL condition on `happened_at`."""
        found = store.arrays(TAKEN_BACK.format(where=where), parameters)
        return cls(found["user_row"], found["post_row"], found["happened_at"], found["undone_at"])

    def __len__(self) -> int:
        return self.users.size

    def at(self, time: datetime, known: datetime | None = None) -> TakenBack:
        """Return those that happened by a time and were not undone by `known`, or else by that time."""
        return self.select(
            (self.happened_at <= microseconds(time)) & (self.undone_at > microseconds(known or time))
        )

    def undone_by(self, time: datetime) -> TakenBack:
        """Return those that were undone by a time."""
        return self.select(self.undone_at <= microseconds(time))

    def select(self, keep: Bools) -> TakenBack:
        """Return the rows chosen by a mask."""
        return TakenBack(self.users[keep], self.posts[keep], self.happened_at[keep], self.undone_at[keep])

    def count_by_user(self, users: int) -> Int64s:
        """Return (users,) the number of likes of each user."""
        return np.bincount(self.users, minlength=users)

    def count_by_post(self, posts: int) -> Int64s:
        """Return (posts,) the number of likes of each post."""
        return np.bincount(self.posts, minlength=posts)

    def since(self, time: datetime) -> TakenBack:
        """Return those later than a time."""
        return self.select(self.happened_at > microseconds(time))


def microseconds(time: datetime) -> int:
    """Return microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
