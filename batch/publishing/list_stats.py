"""Count lists as they are written, so that the gate knows all lists without reading them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from batch.arrays import Int32s, Int64s
from batch.loading.likes import Likes
from batch.scoring.chunk import Lists
from contract.codec import LIST_HEAD

MAX_SOME_USERS = 10
"""Users that are named."""

MAX_FIRST_FIVES = 100
"""Posts of which is kept how many lists have them in their first five."""


class ListStats:
    """Counts over a run's lists so far.

    Attributes
    ----------
    lists
        Number of lists.
    full
        Lists of the maximum length: N posts, or all posts that the user may be shown.
    lists_with_five
        Lists with five posts, or with as many as possible where a list cannot have five.
    not_finite
        Scores in lists that are NaN or infinite.
    some_users
        Rows of some users with a list, the first and the last among them.
    left_out
        Pairs of a user and a post that the lists leave out.
    same_order
        Whether all lists rank the posts in one order by score, apart from what is left out of them.
    """

    def __init__(self, posts: int, excluded: Int64s, n: int) -> None:
        self.lists = self.full = self.lists_with_five = self.not_finite = self.left_out = 0
        self.some_users: list[int] = []
        self.same_order = True
        self._ranks: Int64s | None = None
        self._n = n
        self._allowed = np.ones(posts, dtype=bool)
        self._allowed[excluded] = False
        self._in_heads = np.zeros(posts, dtype=np.int64)

    def through(self, chunks: Iterable[tuple[int, Lists]]) -> Iterator[tuple[int, Lists]]:
        """Count each chunk and yield it. Chunks cover all users in the order of the network."""
        for users, chunk in chunks:
            self._count(chunk)
            yield users, chunk

    @property
    def posts(self) -> int:
        """Number of posts, blocked posts included."""
        return self._allowed.size

    @property
    def posts_in_first(self) -> int:
        """Number of distinct posts in the first five of some list."""
        return int(np.count_nonzero(self._in_heads))

    @property
    def first_fives(self) -> list[tuple[int, int]]:
        """(row of a post, lists that have it in their first five) of the posts that most lists have there.

        At most `MAX_FIRST_FIVES`, most lists first; the lower row wins ties.
        """
        order = np.argsort(-self._in_heads, kind="stable")[:MAX_FIRST_FIVES]
        rows = order[self._in_heads[order] > 0]
        return list(zip(rows.tolist(), self._in_heads[rows].tolist(), strict=True))

    def _count(self, chunk: Lists) -> None:
        listed = chunk.posts >= 0
        lengths, users = listed.sum(axis=1), len(chunk.rows)
        available = self._count_available(chunk.left_out)
        self.full += int((lengths >= np.minimum(self._n, available)).sum())
        self.lists_with_five += int((lengths >= min(LIST_HEAD, self._n, self.posts)).sum())
        self.not_finite += int((~np.isfinite(chunk.scores[listed])).sum())
        head = chunk.posts[:, :LIST_HEAD]
        np.add.at(self._in_heads, head[head >= 0], 1)
        if self.same_order and lengths.max(initial=0) > 1:
            self.same_order = self._continues_order(chunk.posts, chunk.left_out, available)
        self.left_out += chunk.left_out.posts.size
        self.lists += users
        if users:
            first, last = chunk.rows[[0, -1]].tolist()
            some = [user for user in (*self.some_users, first) if user != last]
            self.some_users = [*list(dict.fromkeys(some))[: MAX_SOME_USERS - 1], last]

    def _continues_order(self, posts: Int32s, left_out: Likes, available: Int64s) -> bool:
        """Return whether lists rank the posts as one list of the first chunk does, that leaves out few posts.

        What that list leaves out may be anywhere.
        """
        if self._ranks is None:
            user = int(np.argmax(available))
            listed = posts[user][posts[user] >= 0]
            self._ranks = np.full(self.posts, listed.size)  # other posts come after those
            self._ranks[listed] = np.arange(listed.size)
            self._ranks[left_out.of(user)] = -1
        ranks = np.where(posts >= 0, self._ranks[posts], -1)
        return bool(((ranks < 0) | (ranks == np.maximum.accumulate(ranks, axis=1))).all())

    def _count_available(self, left_out: Likes) -> Int64s:
        """Return (users,) how many posts are neither excluded nor left out of the user's list."""
        users = left_out.starts.size - 1
        unavailable = np.bincount(left_out.users, weights=self._allowed[left_out.posts], minlength=users)
        return int(self._allowed.sum()) - unavailable.astype(np.int64)
