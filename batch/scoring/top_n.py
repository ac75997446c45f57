"""The best n posts of each user, kept while the scores arrive strip by strip.

A score and its post make one whole number, a *key*: the score's bits, turned so
that they sort as scores do, above the post's place, turned so that the lower
one wins among equal scores. The order of keys is the order of the list, ties
and all, so the lists do not depend on the order in which scores arrive.

Each user has a shelf of keys and a floor. What lies below the floor is dropped;
when more than 2n keys lie on the shelf, its best n stay and the least of them
is the new floor. Floors are soon close to final, and most strips are passed
over by one look at their best score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Int32s, Int64s
from batch.loading.likes import Likes
from batch.scoring.simd import WIDTH, compiled

# More of them visit a shelf less often, and ask for more room on it.
STRIPS_AT_ONCE = 16

Keys = npt.NDArray[np.uint64]

_SIGN = np.uint32(1 << 31)
_LAST = np.uint32(2**32 - 1)


def bytes_per_user(n: int) -> int:
    """Say how much memory a user's shelf takes, with the list that is made of it."""
    return 8 * _room(n) + 32 * n


def _room(n: int) -> int:
    return 2 * n + STRIPS_AT_ONCE * WIDTH


@dataclass(frozen=True)
class Shelves:
    """What is kept of each user while the scores arrive.

    Attributes
    ----------
    n
        Longest list.
    keys
        (users, room) uint64, the first `filled` of a user's in use.
    filled
        (users,) int64.
    floors
        (users,) uint64 greatest key that cannot come into the list any more.
    """

    n: int
    keys: Keys
    filled: Int64s
    floors: Keys

    @classmethod
    def empty(cls, users: int, n: int) -> Shelves:
        """Make empty shelves."""
        keys = np.empty((users, _room(n)), dtype=np.uint64)
        return cls(n, keys, np.zeros(users, dtype=np.int64), np.zeros(users, dtype=np.uint64))

    def offer(
        self, scores: Float32s, best: npt.NDArray[np.uint32], users: Int64s, posts: Int32s, liked: Likes
    ) -> None:
        """Offer the scores of some strips of posts, each post once in all.

        Parameters
        ----------
        scores
            (strips, users, 32) float32, neither NaN nor -0.0.
        best
            (strips, users) `in_order` of the bits of each strip's best score.
        users
            (users,) whose scores these are: places on the shelves and in `liked`.
        posts
            (strips, 32) places of the posts; -1 pads. May be fewer strips than scores.
        liked
            Posts to leave out.
        """
        _offer(
            scores.view(np.uint32), best, users, posts, liked.starts, liked.posts,
            self.n, self.keys, self.filled, self.floors,
        )  # fmt: skip

    def lists(self) -> tuple[Int32s, Float32s]:
        """Read the lists: (users, n) places of posts, best first (-1 pads), and their scores (NaN pads)."""
        best = np.zeros((len(self.filled), self.n), dtype=np.uint64)
        _gather_best(self.keys, self.filled, best)
        best = np.sort(best, axis=1)[:, ::-1]
        turned = (best >> np.uint64(32)).astype(np.uint32)
        bits = np.where(turned & _SIGN, turned ^ _SIGN, ~turned)
        posts = np.where(best == 0, -1, _LAST - best.astype(np.uint32))
        return posts.astype(np.int32), np.where(best == 0, np.float32(np.nan), bits.view(np.float32))


@compiled
def in_order(bits: np.uint32) -> np.uint32:
    """Turn the bits of a float32 into a number that sorts as it does."""
    return ~bits if bits & _SIGN else bits | _SIGN


@compiled
def _offer(
    scores: npt.NDArray[np.uint32],
    best: npt.NDArray[np.uint32],
    users: Int64s,
    posts: Int32s,
    liked_starts: Int64s,
    liked: Int32s,
    n: int,
    keys: Keys,
    filled: Int64s,
    floors: Keys,
) -> None:
    for row in range(len(users)):
        user = users[row]
        floor, count = floors[user], filled[user]
        least = np.uint32(floor >> np.uint64(32))
        for strip in range(len(posts)):
            if best[strip, row] < least:
                continue
            for lane in range(WIDTH):
                post = posts[strip, lane]
                key = np.uint64(in_order(scores[strip, row, lane])) << np.uint64(32) | np.uint64(
                    _LAST - np.uint32(post)
                )
                if (
                    key > floor
                    and post >= 0
                    and not _holds(liked, liked_starts[user], liked_starts[user + 1], post)
                ):
                    keys[user, count] = key
                    count += 1
        if count > 2 * n:
            _keep_best(keys[user, :count], n)
            count = n
            floors[user] = keys[user, n - 1]
        filled[user] = count


@compiled
def _holds(ascending: Int32s, first: int, end: int, value: np.int32) -> bool:
    """Tell whether the numbers from first to end - 1 hold a value, by halving, without a branch."""
    length = end - first
    while length > 1:
        half = length // 2
        first += half * (ascending[first + half - 1] < value)
        length -= half
    return length == 1 and ascending[first] == value


@compiled
def _keep_best(keys: Keys, n: int) -> None:
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


@compiled
def _gather_best(keys: Keys, filled: Int64s, best: Keys) -> None:
    """Copy each user's best keys, in any order."""
    for user in range(len(filled)):
        count = min(filled[user], best.shape[1])
        if filled[user] > count:
            _keep_best(keys[user, : filled[user]], count)
        for place in range(count):
            best[user, place] = keys[user, place]
