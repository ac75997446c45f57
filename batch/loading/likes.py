"""Likes as a compact sparse matrix; liked posts are left out of the lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch.arrays import Bools, Int32s, Int64s


@dataclass(frozen=True)
class Likes:
    """Liked posts per user in CSR form, four bytes per like.

    Attributes
    ----------
    starts
        (users + 1,) int64: user u's posts are `posts[starts[u]:starts[u + 1]]`.
    posts
        (likes,) int32 row of each liked post, ascending and distinct within a user.
    """

    starts: Int64s
    posts: Int32s

    @classmethod
    def from_pairs(cls, users: Int32s, posts: Int32s, user_count: int) -> Likes:
        """Build from (user, post) rows in any order; duplicates count once."""
        order = np.lexsort((posts, users))
        users, posts = users[order], posts[order]
        first = np.ones(users.size, dtype=bool)
        first[1:] = (users[1:] != users[:-1]) | (posts[1:] != posts[:-1])
        return cls.from_sorted_pairs(users[first], posts[first], user_count)

    @classmethod
    def from_sorted_pairs(cls, users: Int32s, posts: Int32s, user_count: int) -> Likes:
        """Build from distinct (user, post) rows that ascend by user, then post."""
        counts = np.bincount(users, minlength=user_count)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(starts, np.ascontiguousarray(posts, dtype=np.int32))

    def of(self, user: int) -> Int32s:
        """Return the rows of the posts that one user likes."""
        return self.posts[self.starts[user] : self.starts[user + 1]]

    def of_users(self, start: int, stop: int) -> Likes:
        """Return the likes of users `start` to `stop - 1`."""
        low, high = self.starts[start], self.starts[stop]
        return Likes(self.starts[start : stop + 1] - low, self.posts[low:high])

    def of_rows(self, users: npt.NDArray[np.intp]) -> Likes:
        """Return the likes of the users in these rows, in this order."""
        counts = np.diff(self.starts)[users]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        liked = np.repeat(self.starts[users] - starts[:-1], counts) + np.arange(starts[-1])
        return Likes(starts, self.posts[liked])

    def contain(self, users: Int64s, posts: Int64s, post_count: int) -> Bools:
        """Return (pairs,) whether each user likes each post."""
        distinct, rows = np.unique(users, return_inverse=True)
        theirs = self.of_rows(distinct)
        known = theirs.users.astype(np.int64) * post_count + theirs.posts  # ascending
        wanted = rows * post_count + posts
        index = np.searchsorted(known, wanted)
        found: Bools = np.zeros(wanted.size, dtype=bool)
        inside = index < known.size
        found[inside] = known[index[inside]] == wanted[inside]
        return found

    @property
    def users(self) -> Int32s:
        """(likes,) row of the user of each like."""
        return np.repeat(np.arange(self.starts.size - 1, dtype=np.int32), np.diff(self.starts))
