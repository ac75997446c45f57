"""Count lists as they are written, so that the gate knows all lists without reading them back.

Counts are added up over tasks, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from batch.arrays import Bools, Int32s, Int64s
from batch.loading.likes import Likes
from batch.scoring.chunk import Lists
from contract.codec import LIST_HEAD

MAX_FIRST_FIVES = 100
"""Posts of which is kept how many lists have them in their first five."""


def _no_rows() -> Int64s:
    return np.empty(0, np.int64)


@dataclass
class ListStats:
    """Counts over a run's lists so far.

    Attributes
    ----------
    posts
        Number of posts of the network, blocked posts included.
    lists
        Number of lists.
    full
        Lists of the maximum length: N posts, or all posts that the user may be shown.
    lists_with_five
        Lists with five posts, or with as many as possible where a list cannot have five.
    not_finite
        Scores in lists that are NaN or infinite.
    left_out
        Pairs of a user and a post that the lists leave out.
    same_order
        Whether all lists rank the posts in one order by score, apart from what is left out of them.
    head_posts, head_counts
        Rows of the posts that are in the first five of some list, ascending, and of how many lists.
    """

    posts: int
    lists: int = 0
    full: int = 0
    lists_with_five: int = 0
    not_finite: int = 0
    left_out: int = 0
    same_order: bool = True
    head_posts: Int64s = field(default_factory=_no_rows)
    head_counts: Int64s = field(default_factory=_no_rows)

    def add(self, other: ListStats) -> None:
        """Add the counts over other lists."""
        self.lists += other.lists
        self.full += other.full
        self.lists_with_five += other.lists_with_five
        self.not_finite += other.not_finite
        self.left_out += other.left_out
        self.same_order &= other.same_order
        counts = np.zeros(self.posts, np.int64)
        counts[self.head_posts] = self.head_counts
        counts[other.head_posts] += other.head_counts
        self.head_posts = np.flatnonzero(counts)
        self.head_counts = counts[self.head_posts]

    @property
    def posts_in_first(self) -> int:
        """Number of distinct posts in the first five of some list."""
        return self.head_posts.size

    @property
    def first_fives(self) -> list[tuple[int, int]]:
        """(row of a post, lists that have it in their first five) of the posts that most lists have there.

        At most `MAX_FIRST_FIVES`, most lists first; the lower row wins ties.
        """
        order = np.argsort(-self.head_counts, kind="stable")[:MAX_FIRST_FIVES]
        return list(zip(self.head_posts[order].tolist(), self.head_counts[order].tolist(), strict=True))


@dataclass(frozen=True)
class ListCounter:
    """Counts lists.

    Attributes
    ----------
    n
        Longest list.
    allowed
        (posts,) whether lists may have each post.
    ranks
        (posts,) rank of each post in one of the run's lists. Posts that it does not have come after those
        that it has; what it leaves out has -1 and may be anywhere. None if no list is compared.
    """

    n: int
    allowed: Bools
    ranks: Int32s | None

    @classmethod
    def of(cls, posts: int, excluded: Int64s, n: int, sample: Lists) -> ListCounter:
        """Build from the number of posts, those that no list may have, and some of the run's lists.

        The lists are compared with the one of the sample that leaves out the fewest posts.
        """
        counter = cls.uncompared(posts, excluded, n)
        if not len(sample.posts):
            return counter
        user = int(np.argmax(counter._count_available(sample.left_out)))
        listed = sample.posts[user][sample.posts[user] >= 0]
        ranks = np.full(posts, listed.size, np.int32)
        ranks[listed] = np.arange(listed.size)
        ranks[sample.left_out.of(user)] = -1
        return cls(n, counter.allowed, ranks)

    @classmethod
    def uncompared(cls, posts: int, excluded: Int64s, n: int) -> ListCounter:
        """Build one that does not compare the order of lists."""
        allowed = np.ones(posts, dtype=bool)
        allowed[excluded] = False
        return cls(n, allowed, None)

    def count(self, chunk: Lists) -> ListStats:
        """Count lists as they are scored, before the rules of the feed."""
        listed, posts = chunk.posts >= 0, self.allowed.size
        lengths = listed.sum(axis=1)
        available = self._count_available(chunk.left_out)
        head = chunk.posts[:, :LIST_HEAD]
        head_posts, head_counts = np.unique(head[head >= 0], return_counts=True)
        return ListStats(
            posts=posts,
            lists=len(chunk.posts),
            full=int((lengths >= np.minimum(self.n, available)).sum()),
            lists_with_five=int((lengths >= min(LIST_HEAD, self.n, posts)).sum()),
            not_finite=int((~np.isfinite(chunk.scores[listed])).sum()),
            left_out=chunk.left_out.posts.size,
            same_order=self._have_one_order(chunk.posts),
            head_posts=head_posts.astype(np.int64),
            head_counts=head_counts.astype(np.int64),
        )

    def _have_one_order(self, posts: Int32s) -> bool:
        """Return whether lists rank the posts as `ranks` does."""
        if self.ranks is None:
            return True
        ranks = np.where(posts >= 0, self.ranks[posts], -1)
        return bool(((ranks < 0) | (ranks == np.maximum.accumulate(ranks, axis=1))).all())

    def _count_available(self, left_out: Likes) -> Int64s:
        """Return (users,) how many posts are neither excluded nor left out of the user's list."""
        users = left_out.starts.size - 1
        unavailable = np.bincount(left_out.users, weights=self.allowed[left_out.posts], minlength=users)
        return int(self.allowed.sum()) - unavailable.astype(np.int64)
