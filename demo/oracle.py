"""The best possible HitRate@5 on a simulated network, and what the runs reach.

The viewed-only protocol ranks what each user viewed in a holdout window. Two
oracles rank by the true like probabilities: one knows the hour of each view,
the other takes an average hour, as a list made the night before must. The
full-catalogue protocol rates the first five posts of the live lists. People and posts that came later, in the
network's app, have no true probability and are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import redis
import sqlalchemy as sa
from scipy.special import expit

from batch.loading.copy import copy_out
from batch.loading.schema import cast_id
from contract.codec import decode_list
from contract.columns import POST_ID, USER_ID
from contract.experiment import VARIANTS
from contract.ids import WHOLE_NUMBERS, Id, IdKind
from contract.keys import Keys
from contract.settings import NightSettings
from demo.ground_truth import GroundTruth, draw_ground_truth
from demo.ids import SimulatedIds, make_ids
from demo.network import NetworkError, id_type, transaction
from demo.population import Floats, Ints

K = 5

SLICE_ROWS = 5_000_000
"""Approximate number of interactions of the users read at once; it bounds memory."""

MAX_USERS = 2_000
"""Users whose live lists are rated, spread evenly over all; it bounds time and memory."""

LATEST_RUNS = """
    SELECT DISTINCT ON (variant) run_id, state, manifest -> 'metrics' AS metrics FROM recs.runs
    WHERE manifest #>> '{metrics,holdout,from}' IS NOT NULL
    ORDER BY variant, (state = 'live') DESC, started_at DESC
"""
LAST_VIEWS = """
    SELECT percentile_disc(:share) WITHIN GROUP (ORDER BY happened_at), max(happened_at)
    FROM recs.interactions WHERE action = 'view'
"""
VIEWS = """
    SELECT user_id, post_id, extract(hour FROM happened_at AT TIME ZONE 'UTC')::int AS hour,
        (coalesce(next_action, '') = 'like')::int AS liked
    FROM (
        SELECT user_id, post_id, action, happened_at, lead(action) OVER (
            PARTITION BY user_id, post_id ORDER BY happened_at, action = 'like'
        ) AS next_action
        FROM recs.interactions
        WHERE happened_at > %(start)s AND happened_at <= %(until)s
            AND user_id = ANY(%(users)s::{id_type}[])
    ) AS steps
    WHERE action = 'view'
"""
LIKED = """
    SELECT {user_id}, post_id FROM recs.interactions
    WHERE action = 'like' AND user_id = ANY(CAST(:users AS {id_type}[]))
