"""A model over the full catalogue, beside random order, popularity and recency popularity.

All four rank the same posts for the same users, so their differences are paired
by user. Recency popularity ranks by likes that fade; its half-life is the one
of `HALF_LIVES` that best ranks the likes between an earlier cutoff and the
case's own, so that no like after the cutoff chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from batch.arrays import Bools, Int32s
from batch.evaluation import MODEL, POPULARITY, RANDOM, RANKERS, RECENCY
from batch.evaluation.bootstrap import Difference, Measured
from batch.evaluation.catalogue_case import (
    PROTOCOL,
    CatalogueCase,
    ScoredLists,
    build_case,
    rank_by_score,
    score_lists,
    score_random,
    summarise,
)
from batch.evaluation.ranking_metrics import DEPTH, rounded
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.period_counts import HALF_LIVES
from batch.training.model import Model

MAX_USERS = 2_000
"""Judged in a run, drawn at random where there are more, so that the night stays short."""

MAX_USERS_OF_COMMANDS = 20_000
"""The same for `evaluate` and `backtest`, where nobody waits for the lists."""

MIN_USERS = 30
"""Of fewer, an interval over users says little: a holdout with fewer cannot judge a model."""

BUDGET_MIB = 256

FIRST = "ndcg_at_10"
"""The first figure of a model."""

ALL, WARM, COLD = "all", "warm", "cold"


@dataclass(frozen=True)
class HalfLife:
    """The half-life of recency popularity, and what it was chosen on.

    Attributes
    ----------
    since, until
        The likes between these times were ranked, by the likes up to the first of them.
    users
        How many users had such a like; 0: nothing to choose by, and the middle one was taken.
    """

    length: timedelta
    since: datetime
    until: datetime
    users: int

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
        return {
            "half_life_days": self.length.total_seconds() / 86_400,
            "chosen_after": self.since.isoformat(),
            "chosen_until": self.until.isoformat(),
            "users": self.users,
        }


@dataclass(frozen=True)
class RankedCase:
    """One cutoff: who is judged, and what each ranker but random order makes of it.

    Attributes
    ----------
    lists
        `model`, `popularity` and `recency_popularity` -> (users, DEPTH) rows of posts, -1 pads.
    """

    case: CatalogueCase
    lists: dict[str, Int32s]
    half_life: HalfLife

    def score(self, keep: Bools | None = None) -> dict[str, ScoredLists]:
        """Score the lists of each ranker, of all users or those to keep (users,)."""
        case, chosen = self.case, slice(None) if keep is None else keep
        if keep is not None:
            case = case.keep_users(keep)
        scored = {name: score_lists(case, lists[chosen]) for name, lists in self.lists.items()}
        return scored | {RANDOM: score_random(case)}


@dataclass(frozen=True)
class CatalogueFigures:
    """Figures over the full catalogue, at one cutoff or pooled over several.

    Attributes
    ----------
    users
        `all`, `warm` and `cold` -> distinct users judged. Over several cutoffs
        a user may be cold at one and warm at another.
    lists
        The same three -> (user, cutoff) pairs judged.
    groups
        The same three -> ranker -> what was measured.
    half_lives
        Of recency popularity at each cutoff.
    """

    users: dict[str, int]
    lists: dict[str, int]
    groups: dict[str, dict[str, Measured]]
    half_lives: tuple[HalfLife, ...]

    @property
    def rankers(self) -> dict[str, Measured]:
        """Of all users: ranker -> what was measured."""
        return self.groups[ALL]

    @property
    def cannot_judge(self) -> str:
        """Say why these figures cannot judge a model; empty where they can."""
        users = self.users[ALL]
        if users == 0:
            return "no user liked a post that they had not liked before"
        if users < MIN_USERS:
            return f"only {users} users liked a post that they had not liked before, of {MIN_USERS} needed"
        return ""

    def differences(self) -> dict[str, dict[str, Difference]]:
        """Return `popularity` and `recency_popularity` -> metric -> model less it, paired by user."""
        model = self.rankers[MODEL]
        return {name: model.minus(self.rankers[name]) for name in (POPULARITY, RECENCY)}

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps; None where a figure has no value."""
        return {
            "protocol": PROTOCOL,
            "users": self.users[ALL],
            "lists": self.lists[ALL],
            "judged": not self.cannot_judge,
            "why_not_judged": self.cannot_judge,
            **record_of_rankers(self.rankers),
            **{
                group: {
                    "users": self.users[group],
                    "lists": self.lists[group],
                    **record_of_rankers(self.groups[group]),
                }
                for group in (WARM, COLD)
            },
            "differences": {
                name: {metric: [rounded(number) for number in numbers] for metric, numbers in found.items()}
                for name, found in self.differences().items()
            },
            "recency": [half_life.record() for half_life in self.half_lives],
        }


