"""Every feature of every user and post as of a cutoff.

One function, three callers: training calls it with the end of the history,
evaluation with the start of the holdout, the night with now. It sees a
`History`, which holds nothing later than its cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Float32s, Float64s, Int64s
from batch.features.encode import Encoder
from batch.features.population import GroupPopulation, Population, mean_like_rate
from batch.features.tables import Affinity, Feature, FeatureTables, Kind
from batch.loading.cohorts import cohort_log_odds
from batch.loading.history import History
from batch.loading.network import Network
from batch.variants import Variant
from contract import columns

PRIOR_VIEWS_OF_USER = 20.0
PRIOR_VIEWS_OF_POST = 100.0
PRIOR_LIKES_OF_USER = 5.0
PRIOR_LIKES_OF_POST = 20.0
"""How many views or likes at the average rate each estimate starts from."""

NOT_FEATURES = (columns.TEXT, columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT)

ACTIVITY = ("likes", "views", "recent", "days_since", "like_rate")
TRACTION = ("age_days", "text_length", "likes", "recent_likes", "trend", "views", "like_rate", "last_like")
FADING_FEATURES = ("likes_fading_3_days", "likes_fading_30_days", "likes_fading_300_days")
"""Fading likes of a post that are features: on days, months and years."""


@dataclass(frozen=True)
class TextFeatures:
    """Columns of the posts' texts and their (posts, columns) float32 values; perhaps none."""

    features: tuple[Feature, ...]
    values: Float32s

    def beside(self, other: TextFeatures) -> TextFeatures:
        """Put the columns of two descriptions side by side."""
        return TextFeatures(self.features + other.features, np.hstack([self.values, other.values]))

    @classmethod
    def none(cls, posts: int) -> TextFeatures:
        """No columns at all."""
        return cls((), np.empty((posts, 0), dtype=np.float32))


def shrunk_rate(likes: Any, views: Any, mean: float, prior_views: float) -> Any:
    """Return (likes + prior x mean) / (views + prior): an estimate that starts at the mean.

    NaN where there are more likes than views: there the log lacks views, and
    no rate can be told.
    """
    rate = (likes + prior_views * mean) / (views + prior_views)
    return np.where(likes <= views, rate, np.nan)


def profile_columns(network: Network) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns of users and of posts that are features as they stand."""
    return network.users, network.posts.drop(columns=list(NOT_FEATURES))


def build_tables(
    variant: Variant,
    network: Network,
    history: History,
    population: Population,
    users: Encoder,
    posts: Encoder,
    text: TextFeatures,
) -> FeatureTables:
    """Put the features of a variant as of `history.cutoff` into tables.

    Parameters
    ----------
    population
        Of the network that the users belong to; `network` and `history` may have some of its users only.
    """
    cohorts = population.cohorts.encode(network.users) if variant.with_cohorts else None
    user_columns, post_columns = profile_columns(network)
    tables = FeatureTables(
        user_ids=network.users.index.to_numpy(np.int64),
        user_features=users.features + tuple(Feature(f"user_{name}", Kind.USER) for name in ACTIVITY),
        user_values=_beside(users.encode(user_columns), _activity(history, population)),
        post_ids=network.posts.index.to_numpy(np.int64),
        post_features=posts.features
        + tuple(Feature(f"post_{name}", Kind.POST) for name in (*TRACTION, *FADING_FEATURES))
        + text.features,
        post_values=_beside(posts.encode(post_columns), _traction(network, history), text.values),
        affinities=tuple(
            _affinity(history, grouping, population.groups[grouping], cohorts)
            for grouping in variant.groupings
        ),
    )
    return tables.without(variant.without) if variant.without else tables


def _beside(*blocks: Any) -> Float32s:
    return np.ascontiguousarray(np.concatenate(blocks, axis=1), dtype=np.float32)


def _activity(history: History, population: Population) -> Float64s:
    """What the user did: counts as logarithms, days since the last action, shrunk like rate."""
    counts = history.user_counts
    rate = shrunk_rate(counts["likes"], counts["views"], population.like_rate, PRIOR_VIEWS_OF_USER)
    logged = np.log1p(counts[["likes", "views", "recent"]].to_numpy())
    return np.column_stack([logged, counts["days_since"], rate])


def _traction(network: Network, history: History) -> Float64s:
    """How the post does.

    Its age, length, likes in all and in the last seven days, trend (the recent
    part of its likes, shrunk to everybody's), views, shrunk like rate, days
    since its last like, and its fading likes as logarithms. A post made after
    the cutoff has no age yet: 0, as on the day it appears.
    """
    created = network.posts[columns.CREATED_AT]
    age = (pd.Timestamp(history.cutoff) - created).dt.total_seconds() / 86_400
    length = network.posts[columns.TEXT].astype(object).str.len()
    counts = history.post_counts
    likes, recent = counts["likes"].to_numpy(np.float64), counts["recent_likes"].to_numpy(np.float64)
    trend = shrunk_rate(recent, likes, mean_like_rate(recent, likes), PRIOR_LIKES_OF_POST)
    numbers = [
        age.clip(lower=0),
        pd.to_numeric(length),
        np.log1p(likes),
        np.log1p(recent),
        trend,
        np.log1p(counts["views"]),
        post_like_rate(history),
        counts["last_like"],
        *(np.log1p(counts[name]) for name in FADING_FEATURES),
    ]
    return np.column_stack([np.asarray(column, np.float64) for column in numbers])


def post_like_rate(history: History) -> Float64s:
    """Return each post's shrunk like rate, (posts,); NaN where views are not known."""
    likes, views = history.post_counts["likes"].to_numpy(), history.post_counts["views"].to_numpy()
    rate: Float64s = shrunk_rate(likes, views, mean_like_rate(likes, views), PRIOR_VIEWS_OF_POST)
    return rate if (views > 0).any() else np.full_like(rate, np.nan)


def _affinity(
    history: History, grouping: str, population: GroupPopulation, cohorts: Int64s | None
) -> Affinity:
    """Compute the features of (user, group of posts).

    `share`: of the user's likes, the part that falls on the group, shrunk to
    that of all users. `like_rate`: likes per view of the group, shrunk to its
    mean. `people`: log-odds that users with the same attributes like the
    group, relative to all users.
    """
    likes, views = history.likes_of_group[grouping], history.views_of_group[grouping]
    share = (likes + PRIOR_LIKES_OF_USER * population.share) / (
        likes.sum(axis=1, keepdims=True) + PRIOR_LIKES_OF_USER
    )
    rates = [
        shrunk_rate(likes[:, group], views[:, group], mean, PRIOR_VIEWS_OF_USER)
        for group, mean in enumerate(population.like_rate.tolist())
    ]
    values = {"share": share, "like_rate": np.stack(rates, axis=1)}
    if cohorts is not None and population.lift is not None:
        values["people"] = cohort_log_odds(cohorts, population.lift)
    features = tuple(Feature(f"{grouping}_{name}", Kind.AFFINITY) for name in values)
    return Affinity(
        grouping,
        features,
        history.groupings.of_post(grouping),
        np.stack(list(values.values()), axis=2, dtype=np.float32),
    )
