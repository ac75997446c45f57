"""Exact scores of a chunk of users with all posts, and each user's best n posts.

The forest's score of a pair is a sum over bundles of trees (batch/scoring/bundles.py).
Where a user stands, for the groups that a strip's posts belong to, names one
row of each bundle; so, strip by strip:

1. work out what every row is worth with each of the strip's posts;
2. add up, for each user, one row of each bundle: 32 scores, no tree walked;
3. offer what passes the user's floor to the user's list.

The first step costs the same for any number of users, so a chunk has many. A
chunk is a pure function of a post side and its users' rows, and both pickle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batch.arrays import Bytes, Float32s, Int32s, Int64s
from batch.loading.likes import Likes
from batch.scoring.compile import BUNDLES_AT_ONCE, PostSide
from batch.scoring.leaf_tables import STRIDE
from batch.scoring.parts import Masks
from batch.scoring.simd import WIDTH, add_rows, aligned, compiled, dot_rows
from batch.scoring.top_n import STRIPS_AT_ONCE, Shelves, bytes_per_user, in_order


@dataclass(frozen=True)
class UserRows:
    """What is known of the users of a chunk.

    Attributes
    ----------
    user_ids
        (users,) int64.
    values
        (users, user columns) float32.
    affinities
        For each grouping: (users, groups, features) float32.
    factors
        (users, factors) float32; no factors if there is no dot product.
    liked
        Posts to leave out.
    """

    user_ids: Int64s
    values: Float32s
    affinities: tuple[Float32s, ...]
    factors: Float32s
    liked: Likes


@dataclass(frozen=True)
class Lists:
    """Lists of one chunk of users.

    Attributes
    ----------
    user_ids
        (users,) int64.
    posts
        (users, n) int32 places of posts, best first; -1 pads a short list.
    scores
        (users, n) float32 raw scores; NaN pads.
    """

    user_ids: Int64s
    posts: Int32s
    scores: Float32s


def score_chunk(side: PostSide, users: UserRows, n: int) -> Lists:
    """Score some users with all posts and pick each user's n best."""
    standing, affine = _standing(side, users), _affinity_rows(side, users)
    # Users who stand alike read the same rows: near ones, if one follows the other.
    order = np.lexsort(standing.T)
    standing, affine = standing[order], affine[order]
    factors = np.ascontiguousarray(users.factors[order])
    rows = aligned(standing.shape, np.uint8)
    steps = aligned((len(order), WIDTH), np.int32)
    worth, table = (aligned((count, WIDTH), np.int32) for count in side.work_rows)
    scores = aligned((STRIPS_AT_ONCE, len(order), WIDTH), np.float32)
    best = np.empty((STRIPS_AT_ONCE, len(order)), dtype=np.uint32)
    shelves = Shelves.empty(len(order), n)
    for strip, groups in enumerate(side.groups):
        if strip == 0 or (groups != side.groups[strip - 1]).any():
            rows[...] = standing
            places = side.affinity_places.view(np.int32)
            _add_places(places, affine, _said_of(users, groups), rows.view(np.int32))
        steps.fill(0)
        for number, turn in enumerate(side.turns):
            turn.fill(side.bins[strip], worth, table)
            _add_strip(table, rows, number * BUNDLES_AT_ONCE, turn.bundles, steps)
        at = strip % STRIPS_AT_ONCE
        _finish(steps, side.step, side.offset, factors, side.factors[strip], scores[at], best[at])
        if at == STRIPS_AT_ONCE - 1 or strip == len(side.posts) - 1:
            shelves.offer(scores, best, order, side.posts[strip - at : strip + 1], users.liked)
    return Lists(users.user_ids, *shelves.lists())


def bytes_per_chunk(side: PostSide) -> int:
    """Say how much memory a chunk takes however few its users are."""
    return 4 * WIDTH * sum(side.work_rows)


def bytes_per_chunk_user(side: PostSide, groups_and_features: int, n: int) -> int:
    """Say how much memory one more user takes in a chunk, the finished list in two forms included."""
    standing = 4 * int(side.affinity_places.shape[1])
    scores = 4 * STRIPS_AT_ONCE * (WIDTH + 1) + 8 * int(side.factors.shape[1])
    return standing + 16 * groups_and_features + scores + bytes_per_user(n)


def _standing(side: PostSide, users: UserRows) -> Bytes:
    """Give the bundles' row numbers as far as the user columns say: (users, bundles)."""
    rows = np.zeros((len(users.values), side.affinity_places.shape[1]), dtype=np.uint8)
    for column, (bins, places) in enumerate(zip(side.user_bins, side.user_places, strict=True)):
        rows += places[bins.find(users.values[:, column])]
    return rows


def _affinity_rows(side: PostSide, users: UserRows) -> Int32s:
    """Find each affinity value's row of `affinity_places`: (users, groups x features of each grouping)."""
    found, before = [np.empty((len(users.values), 0), dtype=np.int32)], 0
    for columns, values in zip(side.affinity_bins, users.affinities, strict=True):
        rows = np.empty(values.shape, dtype=np.int32)
        for feature, bins in enumerate(columns):
            rows[:, :, feature] = before + bins.find(values[:, :, feature])
            before += len(bins.ends) + 1
        found.append(rows.reshape(len(rows), -1))
    return np.concatenate(found, axis=1)


def _said_of(users: UserRows, groups: Int32s) -> Int64s:
    """Tell which columns of `_affinity_rows` speak of some groups, one group a grouping."""
    said, before = [np.empty(0, dtype=np.int64)], 0
    for values, group in zip(users.affinities, groups, strict=True):
        said.append(before + int(group) * values.shape[2] + np.arange(values.shape[2]))
        before += values.shape[1] * values.shape[2]
    return np.concatenate(said)


@compiled
def _add_places(places: Int32s, affine: Int32s, said: Int64s, rows: Int32s) -> None:
    """Add to each user's rows what the affinities with some groups say.

    A number holds the bytes of four bundles. As a bundle's row number fits a
    byte, no byte is carried over into the next.
    """
    runs, columns = rows.shape[1] // WIDTH, len(said)
    index = np.empty(columns, dtype=np.uint32)
    for user in range(len(rows)):
        for run in range(runs):
            for i in range(columns):
                index[i] = affine[user, said[i]] * runs + run
            add_rows(places, 0, index, 0, columns, rows, user * runs + run)


@compiled
def _add_strip(table: Int32s, rows: Bytes, first: int, bundles: int, steps: Int32s) -> None:
    """Add what some bundles, from the first on, are worth for each user with a strip's posts."""
    width = rows.shape[1]
    for user in range(len(rows)):
        add_rows(table, STRIDE, rows, user * width + first, bundles, steps, user)


@compiled
def _finish(
    steps: Int32s,
    step: float,
    offset: float,
    user_factors: Float32s,
    post_factors: Float32s,
    scores: Float32s,
    best: Masks,
) -> None:
    """Turn steps into scores with their dot products, (users, 32), and find the best of the 32."""
    bits = scores.view(np.uint32)
    dots = np.zeros((1, WIDTH), dtype=np.float32)
    factors = user_factors.shape[1]
    for user in range(len(steps)):
        dot_rows(user_factors, user * factors, post_factors, factors, dots)
        for lane in range(WIDTH):
            # Adding zero turns -0.0 into 0.0, its equal.
            scores[user, lane] = np.float32(steps[user, lane] * step + offset + dots[0, lane]) + np.float32(0)
        most = np.uint32(0)
        for lane in range(WIDTH):
            most = max(most, in_order(bits[user, lane]))
        best[user] = most