"""
LIKES = sa.text("SELECT post_id, count(*) FROM recs.interactions WHERE action = 'like' GROUP BY post_id")


@dataclass(frozen=True)
class Window:
    """The views with start < happened_at <= until, and the runs evaluated on them."""

    start: datetime
    until: datetime
    runs: list[sa.Row[Any]]


@dataclass(frozen=True)
class SimulatedNetwork:
    """The true like probabilities of a network, and the ids of its users and posts."""

    truth: GroundTruth
    ids: SimulatedIds

    @classmethod
    def draw(
        cls, ids: IdKind, users: int, posts: int, seed: int, topic_taste: float = 0.0
    ) -> SimulatedNetwork:
        """Draw the network that `simulate` writes."""
        return cls(draw_ground_truth(seed, users, posts, topic_taste), make_ids(ids, users, posts, seed))

    def with_types(self, query: str) -> str:
        """Fill in the SQL type of user ids, and the column as it is read."""
        users = self.ids.kinds.users
        return query.format(id_type=id_type(users), user_id=cast_id(USER_ID, users))


@dataclass(frozen=True)
class Pairs:
    """The distinct (user, post) pairs of a window; users and posts are row indices.

    Attributes
    ----------
    liked
        Whether any of the pair's views ended in a like.
    like_probability
        True probability that one of them does, at the hours of the views.
    logit
        True logit of a like at an average hour.
    """

    users: Ints
    posts: Ints
    liked: npt.NDArray[np.bool_]
    like_probability: Floats
    logit: Floats


class Hits(NamedTuple):
    """Number or share of users with a like among their first k: as observed, and by true probability."""

    observed: float
    expected: float


@dataclass(frozen=True)
class OracleResult:
    """HitRate@5 of both oracles on a window; `ceiling` is the share of users who liked anything."""

    users: int
    pairs: int
    night_before: Hits
    knowing_the_hour: Hits
    ceiling: float


@dataclass(frozen=True)
class ListsResult:
    """Mean probability of a like among the first five posts, by ranking, over `users` users.

    `runs` are the live ones; `best` ranks by the true probability.
    """

    users: int
    random: float
    popularity: float
    runs: dict[str, float]
    best: float


def build_report(database_url: str, client: redis.Redis | None = None, keys: Keys | None = None) -> str:
    """Return a table for each holdout window: oracles, ceiling, and the runs evaluated on it.

    The runs are each variant's live run, or its latest if none is live. With a
    Redis that holds lists, a last table rates these.

    Raises
    ------
    NetworkError
        If the network in the database is not a simulated one.
    """
    with transaction(database_url) as connection:
        if connection.scalar(sa.text("SELECT to_regclass('public.simulation')")) is None:
            raise NetworkError(
                "the network in this database is not a simulated one, so its true like probabilities are "
                "unknown; run `python -m demo simulate` first"
            )
        made = connection.execute(sa.text("SELECT * FROM simulation")).one()
        kind = IdKind(getattr(made, "ids", IdKind.NUMBER))
        topic_taste = getattr(made, "topic_taste", 0.0)
        simulated = SimulatedNetwork.draw(kind, made.users, made.posts, made.seed, topic_taste)
        title = (
            f"Simulated network: {made.users:,} users, {made.posts:,} posts, "
            f"{made.interactions:,} interactions, seed {made.seed}"
        )
        slices = -(-made.interactions // SLICE_ROWS)
        tables = [
            _format_window(window, evaluate_oracles(connection, simulated, window, slices))
            for window in read_holdout_windows(connection)
        ]
        lists = None if client is None else evaluate_lists(connection, simulated, client, keys or Keys())
        tables += [] if lists is None else [_format_lists(lists)]
    return "\n\n".join([title, *tables])


def read_holdout_windows(connection: sa.Connection) -> list[Window]:
    """Return the holdout windows of the runs, or one of the last views if no run has been evaluated."""
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


def evaluate_oracles(
    connection: sa.Connection, simulated: SimulatedNetwork, window: Window, slices: int = 1
) -> OracleResult | None:
    """Evaluate both oracles on a window, in slices of users to bound memory; None if it has no views."""
    edges = np.linspace(0, len(simulated.ids.users), slices + 1).astype(np.int64)
    users = count = liking = 0
    night_before, knowing_the_hour = np.zeros(2), np.zeros(2)
    for start, stop in pairwise(edges):
        pairs = read_pairs(connection, simulated, window, (int(start), int(stop)))
        users += len(np.unique(pairs.users))
        count += len(pairs.users)
        liking += len(np.unique(pairs.users[pairs.liked]))
        night_before += count_hits(pairs, pairs.logit)
        knowing_the_hour += count_hits(pairs, pairs.like_probability)
    if users == 0:
        return None
    return OracleResult(
        users=users,
        pairs=count,
        night_before=Hits(*(night_before / users).tolist()),
        knowing_the_hour=Hits(*(knowing_the_hour / users).tolist()),
        ceiling=liking / users,
    )


def read_pairs(
    connection: sa.Connection, simulated: SimulatedNetwork, window: Window, user_rows: tuple[int, int]
) -> Pairs:
    """Read the pairs of a window with their true probabilities.

    Parameters
    ----------
    user_rows
        Row index of the first user, and of the first user not read.
    """
    truth, ids = simulated.truth, simulated.ids
    asked = list(ids.users[slice(*user_rows)])
    parameters = {"start": window.start, "until": window.until, "users": asked}
    texts = () if ids.kinds == WHOLE_NUMBERS else (USER_ID, POST_ID)
    views = pd.concat(copy_out(connection, simulated.with_types(VIEWS), parameters, texts))
    views = views[views["post_id"].isin(ids.post_rows().keys())]
    users: Any = views["user_id"].map(ids.user_rows()).to_numpy(np.int64)
    posts: Any = views["post_id"].map(ids.post_rows()).to_numpy(np.int64)
    probabilities = truth.probabilities(users, posts, views["hour"].to_numpy(np.int64))
    size = len(truth.posts.created)
    pairs, pair_index = np.unique(users * size + posts, return_inverse=True)
    log_miss = np.bincount(pair_index, weights=np.log1p(-probabilities), minlength=len(pairs))
    users, posts = pairs // size, pairs % size
    return Pairs(
        users=users,
        posts=posts,
        liked=np.bincount(pair_index, weights=views["liked"].to_numpy(np.int64), minlength=len(pairs)) > 0,
        like_probability=-np.expm1(log_miss),
        logit=truth.logits(users, posts),
    )


def count_hits(pairs: Pairs, scores: Floats, k: int = K) -> Hits:
    """Count the users with a like among their k pairs of the highest score; ties by post."""
    order = np.lexsort((pairs.posts, -scores, pairs.users))
    _, first, user = np.unique(pairs.users[order], return_index=True, return_inverse=True)
    in_first_k = np.arange(len(order)) - first[user] < k
    chosen, user = order[in_first_k], user[in_first_k]
    hits = np.bincount(user, weights=pairs.liked[chosen], minlength=len(first)) > 0
    log_miss = np.bincount(user, weights=np.log1p(-pairs.like_probability[chosen]), minlength=len(first))
    return Hits(float(hits.sum()), float(-np.expm1(log_miss).sum()))


def evaluate_lists(
    connection: sa.Connection, simulated: SimulatedNetwork, client: redis.Redis, keys: Keys
) -> ListsResult | None:
    """Rate the lists of users who have one of every live run; None if there are no such users.

    Raises
    ------
    NetworkError
        The lists are of another network.
    """
    truth, size = simulated.truth, len(simulated.ids.users)
    users = np.unique(np.linspace(0, size - 1, min(size, MAX_USERS)).astype(np.int64))
    live = [str(run) for run in client.mget([keys.live(variant) for variant in VARIANTS]) if run]
    post_rows = simulated.ids.post_rows()
    later = _read_later_posts(connection, simulated)
    keys_of_runs = {run: [keys.user(run, simulated.ids.users[user]) for user in users] for run in live}
    try:
        lists = {run: _read_lists(client, of_run, post_rows, later) for run, of_run in keys_of_runs.items()}
    except KeyError:
        raise NetworkError(
            "the live lists hold posts that are not in the simulated network: they are of another network; "
            "run the night first: `python -m batch run`"
        ) from None
    has_lists = np.all([posts[:, 0] >= 0 for posts in lists.values()], axis=0)
    if not live or not has_lists.any():
        return None
    users = users[has_lists]
    posts = np.arange(len(truth.posts.created))
    logits = truth.logits(np.repeat(users, posts.size), np.tile(posts, users.size))
    logits = logits.reshape(users.size, posts.size)
    liked, likes = _read_likes(connection, simulated, users)
    random = np.random.default_rng(0).random(logits.shape)
    return ListsResult(
        users=users.size,
        random=_mean_hit_probability(logits, _rank_not_liked(random, liked)),
        popularity=_mean_hit_probability(logits, _rank_not_liked(np.tile(likes, (users.size, 1)), liked)),
        runs={run: _mean_hit_probability(logits, posts[has_lists]) for run, posts in lists.items()},
        best=_mean_hit_probability(logits, _rank_not_liked(logits, liked)),
    )


def _read_later_posts(connection: sa.Connection, simulated: SimulatedNetwork) -> set[Id]:
    """Return the posts that came after the simulation."""
    post_id = cast_id(POST_ID, simulated.ids.kinds.posts)
    found = connection.scalars(sa.text(f"SELECT {post_id} FROM recs.posts"))
    return set(found) - simulated.ids.post_rows().keys()


def _read_lists(client: redis.Redis, keys: list[str], post_rows: dict[Id, int], later: set[Id]) -> Ints:
    """Return the (users, K) post rows of the lists under some keys, without later posts, padded with -1.

    Raises
    ------
    KeyError
        A post of a list is not in the network.
    """
    lists = np.full((len(keys), K), -1)
    for row, value in enumerate(client.mget(keys)):
        ranked = [post for post, _ in decode_list(str(value)) if post not in later] if value else []
        posts = [post_rows[post] for post in ranked[:K]]
        lists[row, : len(posts)] = posts
    return lists


def _read_likes(
    connection: sa.Connection, simulated: SimulatedNetwork, users: Ints
) -> tuple[np.ndarray, Floats]:
    """Return (users, posts) whether the user liked the post, and (posts,) likes of all users."""
    ids, post_rows = simulated.ids, simulated.ids.post_rows()
    asked = {ids.users[user]: row for row, user in enumerate(users)}
    liked, likes = np.zeros((users.size, len(ids.posts)), dtype=bool), np.zeros(len(ids.posts))
    likes_of_users = sa.text(simulated.with_types(LIKED))
    for user, post in connection.execute(likes_of_users, {"users": list(asked)}):
        if post in post_rows:
            liked[asked[user], post_rows[post]] = True
    for post, count in connection.execute(LIKES):
        if post in post_rows:
            likes[post_rows[post]] = count
    return liked, likes


def _rank_not_liked(scores: Floats, liked: np.ndarray) -> Ints:
    """Return the (users, K) posts of the highest score that the user has not liked, padded with -1."""
    scores = np.where(liked, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.where(np.take_along_axis(scores, order, axis=1) > -np.inf, order, -1)


def _mean_hit_probability(logits: Floats, lists: Ints) -> float:
    """Return the mean over users of the probability of a like among the posts of their list."""
    misses = np.where(lists >= 0, expit(-np.take_along_axis(logits, lists, axis=1)), 1.0)
    return float(1 - misses.prod(axis=1).mean())


def _format_window(window: Window, result: OracleResult | None) -> str:
    title = f"Holdout {_format_time(window.start)} to {_format_time(window.until)} UTC: "
    if result is None:
        return title + "no views"
    users = result.users
    lines = [title + f"{users:,} users, {result.pairs:,} (user, post) pairs viewed"]
    if not window.runs:
        share = f"{NightSettings.holdout_fraction:.0%}"
        lines.append(f"No run has been evaluated yet, so these are the last {share} of the views.")
    lines += [
        f"{run.run_id} was evaluated on {run.metrics['holdout']['users']:,} users, the oracles on {users:,}."
        for run in window.runs
        if run.metrics["holdout"]["users"] != users
    ]
    lines += ["", f"{'HitRate@5, viewed-only':<40}{'reached':>9}{'expected':>10}"]
    for run in window.runs[:1]:
        lines += [_format_row(name, run.metrics[name]["hitrate_at_5"]) for name in ("random", "popularity")]
    for run in window.runs:
        lines.append(_format_row(f"{run.run_id} ({run.state})", run.metrics["model"]["hitrate_at_5"]))
    best = result.night_before.observed
    lines += [
        _format_row("best for a list made the night before", *result.night_before),
        _format_row("best that knows the hour of each view", *result.knowing_the_hour),
        _format_row("ceiling: users who liked anything", result.ceiling),
        _format_row("standard error of these figures", math.sqrt(best * (1 - best) / users)),
    ]
    return "\n".join(lines)


def _format_lists(result: ListsResult) -> str:
    ranked = {"random": result.random, "popularity": result.popularity} | result.runs
    lines = [f"{name:<40}{value:>9.4f}{value / result.best:>10.1%}" for name, value in ranked.items()]
    return "\n".join(
        [
            f"First five posts of the live lists: {result.users:,} users, all posts not liked so far",
            "",
            f"{'HitRate@5, full catalogue':<40}{'expected':>9}{'of best':>10}",
            *lines,
            f"{'best that knows every probability':<40}{result.best:>9.4f}",
        ]
    )


def _format_row(label: str, reached: float | None, expected: float | None = None) -> str:
    figures = [f"{'-' if reached is None else format(reached, '.4f'):>9}"]
    if expected is not None:
        figures.append(f"{expected:>10.4f}")
    return f"{label:<40}{''.join(figures)}"


def _format_time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
