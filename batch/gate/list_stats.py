"""Counts lists as they pass to the writer, so that the gate knows all of them without reading any back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from batch.arrays import Int64s
from batch.loading.likes import Likes
from batch.scoring.chunk import Lists

FIRST = 5
"""What most users see: the head of a list."""

KNOWN_USERS = 10


class ListStats:
    """What is known of a run's lists so far.

    Attributes
    ----------
    lists
        How many there are.
    full
        How many of them are as long as can be: N posts, or all that the user may be shown.
    of_five
        How many have five posts, or as many as there are where a list cannot have five.
    not_finite
        Scores among the listed that are infinite or no number.
    user_ids
        Some of the users that have a list, from the first to the last.
    """

    def __init__(self, posts: int, blocked: Int64s, liked: Likes, n: int) -> None:
        self.lists = self.full = self.of_five = self.not_finite = 0
        self.user_ids: list[int] = []
        self._liked, self._n = liked, n
        self._allowed = np.ones(posts, dtype=bool)
        self._allowed[blocked] = False
        self._in_first = np.zeros(posts, dtype=bool)

    def through(self, chunks: Iterable[Lists]) -> Iterator[Lists]:
        """Count each chunk and pass it on; they come in the order of the network's users, none left out."""
        for chunk in chunks:
            self._count(chunk)
            yield chunk

    @property
    def posts(self) -> int:
        """How many posts there are, blocked ones too."""
        return self._allowed.size

    @property
    def posts_in_first(self) -> int:
        """How many distinct posts stand among the first five of any list."""
        return int(self._in_first.sum())

    def _count(self, chunk: Lists) -> None:
        listed = chunk.posts >= 0
        lengths, users = listed.sum(axis=1), len(chunk.user_ids)
        left = self._left(self.lists, self.lists + users)
        self.full += int((lengths >= np.minimum(self._n, left)).sum())
        self.of_five += int((lengths >= min(FIRST, self._n, self.posts)).sum())
        self.not_finite += int((~np.isfinite(chunk.scores[listed])).sum())
        head = chunk.posts[:, :FIRST]
        self._in_first[head[head >= 0]] = True
        self.lists += users
        if users:
            first, last = chunk.user_ids[[0, -1]].tolist()
            some = [user for user in (*self.user_ids, first) if user != last]
            self.user_ids = [*list(dict.fromkeys(some))[: KNOWN_USERS - 1], last]

    def _left(self, start: int, stop: int) -> Int64s:
        """Return how many posts each of some users may be shown: neither blocked nor liked."""
        likes = self._liked.of_users(start, stop)
        taken = np.bincount(likes.users, weights=self._allowed[likes.posts], minlength=stop - start)
        return int(self._allowed.sum()) - taken.astype(np.int64)
