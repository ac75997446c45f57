"""The protocol `full catalogue with likes left out`: what users would have been shown, and what they liked.

Every post that existed when the holdout began is ranked for a user, less those
they had liked by then, by the same scorer that makes the night's lists. A hit
is a post that the user liked in the holdout. Judged are users with such a like.
A liked post that the user happened not to be shown counts as a miss, so the
figures are far lower than by `viewed-only`, and say more about a list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from batch.arrays import Int32s
from batch.features.factors import Factors
from batch.features.tables import FeatureTables
from batch.judging.bootstrap import Measured, measure
from batch.judging.metrics import DEPTH, KS, Flags, Floats, Places, RankedLists, by_list, expected_of_random
from batch.learning.model import Model
from batch.loading.examples import Examples
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.load import Network
from batch.scoring.score import lists_of_all
from contract import columns

PROTOCOL = "full catalogue with likes left out"

MOST_USERS = 2_000
"""Judged in a run, drawn at random where there are more, so that the night stays short."""

BUDGET_MIB = 256


@dataclass(frozen=True)
class Question:
    """Who is asked about, what they may be shown and what they will like.

    Attributes
    ----------
    users
        (users,) places, ascending.
    likes
        What each of them had liked before.
    later
        Places of posts that did not exist yet.
    answers
        (users, in order) x (posts) pairs as user row * posts + post, ascending: likes of the holdout.
    popularity
        (posts,) likes up to the holdout's start.
    """

    users: Places
    likes: Likes
    later: Places
    answers: Places
    popularity: Floats

    @property
    def existing(self) -> Flags:
        """(posts,) whether the post may be shown."""
        there = np.ones(self.popularity.size, dtype=bool)
        there[self.later] = False
        return there

    @property
    def relevant(self) -> Places:
        """(users,) how many answers each user has."""
        return np.bincount(self.answers // self.popularity.size, minlength=self.users.size)

    @property
    def candidates(self) -> Places:
        """(users,) how many posts may be shown to each user."""
        there = self.existing
        liked = np.bincount(self.likes.users, weights=there[self.likes.posts], minlength=self.users.size)
        return int(there.sum()) - liked.astype(np.int64)


def full_catalogue(
    model: Model, network: Network, history: History, holdout: Examples, threads: int, most_users: int
) -> tuple[int, dict[str, Measured]]:
    """Judge `model`, `random` and `popularity`; return how many users were judged, and the three.

    Parameters
    ----------
    history
        As of the holdout's start.
    holdout
        Examples of the holdout; the likes without a view count too.
    """
    asked = ask(network, history, holdout, most_users, model.seed)
    empty = np.full((asked.users.size, DEPTH), -1, dtype=np.int32)
    shown = _lists(model, network, history, asked, threads) if asked.users.size else empty
    found = {
        "model": measured(asked, shown, model.seed),
        "random": _random(asked, model.seed),
        "popularity": measured(asked, most_popular(asked), model.seed),
    }
    return int(asked.users.size), found


def ask(network: Network, history: History, holdout: Examples, most_users: int, seed: int) -> Question:
    """Choose the users to judge, and collect what they liked before and after."""
    posts = len(network.posts)
    later = (network.posts[columns.CREATED_AT] > pd.Timestamp(history.cutoff)).to_numpy()
    before = history.likes.users.astype(np.int64) * posts + history.likes.posts
    liked = holdout.where(holdout.liked & ~later[holdout.posts])
    pairs = np.setdiff1d(liked.users * posts + liked.posts, before)
    users = np.unique(pairs // posts)
    if users.size > most_users:
        users = np.sort(np.random.default_rng(seed).choice(users, most_users, replace=False))
    pairs = pairs[np.isin(pairs // posts, users)]
    answers = np.searchsorted(users, pairs // posts) * posts + pairs % posts
    popularity = history.post_counts["likes"].to_numpy(np.float64)
    return Question(users, likes_of(history.likes, users), np.flatnonzero(later), answers, popularity)


def likes_of(likes: Likes, users: Places) -> Likes:
    """Return the likes of some users, in their order."""
    taken = [likes.of(int(user)) for user in users]
    starts = np.concatenate([[0], np.cumsum([each.size for each in taken])]).astype(np.int64)
    return Likes(starts, np.concatenate([np.empty(0, np.int32), *taken]).astype(np.int32))


def _lists(model: Model, network: Network, history: History, asked: Question, threads: int) -> Int32s:
    """Return (users, DEPTH) places of posts, best first, -1 where there are no more."""
    tables, factors = model.tables(network, history), model.factors(network, history)
    chunks = lists_of_all(
        model.booster,
        _of_users(tables, asked.users),
        None if factors is None else Factors(factors.users[asked.users], factors.posts),
        asked.likes,
        asked.later,
        DEPTH,
        users=asked.users.size,
        budget_mib=BUDGET_MIB,
        threads=threads,
    )
    return np.concatenate([lists.posts for _, lists in chunks])


def _of_users(tables: FeatureTables, users: Places) -> FeatureTables:
    return replace(
        tables,
        user_ids=tables.user_ids[users],
        user_values=tables.user_values[users],
        affinities=tuple(replace(each, values=each.values[users]) for each in tables.affinities),
    )


def most_popular(asked: Question) -> Int32s:
    """Return for each user the posts with most likes, less those they liked; as `_lists` does."""
    order = np.lexsort((np.arange(asked.popularity.size), -asked.popularity))
    order = order[asked.existing[order]]
    lists = np.full((asked.users.size, DEPTH), -1, dtype=np.int32)
    for user in range(asked.users.size):
        liked = asked.likes.of(user)
        head = order[: DEPTH + liked.size]
        fresh = head[~np.isin(head, liked)][:DEPTH]
        lists[user, : fresh.size] = fresh
    return lists


def measured(asked: Question, lists: Int32s, seed: int) -> Measured:
    """Judge lists of posts: ranking, coverage, popularity lift, and whether they are full."""
    shown = lists >= 0
    pairs = np.arange(asked.users.size)[:, None] * asked.popularity.size + lists
    hits = shown & np.isin(pairs, asked.answers)
    found = by_list(RankedLists(hits, asked.relevant, asked.candidates))
    likes = np.where(shown, asked.popularity[lists], 0.0)
    for k in KS:
        found[f"full_list_at_{k}"] = np.asarray(shown[:, :k].all(axis=1), np.float64)
        mean = likes[:, :k].sum(axis=1) / np.maximum(shown[:, :k].sum(axis=1), 1)
        found[f"popularity_lift_at_{k}"] = np.where(shown[:, 0], mean / _mean_popularity(asked), np.nan)
    result = measure(found, asked.users, None, seed)
    there = max(int(asked.existing.sum()), 1)
    for k in KS:
        result.values[f"coverage_at_{k}"] = np.unique(lists[:, :k][shown[:, :k]]).size / there
    return result


def _random(asked: Question, seed: int) -> Measured:
    """Return what random lists are expected to reach; exact, so no lists are drawn."""
    candidates, there = asked.candidates, asked.existing
    found = expected_of_random(asked.relevant, candidates)
    weights = (asked.popularity * there)[asked.likes.posts]
    rest = (asked.popularity * there).sum() - np.bincount(asked.likes.users, weights, asked.users.size)
    lift = rest / np.maximum(candidates, 1) / _mean_popularity(asked)
    for k in KS:
        found[f"full_list_at_{k}"] = (candidates >= k).astype(np.float64)
        found[f"popularity_lift_at_{k}"] = np.where(candidates > 0, lift, np.nan)
    result = measure(found, asked.users, None, seed)
    for k in KS:
        result.values[f"coverage_at_{k}"] = _expected_coverage(asked, k)
    return result


def _expected_coverage(asked: Question, k: int) -> float:
    """Return the expected share of posts in at least one random list of k: 1 - the product of the misses."""
    share = np.minimum(k / np.maximum(asked.candidates, 1), 1 - 1e-12)
    missed = np.log1p(-share)
    posts = asked.popularity.size
    of_those_who_liked = np.bincount(asked.likes.posts, missed[asked.likes.users], minlength=posts)
    covered = 1 - np.exp(missed.sum() - of_those_who_liked)
    return float(covered[asked.existing].mean()) if asked.existing.any() else float("nan")


def _mean_popularity(asked: Question) -> float:
    """Return the mean likes of a post that may be shown; NaN where none has any."""
    total = float(asked.popularity[asked.existing].sum())
    return total / int(asked.existing.sum()) if total > 0 else float("nan")
