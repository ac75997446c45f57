"""What the lists that are live are worth on a simulated network, by the true like probabilities.

The protocol is full catalogue with likes left out: a list may hold any post but
those the user has liked. It is worth the probability that the user likes one of
its first five posts, each seen once at an average hour. So this needs no views
that happened to follow, unlike the protocol of demo/judge.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import redis
import sqlalchemy as sa
from scipy.special import expit

from contract.codec import decode_list
from contract.experiment import VARIANTS
from contract.keys import Keys
from demo.judge import K
from demo.population import FIRST_POST_ID, FIRST_USER_ID, Floats, Ints
from demo.tastes import Tastes

MOST_USERS = 2_000
"""Judged, spread evenly over all; it bounds time and memory."""

LIKED = sa.text(
    "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like' AND user_id = ANY(:users)"
)
LIKES = sa.text("SELECT post_id, count(*) FROM recs.interactions WHERE action = 'like' GROUP BY post_id")


@dataclass(frozen=True)
class Worth:
    """How many users were judged, and the mean probability of a like among the first five, by who ranks.

    `runs` are the live ones, `best` ranks by the true probability.
    """

    users: int
    random: float
    popularity: float
    runs: dict[str, float]
    best: float


def worth_of_lists(
    connection: sa.Connection, tastes: Tastes, client: redis.Redis, keys: Keys
) -> Worth | None:
    """Judge users who have a list of every live run; None if there are none."""
    size = len(tastes.users.activity)
    users = np.unique(np.linspace(0, size - 1, min(size, MOST_USERS)).astype(np.int64))
    live = [str(run) for run in client.mget([keys.live(variant) for variant in VARIANTS]) if run]
    lists = {run: _stored(client, keys, run, users) for run in live}
    there = np.all([stored[:, 0] >= 0 for stored in lists.values()], axis=0)
    if not live or not there.any():
        return None
    users = users[there]
    posts = np.arange(len(tastes.posts.created))
    every = (np.repeat(users, posts.size), np.tile(posts, users.size))
    logits = tastes.logits(*every).reshape(users.size, posts.size)
    liked, likes = _likes(connection, users, posts.size)
    random = np.random.default_rng(0).random(logits.shape)
    return Worth(
        users=users.size,
        random=_worth(logits, _first(random, liked)),
        popularity=_worth(logits, _first(np.tile(likes, (users.size, 1)), liked)),
        runs={run: _worth(logits, stored[there]) for run, stored in lists.items()},
        best=_worth(logits, _first(logits, liked)),
    )


def _stored(client: redis.Redis, keys: Keys, run: str, users: Ints) -> Ints:
    """Return (users, K) places of the posts in their lists; -1 pads."""
    places = np.full((users.size, K), -1)
    values = client.mget([keys.user(run, user + FIRST_USER_ID) for user in users.tolist()])
    for row, value in enumerate(values):
        posts = [post - FIRST_POST_ID for post, _ in decode_list(str(value))[:K]] if value else []
        places[row, : len(posts)] = posts
    return places


def _likes(connection: sa.Connection, users: Ints, posts: int) -> tuple[np.ndarray, Floats]:
    """Return (users, posts) whether the user liked the post, and (posts,) likes of all users."""
    liked, likes = np.zeros((users.size, posts), dtype=bool), np.zeros(posts)
    for user, post in connection.execute(LIKED, {"users": (users + FIRST_USER_ID).tolist()}):
        liked[np.searchsorted(users, user - FIRST_USER_ID), post - FIRST_POST_ID] = True
    for post, count in connection.execute(LIKES):
        likes[post - FIRST_POST_ID] = count
    return liked, likes


def _first(scores: Floats, liked: np.ndarray) -> Ints:
    """Return (users, K) posts with the highest scores that the user has not liked; -1 pads."""
    scores = np.where(liked, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.where(np.take_along_axis(scores, order, axis=1) > -np.inf, order, -1)


def _worth(logits: Floats, lists: Ints) -> float:
    """Return the mean over users of the probability that one of the posts in the list is liked."""
    misses = np.where(lists >= 0, expit(-np.take_along_axis(logits, lists, axis=1)), 1.0)
    return float(1 - misses.prod(axis=1).mean())
