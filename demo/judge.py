"""Judges two oracles that know every true like probability of a simulated network.

The protocol is viewed-only: each user's distinct posts viewed in a window are
ranked, and it is a hit if one of the first five was liked. One oracle knows at
which hours each post was viewed; the other takes an average hour, as a list
made the night before must. With likes independent of each other, ranking by
true probability is the best that can be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa

from batch.loading.stream import stream
from demo.population import FIRST_POST_ID, FIRST_USER_ID, Floats, Ints
from demo.tastes import Tastes

K = 5

VIEWS = """
    SELECT user_id, post_id, extract(hour FROM happened_at AT TIME ZONE 'UTC')::int AS hour,
        (coalesce(next_action, '') = 'like')::int AS liked
    FROM (
        SELECT user_id, post_id, action, happened_at, lead(action) OVER (
            PARTITION BY user_id, post_id ORDER BY happened_at, action = 'like'
        ) AS next_action
        FROM recs.interactions
        WHERE happened_at > %(start)s AND happened_at <= %(until)s
            AND user_id >= %(first_user)s AND user_id < %(end_user)s
    ) AS steps
    WHERE action = 'view'
"""


@dataclass(frozen=True)
class Pairs:
    """The distinct (user, post) pairs of a window, users and posts as places.

    Attributes
    ----------
    liked
        Whether any of the pair's views ended in a like.
    like_probability
        True probability that one of them does, at the hours at which they happened.
    logit
        True logit of a like at an average hour.
    """

    users: Ints
    posts: Ints
    liked: npt.NDArray[np.bool_]
    like_probability: Floats
    logit: Floats


@dataclass(frozen=True)
class Verdict:
    """How the two oracles do on a window.

    `night_before` and `knowing_the_hour` are each the HitRate@5 reached and
    the one to be expected; `ceiling` is the share of users who liked anything.
    """

    users: int
    pairs: int
    night_before: tuple[float, float]
    knowing_the_hour: tuple[float, float]
    ceiling: float


def judge(
    connection: sa.Connection, tastes: Tastes, start: datetime, until: datetime, slices: int = 1
) -> Verdict | None:
    """Judge both oracles on the views with start < happened_at <= until; None if there are none.

    The users are taken in as many slices as asked, to bound the memory.
    """
    edges = np.linspace(0, len(tastes.users.activity), slices + 1).astype(np.int64)
    total = np.zeros(7)
    for first, end in pairwise(edges):
        pairs = pairs_of(connection, tastes, start, until, (int(first), int(end)))
        users, liking = (len(np.unique(who)) for who in (pairs.users, pairs.users[pairs.liked]))
        hits = [*hits_at_k(pairs, pairs.logit), *hits_at_k(pairs, pairs.like_probability)]
        total += np.array([users, len(pairs.users), *hits, liking])
    users, count = int(total[0]), int(total[1])
    if users == 0:
        return None
    night, night_expected, hour, hour_expected, ceiling = (float(share) for share in total[2:] / users)
    return Verdict(users, count, (night, night_expected), (hour, hour_expected), ceiling)


def pairs_of(
    connection: sa.Connection, tastes: Tastes, start: datetime, until: datetime, places: tuple[int, int]
) -> Pairs:
    """Read the views with start < happened_at <= until, and what the oracles know of them.

    Parameters
    ----------
    places
        First user, and the one after the last, as places.
    """
    first, end = (place + FIRST_USER_ID for place in places)
    bounds = {"start": start, "until": until, "first_user": first, "end_user": end}
    views = pd.concat(stream(connection, VIEWS, bounds)).astype(np.int64)
    users = views["user_id"].to_numpy() - FIRST_USER_ID
    posts = views["post_id"].to_numpy() - FIRST_POST_ID
    probabilities = tastes.probabilities(users, posts, views["hour"].to_numpy())
    size = len(tastes.posts.created)
    pairs, pair = np.unique(users * size + posts, return_inverse=True)
    none_likes = np.bincount(pair, weights=np.log1p(-probabilities), minlength=len(pairs))
    users, posts = pairs // size, pairs % size
    return Pairs(
        users=users,
        posts=posts,
        liked=np.bincount(pair, weights=views["liked"], minlength=len(pairs)) > 0,
        like_probability=-np.expm1(none_likes),
        logit=tastes.logits(users, posts),
    )


def hits_at_k(pairs: Pairs, scores: Floats, k: int = K) -> tuple[float, float]:
    """Rank each user's pairs by score, equal scores by post.

    Returns
    -------
    The number of users with a like among their first k, as it turned out, and
    as it was to be expected from the true probabilities.
    """
    order = np.lexsort((pairs.posts, -scores, pairs.users))
    _, first, user = np.unique(pairs.users[order], return_index=True, return_inverse=True)
    shown = np.arange(len(order)) - first[user] < k
    chosen, user = order[shown], user[shown]
    hits = np.bincount(user, weights=pairs.liked[chosen], minlength=len(first)) > 0
    misses = np.bincount(user, weights=np.log1p(-pairs.like_probability[chosen]), minlength=len(first))
    return float(hits.sum()), float(-np.expm1(misses).sum())