def rank_case(
    model: Model,
    network: Network,
    earlier: History,
    history: History,
    likes_after: Likes,
    threads: int,
    max_users: int,
) -> RankedCase:
    """Let the model, popularity and recency popularity rank what was known at `history.cutoff`.

    Parameters
    ----------
    earlier
        As of a cutoff before; the likes since then choose the half-life of recency popularity.
    likes_after
        As in `build_case`.
    """
    case = build_case(network, history, likes_after, max_users, model.seed)
    column, half_life = choose_half_life(network, earlier, history, max_users, model.seed)
    lists = {
        MODEL: rank_by_model(model, network, history, case, threads),
        POPULARITY: rank_by_score(case, case.popularity),
        RECENCY: rank_by_score(case, history.fading_likes[:, column]),
    }
    return RankedCase(case, lists, half_life)


def choose_half_life(
    network: Network, earlier: History, history: History, max_users: int, seed: int
) -> tuple[int, HalfLife]:
    """Choose the half-life that best ranks the likes between two cutoffs by NDCG@10; return its column."""
    case = build_case(network, earlier, history.likes, max_users, seed)
    half_lives = list(HALF_LIVES.values())
    column = len(half_lives) // 2
    if case.users.size:
        scored = [score_lists(case, rank_by_score(case, each)) for each in earlier.fading_likes.T]
        column = int(np.argmax([each.values[FIRST].mean() for each in scored]))
    return column, HalfLife(half_lives[column], earlier.cutoff, history.cutoff, int(case.users.size))


def measure_cases(ranked: Sequence[RankedCase], seed: int) -> CatalogueFigures:
    """Measure every ranker over all cases together: all users, the warm ones, the cold ones."""
    users, lists, groups = {}, {}, {}
    for group in (ALL, WARM, COLD):
        keep = [
            None if group == ALL else (each.case.warm if group == WARM else ~each.case.warm)
            for each in ranked
        ]
        scored = [each.score(kept) for each, kept in zip(ranked, keep, strict=True)]
        ids = np.concatenate([each[MODEL].user_ids for each in scored])
        users[group], lists[group] = int(np.unique(ids).size), int(ids.size)
        groups[group] = {name: summarise([each[name] for each in scored], seed) for name in RANKERS}
    return CatalogueFigures(users, lists, groups, tuple(each.half_life for each in ranked))


def record_of_rankers(measured: dict[str, Measured]) -> dict[str, Any]:
    """Return metric -> value by ranker, and under `intervals` metric -> [low, high] by ranker."""
    values = {
        name: {metric: rounded(value) for metric, value in found.values.items()}
        for name, found in measured.items()
    }
    intervals = {
        name: {metric: [rounded(bound) for bound in found.interval(metric)] for metric in found.values}
        for name, found in measured.items()
    }
    return {**values, "intervals": intervals}


def rank_by_model(
    model: Model, network: Network, history: History, case: CatalogueCase, threads: int
) -> Int32s:
    """Return (users, DEPTH) rows of posts, best first, -1 where there are no more."""
    if case.users.size == 0:
        return np.full((0, DEPTH), -1, dtype=np.int32)
    compiled = model.compile(network, history, case.hidden).of_users(case.users)
    chunks = compiled.score(DEPTH, budget_mib=BUDGET_MIB, threads=threads)
    return np.concatenate([lists.posts for _, lists in chunks])
