"""The best n posts of each user, selected while scores arrive post block by post block.

A score and its post make one integer *key*. Its high bits are the bits of the
score, transformed so that they sort as scores do. Its low bits are the post's
*tie rank*, inverted so that the lower rank wins among equal scores: posts are
ranked by likes, most first, then by row. The order of keys is the order of the
list, ties included, so the lists do not depend on the order in which scores
arrive.

Each user has a buffer of candidate keys and a threshold. Keys below the
threshold are dropped. When the buffer exceeds 2n keys, cut it to the best n and
raise the threshold to the worst of them. The threshold soon approaches its
final value, and then most post blocks are skipped after one comparison with
their best score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Float64s, Int32s, Int64s
from batch.jit import jit
from batch.loading.likes import Likes
from batch.scoring.simd import WIDTH, aligned

# Post blocks pushed together. More of them touch a buffer less often, but need a larger one.
POST_BLOCKS_BATCH = 16

Keys = npt.NDArray[np.uint64]

_SIGN = np.uint32(1 << 31)
_LAST = np.uint32(2**32 - 1)


def rank_ties(likes: Float64s) -> Int32s:
    """Return (posts,) the tie rank of each post from its likes: most likes first, then the lower row."""
    ranks = np.empty(likes.size, dtype=np.int32)
    ranks[np.lexsort((np.arange(likes.size), -likes))] = np.arange(likes.size)
    return ranks


def bytes_per_user(n: int) -> int:
    """Return the memory of a user's buffer and of the list made from it."""
    return 8 * _buffer_size(n) + 32 * n


def _buffer_size(n: int) -> int:
    return 2 * n + POST_BLOCKS_BATCH * WIDTH


class BlockScores(NamedTuple):
    """Scores of some users with the posts of POST_BLOCKS_BATCH post blocks.

    Attributes
    ----------
    scores
        (post blocks, users, 32) float32, neither NaN nor -0.0.
    best
        (post blocks, users) `sortable_bits` of each post block's best score.
    """

    scores: Float32s
    best: npt.NDArray[np.uint32]

    @classmethod
    def allocate(cls, users: int) -> BlockScores:
        """Allocate arrays without values."""
        shape = POST_BLOCKS_BATCH, users
        return cls(aligned((*shape, WIDTH), np.float32), np.empty(shape, dtype=np.uint32))


class TopNBuffers(NamedTuple):
    """The candidates of each user.

    Attributes
    ----------
    n
        Longest list.
    tie_ranks
        (posts,) from `rank_ties`.
    keys
        (users, buffer size) uint64; the first `lengths` of a user's are in use.
    lengths
        (users,) int64.
    thresholds
        (users,) uint64 greatest key that cannot enter the list any more.
    """

    n: int
    tie_ranks: Int32s
    keys: Keys
    lengths: Int64s
    thresholds: Keys

    @classmethod
    def empty(cls, users: int, n: int, tie_ranks: Int32s) -> TopNBuffers:
        """Allocate empty buffers."""
        keys = np.empty((users, _buffer_size(n)), dtype=np.uint64)
        return cls(n, tie_ranks, keys, np.zeros(users, dtype=np.int64), np.zeros(users, dtype=np.uint64))

    def push(self, block_scores: BlockScores, users: Int64s, posts: Int32s, liked: Likes) -> None:
        """Push the scores of some post blocks; each post may be pushed only once.

        Parameters
        ----------
        users
            (users,) whose scores these are: rows of the buffers and of `liked`.
        posts
            (post blocks, 32) rows of the posts; -1 pads. May be fewer post blocks than scores.
        liked
            Posts to exclude.
        """
        _push(self, block_scores, users, posts, (liked.starts, liked.posts))

    def lists(self) -> tuple[Int32s, Float32s]:
        """Return the lists: (users, n) rows of posts, best first (-1 pads), and their scores (NaN pads)."""
        best = np.zeros((len(self.lengths), self.n), dtype=np.uint64)
        _copy_best(self.keys, self.lengths, best)
        best = np.sort(best, axis=1)[:, ::-1]
        sortable = (best >> np.uint64(32)).astype(np.uint32)
        bits = np.where(sortable & _SIGN, sortable ^ _SIGN, ~sortable)
        posts = self.tie_ranks.size
        post_of_rank = np.full(posts + 1, -1, dtype=np.int32)  # the last one is of the pads
        post_of_rank[self.tie_ranks] = np.arange(posts)
        ranks = np.where(best == 0, posts, _LAST - best.astype(np.uint32))
        return post_of_rank[ranks], np.where(best == 0, np.float32(np.nan), bits.view(np.float32))


@jit
def sortable_bits(bits: np.uint32) -> np.uint32:
    """Transform the bits of a float32 into an integer that sorts as the number does."""
    return ~bits if bits & _SIGN else bits | _SIGN


@jit
def _push(
    buffers: TopNBuffers,
    block_scores: BlockScores,
    users: Int64s,
    posts: Int32s,
    liked: tuple[Int64s, Int32s],
) -> None:
    """Push scores; `liked` is the starts and the posts of `Likes`."""
    n, keys, lengths, thresholds = buffers.n, buffers.keys, buffers.lengths, buffers.thresholds
    tie_ranks = buffers.tie_ranks
    bits, best = block_scores.scores.view(np.uint32), block_scores.best
    liked_starts, liked_posts = liked
    for row in range(len(users)):
        user = users[row]
        threshold, count = thresholds[user], lengths[user]
        min_best = np.uint32(threshold >> np.uint64(32))
        for block in range(len(posts)):
            if best[block, row] < min_best:
                continue
            for lane in range(WIDTH):
                score, post = sortable_bits(bits[block, row, lane]), posts[block, lane]
                if score < min_best or post < 0:
                    continue
                key = np.uint64(score) << np.uint64(32) | np.uint64(_LAST - np.uint32(tie_ranks[post]))
                if key > threshold and not _contains(
                    liked_posts, liked_starts[user], liked_starts[user + 1], post
                ):
                    keys[user, count] = key
                    count += 1
        if count > 2 * n:
            _select_best(keys[user, :count], n)
            count = n
            thresholds[user] = keys[user, n - 1]
        lengths[user] = count


@jit
def _contains(ascending: Int32s, first: int, end: int, value: np.int32) -> bool:
    """Return whether elements first to end - 1 contain a value, by binary search without branches."""
    length = end - first
    while length > 1:
        half = length // 2
        first += half * (ascending[first + half - 1] < value)
        length -= half
    return length == 1 and ascending[first] == value


@jit
def _select_best(keys: Keys, n: int) -> None:
    """Move the n greatest keys to the front, the least of them last (Hoare's quickselect)."""
    first, last = 0, len(keys) - 1
    while first < last:
        pivot = keys[(first + last) // 2]
        low, high = first, last
        while low <= high:
            while keys[low] > pivot:
                low += 1
            while keys[high] < pivot:
                high -= 1
            if low <= high:
                keys[low], keys[high] = keys[high], keys[low]
                low += 1
                high -= 1
        if n - 1 <= high:
            last = high
        elif n - 1 >= low:
            first = low
        else:
            return


@jit
def _copy_best(keys: Keys, lengths: Int64s, best: Keys) -> None:
    """Copy each user's best keys, in any order."""
    for user in range(len(lengths)):
        count = min(lengths[user], best.shape[1])
        if lengths[user] > count:
            _select_best(keys[user, : lengths[user]], count)
        for i in range(count):
            best[user, i] = keys[user, i]
