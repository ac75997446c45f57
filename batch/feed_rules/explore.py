"""New posts get a chance: in every K places of a list, the last one is drawn from the unknown posts.

Unknown is a post with fewer views than OVERNIGHT_EXPLORE_MAX_VIEWS; K is OVERNIGHT_EXPLORE_PLACES.

    for place K, 2 K, 3 K ... of a list, from the top:
        pool = unknown posts that the user may be shown and that are not higher in the list
        if it is not empty:
            insert one of it, drawn uniformly, at this place; the posts from there on move down

The list keeps its length: its last post falls out, unless the drawn post was in the list.

The draw is a function of run and user. Every post of the pool has a 64-bit hash of (seed, variant, cutoff,
user, post), and the lowest hash wins (rendezvous hashing, Thaler and Ravishankar, 1998). Hashes are
independent of the scores, so each post of the pool is equally likely. Other nights have other draws. A
refresh, whose pool differs by a few posts, draws the same post unless that post left the pool or a new one
has a lower hash.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Int32s, Int64s
from batch.ids import Ids
from batch.jit import jit
from batch.loading.history import History
from batch.scoring.chunk import Lists
from contract.settings import FeedSettings

Hashes = npt.NDArray[np.uint64]
MAX_HASH = np.uint64(2**64 - 1)

CANDIDATES_PER_PLACE = 8
"""The lowest hashes of a large pool are looked at first: about so many for each explored place."""


def find_unknown_posts(history: History, max_views: int, excluded: Int64s) -> Int32s:
    """Return the rows of the posts with fewer than `max_views` views; likes count if no view is logged.

    Parameters
    ----------
    excluded
        Rows of posts that no list may have.
    """
    counts = history.post_counts
    seen = counts["views"] if (counts["views"] > 0).any() else counts["likes"]
    return np.setdiff1d(np.flatnonzero(seen.to_numpy() < max_views), excluded).astype(np.int32)


@dataclass(frozen=True)
class DrawKey:
    """What all draws of a run have in common: other values give other draws."""

    seed: int
    variant: str
    cutoff: datetime

    def hash_ids(self, kind: str, ids: Ids) -> Hashes:
        """Return (ids,) a hash of each id; `kind` keeps equal ids of users and posts apart."""
        start = blake2b(
            f"{self.seed}\t{self.variant}\t{self.cutoff.astimezone(UTC).isoformat()}\t{kind}\t".encode()
        )
        hashes = np.empty(ids.size, np.uint64)
        for row, each in enumerate(ids.tolist()):
            found = start.copy()
            found.update(str(each).encode())
            hashes[row] = int.from_bytes(found.digest()[:8], "little")
        return hashes


@dataclass(frozen=True)
class Exploration:
    """Draws the explored places of a run's lists.

    Attributes
    ----------
    every
        One of so many places is explored.
    key
        Of the run.
    pool
        Rows of the unknown posts.
    post_hashes
        (pool,) of their ids.
    posts
        Number of posts of the network.
    """

    every: int
    key: DrawKey
    pool: Int32s
    post_hashes: Hashes
    posts: int

    @classmethod
    def of(cls, feed: FeedSettings, key: DrawKey, history: History, excluded: Int64s) -> Exploration | None:
        """Find the unknown posts as of `history.cutoff`; None if no place is explored.

        Parameters
        ----------
        excluded
            Rows of posts that no list may have.
        """
        if feed.explore_places == 0:
            return None
        pool = find_unknown_posts(history, feed.explore_max_views, excluded)
        post_ids = history.post_counts.index.to_numpy()
        hashes = key.hash_ids("post", post_ids[pool])  # of ids, because rows change when posts are added
        return cls(feed.explore_places, key, pool, hashes, post_ids.size)

    def record(self, drawn: int) -> dict[str, int]:
        """Return the JSON object for a manifest: the unknown posts, and the places with one of them."""
        return {"posts": self.pool.size, "places": drawn}

    def draw(self, lists: Lists, user_ids: Ids) -> Lists:
        """Return the lists of some users with explored places: other posts and scores, and `drawn_from`.

        The score of a drawn post is the model's if the list had it. Else it is the lowest score of the
        list, which is the highest that the post can have.
        """
        users = self.key.hash_ids("user", user_ids)
        drawn_from = np.zeros(lists.posts.shape, np.int32)
        drawn = replace(lists, posts=lists.posts.copy(), scores=lists.scores.copy(), drawn_from=drawn_from)
        _draw_places(
            (lists.posts, lists.scores),
            (drawn.posts, drawn.scores, drawn_from),
            (lists.left_out.starts, lists.left_out.posts),
            (self.pool, self.post_hashes),
            (users, self.every, self.posts),
        )
        return drawn


@jit
def _draw_places(
    before: tuple[Int32s, Float32s],
    lists: tuple[Int32s, Float32s, Int32s],
    left_out: tuple[Int64s, Int32s],
    pool: tuple[Int32s, Hashes],
    draw: tuple[Hashes, int, int],
) -> None:
    """Insert the drawn posts into all lists.

    Parameters
    ----------
    before
        (users, n) posts (-1 pads) and scores before the draw.
    lists
        The same, to be changed, and the number of posts that each was drawn from.
    left_out
        Posts of each user that are not shown: (users + 1,) starts, and rows of posts.
    pool
        (pool,) rows of unknown posts, and their hashes.
    draw
        (users,) hashes; one of how many places is explored; number of posts.
    """
    posts, scores, drawn_from = lists
    ranked, ranked_scores = before
    starts, hidden = left_out
    unknown, post_hashes = pool
    users, every, post_count = draw
    taken = np.full(post_count, -1, np.int32)  # the last user who cannot draw the post
    in_pool = np.zeros(post_count, np.bool_)
    in_pool[unknown] = True
    candidates, hashes = np.empty(unknown.size, np.int32), np.empty(unknown.size, np.uint64)
    some = CANDIDATES_PER_PLACE * (1 + posts.shape[1] // every)
    limit = MAX_HASH if unknown.size <= some else MAX_HASH // np.uint64(unknown.size) * np.uint64(some)
    for user in range(len(users)):
        length = 0
        while length < posts.shape[1] and posts[user, length] >= 0:
            length += 1
        if length < every:
            continue
        size = unknown.size
        for index in range(starts[user], starts[user + 1]):
            taken[hidden[index]] = user
            size -= in_pool[hidden[index]]
        count = _hash_pool(unknown, post_hashes, (users[user], limit), candidates, hashes)
        lowest = scores[user, 0]
        for index in range(1, length):
            lowest = min(lowest, scores[user, index])
        above = 0
        for at in range(every - 1, length, every):
            while above < at:
                taken[posts[user, above]] = user
                size -= in_pool[posts[user, above]]
                above += 1
            if size == 0:
                continue
            best = _find_lowest(candidates[:count], hashes, taken, user)
            if best < 0:  # the candidates are all taken: it is another post of the pool
                count = _hash_pool(unknown, post_hashes, (users[user], MAX_HASH), candidates, hashes)
                best = _find_lowest(candidates[:count], hashes, taken, user)
            drawn, score, last = candidates[best], lowest, length - 1
            for index in range(length):
                if posts[user, index] == drawn:
                    last = index
                if ranked[user, index] == drawn:
                    score = ranked_scores[user, index]
            for index in range(last, at, -1):
                posts[user, index], scores[user, index] = posts[user, index - 1], scores[user, index - 1]
            posts[user, at], scores[user, at], drawn_from[user, at] = drawn, score, size


@jit
def _hash_pool(
    unknown: Int32s, post_hashes: Hashes, draw: tuple[Any, Any], candidates: Int32s, hashes: Hashes
) -> int:
    """Write the posts whose hash with the user is at most the limit, and the hashes; return their number."""
    user, limit = draw
    count = 0
    for index in range(unknown.size):
        value = _mix(user ^ post_hashes[index])
        if value <= limit:
            candidates[count], hashes[count] = unknown[index], value
            count += 1
    return count


@jit
def _find_lowest(candidates: Int32s, hashes: Hashes, taken: Int32s, user: int) -> int:
    """Return the index of the candidate with the lowest hash that the user can draw; -1 for none."""
    best = -1
    for index in range(len(candidates)):
        if taken[candidates[index]] != user and (best < 0 or hashes[index] < hashes[best]):
            best = index
    return best


@jit
def _mix(value: np.uint64) -> np.uint64:
    """Mix the bits of a hash (the finaliser of splitmix64, Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
