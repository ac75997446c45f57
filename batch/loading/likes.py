"""Compact sparse matrices of users and posts: likes, which lists leave out, and impressions.

An impression is a post that a user viewed or liked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch.arrays import Bools, Int32s, Int64s

Integers = npt.NDArray[np.integer]


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
    def none(cls, user_count: int) -> Likes:
        """Return no likes of so many users."""
        return cls(np.zeros(user_count + 1, np.int64), np.empty(0, np.int32))

    @classmethod
    def from_pairs(cls, users: Integers, posts: Integers, user_count: int) -> Likes:
        """Build from (user, post) rows in any order; duplicates count once."""
        order = np.lexsort((posts, users))
        users, posts = users[order], posts[order]
        first = np.ones(users.size, dtype=bool)
        first[1:] = (users[1:] != users[:-1]) | (posts[1:] != posts[:-1])
        return cls.from_sorted_pairs(users[first], posts[first], user_count)

    @classmethod
    def from_sorted_pairs(cls, users: Integers, posts: Integers, user_count: int) -> Likes:
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

    @classmethod
    def concatenate(cls, parts: Sequence[Likes]) -> Likes:
        """Join the likes of consecutive users."""
        counts = np.concatenate([np.empty(0, np.int64), *(np.diff(part.starts) for part in parts)])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(starts, np.concatenate([np.empty(0, np.int32), *(part.posts for part in parts)]))

    def union(self, other: Likes) -> Likes:
        """Return the pairs that these or others of the same users have."""
        if other.posts.size == 0:
            return self
        span = int(max(self.posts.max(initial=0), other.posts.max())) + 1
        pairs = [each.users.astype(np.int64) * span + each.posts for each in (self, other)]
        users, posts = np.divmod(np.union1d(*pairs), span)
        return Likes.from_sorted_pairs(users, posts, self.starts.size - 1)

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


@dataclass(frozen=True, eq=False)
class Impressions:
    """Pairs of a user and a post that the user viewed or liked, in CSR form.

    A pair takes six bytes as long as no count exceeds 255.

    Attributes
    ----------
    starts
        (users + 1,) int64: the pairs of user u are `starts[u]` to `starts[u + 1] - 1`.
    posts
        (pairs,) int32 row of the post of each pair, ascending and distinct within a user.
    views, likes
        (pairs,) how often each was logged, uint8, uint16 or uint32. At least one of the two is positive.
    """

    starts: Int64s
    posts: Int32s
    views: Integers
    likes: Integers

    @classmethod
    def from_pairs(
        cls, users: Integers, posts: Integers, views: npt.ArrayLike, likes: npt.ArrayLike, user_count: int
    ) -> Impressions:
        """Build from distinct pairs, in any order.

        Parameters
        ----------
        users, posts
            (pairs,) rows.
        views, likes
            (pairs,) non-negative integers of any type.
        user_count
            Number of users, including those without a pair.
        """
        views, likes = smallest(np.asarray(views)), smallest(np.asarray(likes))
        starts = np.zeros(user_count + 1, np.int64)
        np.cumsum(np.bincount(users, minlength=user_count), out=starts[1:])
        columns: Int32s = np.asarray(posts, dtype=np.int32)
        steps = np.diff(users)
        if not np.all((steps > 0) | ((steps == 0) & (columns[1:] > columns[:-1]))):
            order = np.lexsort((columns, users))
            columns, views, likes = columns[order], views[order], likes[order]
        return cls(starts, columns, views, likes)

    @classmethod
    def concatenate(cls, parts: list[Impressions]) -> Impressions:
        """Join the impressions of consecutive users; `parts` is empty afterwards.

        Each part is released once it is copied, so peak memory is the result
        and one part, unless the caller holds references to the parts.
        """
        user_counts = [part.starts.size - 1 for part in parts]
        pairs = sum(part.posts.size for part in parts)
        joined = cls(
            np.zeros(sum(user_counts) + 1, np.int64),
            np.empty(pairs, np.int32),
            np.empty(pairs, np.result_type(np.uint8, *{part.views.dtype for part in parts})),
            np.empty(pairs, np.result_type(np.uint8, *{part.likes.dtype for part in parts})),
        )
        user = pair = 0
        parts.reverse()
        while parts:
            part = parts.pop()
            next_user, next_pair = user + part.starts.size - 1, pair + part.posts.size
            joined.starts[user + 1 : next_user + 1] = pair + part.starts[1:]
            for name in ("posts", "views", "likes"):
                getattr(joined, name)[pair:next_pair] = getattr(part, name)
            user, pair = next_user, next_pair
        return joined

    @property
    def users(self) -> Int32s:
        """(pairs,) int32 row of the user of each pair."""
        return np.repeat(np.arange(self.starts.size - 1, dtype=np.int32), np.diff(self.starts))

    def of_users(self, start: int, stop: int) -> Impressions:
        """Return the pairs of users `start` to `stop - 1`, without a copy of the pairs."""
        pairs = slice(self.starts[start], self.starts[stop])
        return Impressions(
            self.starts[start : stop + 1] - self.starts[start],
            self.posts[pairs],
            self.views[pairs],
            self.likes[pairs],
        )

    def blocks(self, max_pairs: int) -> Iterator[tuple[int, int]]:
        """Cut the users into blocks of at most `max_pairs`; a user with more pairs is a block alone.

        Yields
        ------
        First user row of a block, and the row after its last.
        """
        start, users = 0, self.starts.size - 1
        while start < users:
            end = np.searchsorted(self.starts, self.starts[start] + max_pairs, side="right") - 1
            stop = max(int(end), start + 1)
            yield start, stop
            start = stop


def smallest(values: Integers) -> Integers:
    """Convert integers to the smallest type that holds them, unsigned if none is negative."""
    kinds = (np.min_scalar_type(int(values.min(initial=0))), np.min_scalar_type(int(values.max(initial=0))))
    found: Integers = values.astype(np.result_type(*kinds), copy=False)
    return found
