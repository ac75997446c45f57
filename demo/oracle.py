"""The best HitRate@5 that anyone could reach on a simulated network, beside what the runs reached.

Two oracles know every true like probability. One also knows at which hour
each post will be seen; the other takes an average hour, as a list made the
night before must. demo/oracle.py judges the lists that are live.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import redis
import sqlalchemy as sa
from scipy.special import expit

from batch.loading.copy import copy_out
from contract.codec import decode_list
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import NightSettings
from demo.ground_truth import Tastes, draw_tastes
from demo.network import NetworkError, transaction
from demo.population import FIRST_POST_ID, FIRST_USER_ID, Floats, Ints

SLICE_ROWS = 5_000_000
"""About how many interactions belong to the users judged at a time; it bounds the memory."""

LATEST_RUNS = """
    SELECT DISTINCT ON (variant) run_id, state, manifest -> 'metrics' AS metrics FROM recs.runs
    WHERE manifest #>> '{metrics,holdout,from}' IS NOT NULL
    ORDER BY variant, (state = 'live') DESC, started_at DESC
"""
LAST_VIEWS = """
    SELECT percentile_disc(:share) WITHIN GROUP (ORDER BY happened_at), max(happened_at)
    FROM recs.interactions WHERE action = 'view'
"""


@dataclass(frozen=True)
class Window:
    """The views with start < happened_at <= until, and the runs judged by them."""

    start: datetime
    until: datetime
    runs: list[sa.Row[Any]]


def report(database_url: str, client: redis.Redis | None = None, keys: Keys | None = None) -> str:
    """Return a table for each holdout window: oracles, ceiling, and the runs judged on it.

    That is the live run of each variant, or its latest where none is live. Given
    a Redis with lists, a last table tells what these are worth.

    Raises
    ------
    NetworkError
        If the network in the database is not a simulated one.
    """
    with transaction(database_url) as connection:
        if connection.scalar(sa.text("SELECT to_regclass('public.simulation')")) is None:
            raise NetworkError(
                "the network in this database is not a simulated one, so nobody knows its true like "
                "probabilities; run `python -m demo simulate` first"
            )
        made = connection.execute(sa.text("SELECT seed, users, posts, interactions FROM simulation")).one()
        tastes = draw_tastes(made.seed, made.users, made.posts)
        title = (
            f"Simulated network: {made.users:,} users, {made.posts:,} posts, "
            f"{made.interactions:,} interactions, seed {made.seed}"
        )
        slices = -(-made.interactions // SLICE_ROWS)
        tables = [
            _table(window, judge(connection, tastes, window.start, window.until, slices))
            for window in holdout_windows(connection)
        ]
        worth = None if client is None else worth_of_lists(connection, tastes, client, keys or Keys())
        tables += [] if worth is None else [_lists(worth)]
    return "\n\n".join([title, *tables])


def holdout_windows(connection: sa.Connection) -> list[Window]:
    """Return the holdout windows of the runs, or the last views where no run has one."""
    windows: dict[tuple[str, str], list[sa.Row[Any]]] = {}
    if connection.scalar(sa.text("SELECT to_regclass('recs.runs')")) is not None:
        for run in connection.execute(sa.text(LATEST_RUNS)):
            holdout = run.metrics["holdout"]
            windows.setdefault((holdout["from"], holdout["until"]), []).append(run)
    if windows:
        return [
            Window(datetime.fromisoformat(start), datetime.fromisoformat(until), runs)
            for (start, until), runs in windows.items()
        ]
    share = 1 - NightSettings.holdout_fraction
    start, until = connection.execute(sa.text(LAST_VIEWS), {"share": share}).one()
    return [Window(start, until, [])]


def _table(window: Window, verdict: Verdict | None) -> str:
    title = f"Holdout {_utc(window.start)} to {_utc(window.until)} UTC: "
    if verdict is None:
        return title + "nobody viewed anything"
    users = verdict.users
    lines = [title + f"{users:,} users, {verdict.pairs:,} (user, post) pairs viewed"]
    if not window.runs:
        share = f"{NightSettings.holdout_fraction:.0%}"
        lines.append(f"No run has been evaluated yet, so these are the last {share} of the views.")
    lines += [_note(run, users) for run in window.runs if run.metrics["holdout"]["users"] != users]
    lines += ["", f"{'HitRate@5, viewed-only':<40}{'reached':>9}{'expected':>10}"]
    for run in window.runs[:1]:
        lines += [_line(name, run.metrics[name]["hitrate_at_5"]) for name in ("random", "popularity")]
    for run in window.runs:
        lines.append(_line(f"{run.run_id} ({run.state})", run.metrics["model"]["hitrate_at_5"]))
    best = verdict.night_before[0]
    error = math.sqrt(best * (1 - best) / users)
    return "\n".join(
        [
            *lines,
            _line("best for a list made the night before", *verdict.night_before),
            _line("best that knows the hour of each view", *verdict.knowing_the_hour),
            _line("ceiling: users who liked anything", verdict.ceiling),
            _line("standard error of these figures", error),
        ]
    )


def _lists(worth: Worth) -> str:
    ranked = {"random": worth.random, "popularity": worth.popularity} | worth.runs
    lines = [f"{name:<40}{value:>9.4f}{value / worth.best:>10.1%}" for name, value in ranked.items()]
    return "\n".join(
        [
            f"First five of the lists that are live: {worth.users:,} users, all posts not liked so far",
            "",
            f"{'HitRate@5, full catalogue':<40}{'expected':>9}{'of best':>10}",
            *lines,
            f"{'best that knows every probability':<40}{worth.best:>9.4f}",
        ]
    )


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _note(run: sa.Row[Any], users: int) -> str:
    return f"{run.run_id} was judged on {run.metrics['holdout']['users']:,} users, the oracles on {users:,}."


def _line(label: str, reached: float | None, expected: float | None = None) -> str:
    figures = [f"{'-' if reached is None else format(reached, '.4f'):>9}"]
    if expected is not None:
        figures.append(f"{expected:>10.4f}")
    return f"{label:<40}{''.join(figures)}"


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
    views = pd.concat(copy_out(connection, VIEWS, bounds)).astype(np.int64)
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
