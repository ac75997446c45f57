"""A model over the full catalogue, compared with random order, popularity and recency popularity.

All four rank the same posts for the same users, so their differences are paired
by user. Recency popularity ranks posts by decayed likes. Its half-life is the
one of `HALF_LIVES` that best ranks the likes between an earlier cutoff and the
cutoff of the case, so no like after the cutoff is used to choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from batch.arrays import Bools, Int32s
from batch.evaluation import MODEL, POPULARITY, PRIMARY_METRIC, RANDOM, RANKERS, RECENCY
from batch.evaluation.bootstrap import BootstrapResult, Difference
from batch.evaluation.catalogue_case import (
    CatalogueCase,
    ScoredLists,
    build_case,
    rank_by_score,
    score_lists,
    score_random,
    summarise,
)
from batch.evaluation.ranking_metrics import DEPTH, round_or_none
from batch.executors.choose import make_executor
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.period_counts import HALF_LIVES
from batch.loading.split import MIN_HOLDOUT_USERS
from batch.training.model import Model
from contract.settings import Settings

MAX_USERS = 2_000
"""Users evaluated in a run, drawn at random if there are more, to limit the duration of a night."""

MAX_USERS_OF_COMMANDS = 20_000
"""The same for `evaluate` and `backtest`."""

MIN_USERS = MIN_HOLDOUT_USERS
"""Users needed to evaluate a model."""

ALL, WARM, COLD = "all", "warm", "cold"


@dataclass(frozen=True)
class HalfLife:
    """The half-life of recency popularity, and what it was chosen on.

    Attributes
    ----------
    since, until
        Chosen by ranking the likes between these times by decayed likes up to `since`.
    users
        Number of users with such a like; 0 means no data: the middle half-life was taken.
    """

    length: timedelta
    since: datetime
    until: datetime
    users: int

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest."""
        return {
            "half_life_days": self.length.total_seconds() / 86_400,
            "chosen_after": self.since.isoformat(),
            "chosen_until": self.until.isoformat(),
            "users": self.users,
        }


@dataclass(frozen=True)
class RankedCase:
    """One cutoff: the users to evaluate, and the lists of every ranker except random order.

    Attributes
    ----------
    lists
        `model`, `popularity` and `recency_popularity` -> (users, DEPTH) rows of posts, padded with -1.
    """

    case: CatalogueCase
    lists: dict[str, Int32s]
    half_life: HalfLife

    def score(self, keep: Bools | None = None) -> dict[str, ScoredLists]:
        """Compute the metrics of the lists of each ranker, of all users or of those to keep (users,)."""
        case, chosen = self.case, slice(None) if keep is None else keep
        if keep is not None:
            case = case.keep_users(keep)
        scored = {name: score_lists(case, lists[chosen]) for name, lists in self.lists.items()}
        return scored | {RANDOM: score_random(case)}


@dataclass(frozen=True)
class CatalogueResult:
    """Metrics over the full catalogue, at one cutoff or pooled over several.

    Attributes
    ----------
    users
        `all`, `warm` and `cold` -> number of distinct users. With several cutoffs
        a user may be cold at one and warm at another.
    lists
        `all`, `warm` and `cold` -> number of (user, cutoff) pairs.
    groups
        `all`, `warm` and `cold` -> ranker -> metrics.
    half_lives
        Of recency popularity at each cutoff.
    protocol
        Of the cases, see `CatalogueCase`.
    """

    users: dict[str, int]
    lists: dict[str, int]
    groups: dict[str, dict[str, BootstrapResult]]
    half_lives: tuple[HalfLife, ...]
    protocol: str

    @property
    def rankers(self) -> dict[str, BootstrapResult]:
        """Of all users: ranker -> metrics."""
        return self.groups[ALL]

    @property
    def insufficient_because(self) -> str:
        """Why the data are too few to evaluate a model; empty if they suffice."""
        users = self.users[ALL]
        if users == 0:
            return "no user liked a post that they had not liked before"
        if users < MIN_USERS:
            return f"only {users} users liked a post that they had not liked before, of {MIN_USERS} needed"
        return ""

    def differences(self) -> dict[str, dict[str, Difference]]:
        """Return `popularity` and `recency_popularity` -> metric -> model minus it, paired by user."""
        model = self.rankers[MODEL]
        return {name: model.minus(self.rankers[name]) for name in (POPULARITY, RECENCY)}

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest; values without a number are None."""
        return {
            "protocol": self.protocol,
            "users": self.users[ALL],
            "lists": self.lists[ALL],
            "judged": not self.insufficient_because,
            "why_not_judged": self.insufficient_because,
            **record_metrics(self.rankers),
            **{
                group: {
                    "users": self.users[group],
                    "lists": self.lists[group],
                    **record_metrics(self.groups[group]),
                }
                for group in (WARM, COLD)
            },
            "differences": {
                name: {metric: [round_or_none(each) for each in bounds] for metric, bounds in metrics.items()}
                for name, metrics in self.differences().items()
            },
            "recency": [half_life.record() for half_life in self.half_lives],
        }


def rank_case(
    model: Model,
    network: Network,
    earlier: History,
    history: History,
    likes_after: Likes,
    *,
    settings: Settings,
    max_users: int,
) -> RankedCase:
    """Rank the posts known at `history.cutoff` by the model, popularity and recency popularity.

    Parameters
    ----------
    earlier
        As of an earlier cutoff; the likes since then choose the half-life of recency popularity.
    likes_after
        As in `build_case`.
    """
    case = build_case(network, history, likes_after, max_users, model.seed)
    column, half_life = choose_half_life(network, earlier, history, max_users, model.seed)
    lists = {
        MODEL: rank_by_model(model, network, history, case, settings),
        POPULARITY: rank_by_score(case, case.popularity),
        RECENCY: rank_by_score(case, history.fading_likes[:, column]),
    }
    return RankedCase(case, lists, half_life)


def choose_half_life(
    network: Network, earlier: History, history: History, max_users: int, seed: int
) -> tuple[int, HalfLife]:
    """Choose the half-life with the highest NDCG@10 on the likes between two cutoffs; return its column."""
    case = build_case(network, earlier, history.likes, max_users, seed)
    half_lives = list(HALF_LIVES.values())
    column = len(half_lives) // 2
    if case.users.size:
        scored = [score_lists(case, rank_by_score(case, each)) for each in earlier.fading_likes.T]
        column = int(np.argmax([each.values[PRIMARY_METRIC].mean() for each in scored]))
    return column, HalfLife(half_lives[column], earlier.cutoff, history.cutoff, int(case.users.size))


def measure_cases(ranked: Sequence[RankedCase], seed: int) -> CatalogueResult:
    """Measure every ranker over all cases together: all users, warm users, cold users."""
    users, lists, groups = {}, {}, {}
    for group in (ALL, WARM, COLD):
        scored = [each.score(_users_of_group(each.case, group)) for each in ranked]
        ids = np.concatenate([each[MODEL].user_ids for each in scored])
        users[group], lists[group] = int(np.unique(ids).size), int(ids.size)
        groups[group] = {name: summarise([each[name] for each in scored], seed) for name in RANKERS}
    half_lives = tuple(each.half_life for each in ranked)
    return CatalogueResult(users, lists, groups, half_lives, ranked[0].case.protocol)


def _users_of_group(case: CatalogueCase, group: str) -> Bools | None:
    if group == ALL:
        return None
    return case.warm if group == WARM else ~case.warm


def record_metrics(rankers: dict[str, BootstrapResult]) -> dict[str, Any]:
    """Return ranker -> metric -> value, and under `intervals` ranker -> metric -> [low, high]."""
    values = {
        name: {metric: round_or_none(value) for metric, value in result.values.items()}
        for name, result in rankers.items()
    }
    intervals = {
        name: {metric: [round_or_none(each) for each in result.interval(metric)] for metric in result.values}
        for name, result in rankers.items()
    }
    return {**values, "intervals": intervals}


def rank_by_model(
    model: Model,
    network: Network,
    history: History,
    case: CatalogueCase,
    settings: Settings,
    *,
    n: int = DEPTH,
) -> Int32s:
    """Return (users, n) rows of posts, best first, padded with -1."""
    if case.users.size == 0:
        return np.full((0, n), -1, dtype=np.int32)
    compiled = model.compile(network, history, case.hidden).of_users(case.users)
    posts, _ = compiled.score(n, make_executor(settings))
    return posts
