"""Every feature of every user and post as of a cutoff.

One function with three callers: training passes the history up to the end of a
window, evaluation up to the start of the holdout, the night up to now. It sees a
`History` only, which contains nothing after its cutoff.

A user's features also depend on statistics over all users, as of the same cutoff:
the population. A night computes them from all users. A refresh counts the
interactions of some users only, and uses the population of the night.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Float32s, Float64s, Int64s
from batch.features.tables import Affinity, ColumnEncoder, Feature, FeatureColumns, FeatureTables, Kind
from batch.loading.cohorts import Cohorts, cohort_lift, cohort_log_odds, one_hot
from batch.loading.history import History
from batch.loading.network import Network
from batch.variants import Variant
from contract import columns

PRIOR_VIEWS_OF_USER = 20.0
PRIOR_VIEWS_OF_POST = 100.0
PRIOR_LIKES_OF_USER = 5.0
PRIOR_LIKES_OF_POST = 20.0
"""Views or likes at the average rate that are added to each estimate (its prior)."""

NOT_FEATURES = (columns.TEXT, columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT, columns.AUTHOR_ID)

FADING_FEATURES = ("likes_fading_3_days", "likes_fading_30_days", "likes_fading_300_days")
"""Fading likes of a post that are features: on the scale of days, months and years."""


def shrink_rate(likes: Any, views: Any, mean: float, prior_views: float) -> Any:
    """Return (likes + prior x mean) / (views + prior), a like rate shrunk to the mean.

    NaN where there are more likes than views: the log lacks views there, so the
    rate is unknown.
    """
    rate = (likes + prior_views * mean) / (views + prior_views)
    return np.where(likes <= views, rate, np.nan)


def select_profile_columns(network: Network) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns of users and of posts that become features unchanged."""
    return network.users, network.posts.drop(columns=list(NOT_FEATURES), errors="ignore")


def build_tables(
    variant: Variant,
    network: Network,
    history: History,
    population: Population,
    *,
    users: ColumnEncoder,
    posts: ColumnEncoder,
    text: FeatureColumns,
) -> FeatureTables:
    """Build the feature tables of a variant as of `history.cutoff`.

    Parameters
    ----------
    population
        Of the whole network; `network` and `history` may have only some of its users.
    users, posts
        Encode the profile columns of the users and of the posts.
    text
        Features of the posts' texts, one row per post.
    """
    cohorts = population.cohorts.encode(network.users) if variant.with_cohorts else None
    user_columns, post_columns = select_profile_columns(network)
    of_users = users.encode(user_columns).hstack(_activity(history, population)).without(variant.without)
    of_posts = posts.encode(post_columns).hstack(_traction(network, history), text).without(variant.without)
    return FeatureTables(
        user_features=of_users.features,
        user_values=of_users.values,
        post_features=of_posts.features,
        post_values=of_posts.values,
        post_likes=history.post_counts["likes"].to_numpy(np.float64),
        affinities=tuple(
            _affinity(history, grouping, population.groups[grouping], cohorts).without(variant.without)
            for grouping in variant.groupings
        ),
    )


def _activity(history: History, population: Population) -> FeatureColumns:
    """Compute the user's activity: logarithms of counts, days since the last action, shrunk like rate."""
    counts = history.user_counts
    rate = shrink_rate(counts["likes"], counts["views"], population.like_rate, PRIOR_VIEWS_OF_USER)
    activity = {
        "user_likes": np.log1p(counts["likes"]),
        "user_views": np.log1p(counts["views"]),
        "user_recent": np.log1p(counts["recent"]),
        "user_days_since": counts["days_since"],
        "user_like_rate": rate,
    }
    return FeatureColumns.from_columns(Kind.USER, activity)


def _traction(network: Network, history: History) -> FeatureColumns:
    """Compute the traction of each post.

    The trend is the recent share of the post's likes, shrunk to that of all
    posts. Likes, views and fading likes are logarithms. A post created after
    the cutoff has age 0, as on its first day.
    """
    created = network.posts[columns.CREATED_AT]
    age = (pd.Timestamp(history.cutoff) - created).dt.total_seconds() / 86_400
    length = network.posts[columns.TEXT].astype(object).str.len()
    counts = history.post_counts
    likes, recent = counts["likes"].to_numpy(np.float64), counts["recent_likes"].to_numpy(np.float64)
    traction = {
        "post_age_days": age.clip(lower=0),
        "post_text_length": pd.to_numeric(length),
        "post_likes": np.log1p(likes),
        "post_recent_likes": np.log1p(recent),
        "post_trend": shrink_rate(recent, likes, mean_like_rate(recent, likes), PRIOR_LIKES_OF_POST),
        "post_views": np.log1p(counts["views"]),
        "post_like_rate": post_like_rate(history),
        "post_last_like": counts["last_like"],
        **{f"post_{name}": np.log1p(counts[name]) for name in FADING_FEATURES},
    }
    return FeatureColumns.from_columns(Kind.POST, traction)


def post_like_rate(history: History) -> Float64s:
    """Return each post's shrunk like rate, (posts,); NaN if views are unknown."""
    likes, views = history.post_counts["likes"].to_numpy(), history.post_counts["views"].to_numpy()
    rate: Float64s = shrink_rate(likes, views, mean_like_rate(likes, views), PRIOR_VIEWS_OF_POST)
    return rate if (views > 0).any() else np.full_like(rate, np.nan)


def _affinity(
    history: History, grouping: str, population: GroupPopulation, cohorts: Int64s | None
) -> Affinity:
    """Compute the features of (user, group of posts).

    `share`: the group's share of the user's likes, shrunk to its share of all
    likes. `like_rate`: likes per view of the group, shrunk to its mean.
    `people`: log-odds that users with the same attributes like the group,
    relative to all users.
    """
    likes, views = history.likes_of_group[grouping], history.views_of_group[grouping]
    share = (likes + PRIOR_LIKES_OF_USER * population.share) / (
        likes.sum(axis=1, keepdims=True) + PRIOR_LIKES_OF_USER
    )
    rates = [
        shrink_rate(likes[:, group], views[:, group], mean, PRIOR_VIEWS_OF_USER)
        for group, mean in enumerate(population.like_rate.tolist())
    ]
    values = {"share": share, "like_rate": np.stack(rates, axis=1)}
    if cohorts is not None and population.lift is not None:
        values["people"] = cohort_log_odds(cohorts, population.lift)
    return Affinity(
        grouping,
        tuple(Feature(f"{grouping}_{name}", Kind.AFFINITY) for name in values),
        history.groupings.of_post(grouping),
        np.stack(list(values.values()), axis=2, dtype=np.float32),
    )


@dataclass(frozen=True)
class GroupPopulation:
    """Statistics of the groups of posts of one grouping, over all users.

    Attributes
    ----------
    share
        (groups,) share of each group in all likes.
    like_rate
        (groups,) mean like rate.
    lift
        (attribute values, groups) float32 from `cohort_lift`; None for a variant without cohorts.
    """

    share: Float64s
    like_rate: Float64s
    lift: Float32s | None


@dataclass(frozen=True)
class Population:
    """Statistics over all users.

    Attributes
    ----------
    like_rate
        Mean like rate of the users.
    cohorts
        The indices of the values of the users' attributes.
    groups
        Grouping -> statistics of its groups.
    """

    like_rate: float
    cohorts: Cohorts
    groups: dict[str, GroupPopulation]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return named arrays for an .npz file."""
        cohorts = json.dumps(vars(self.cohorts) | {"groupings": [*self.groups]})
        arrays: dict[str, npt.NDArray[Any]] = {
            "population": np.array(cohorts),
            "population_like_rate": np.array(self.like_rate),
        }
        for name, group in self.groups.items():
            named = vars(group).items()
            arrays |= {f"population_{name}_{key}": value for key, value in named if value is not None}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any) -> Population:
        """Read what `to_arrays` returned; other input raises KeyError or ValueError."""
        cohorts = json.loads(str(arrays["population"]))
        groupings = cohorts.pop("groupings")
        groups = {}
        for name in groupings:
            groups[name] = GroupPopulation(
                share=arrays[f"population_{name}_share"],
                like_rate=arrays[f"population_{name}_like_rate"],
                lift=arrays.get(f"population_{name}_lift"),
            )
        return cls(float(arrays["population_like_rate"]), Cohorts(**cohorts), groups)


def compute_population(variant: Variant, network: Network, history: History) -> Population:
    """Compute the statistics of a network as of `history.cutoff`."""
    values = None
    if variant.with_cohorts:
        values = one_hot(network.cohorts.encode(network.users), network.cohorts.count)
    groups = {}
    for name in variant.groupings:
        likes, views = history.likes_of_group[name], history.views_of_group[name]
        likes_of_group = likes.sum(axis=0, dtype=np.float64)
        lift = None
        if values is not None:
            lift = cohort_lift(values, history.likes, history.groupings.of_post(name), likes.shape[1])
        groups[name] = GroupPopulation(
            share=likes_of_group / max(likes_of_group.sum(), 1.0),
            like_rate=np.array(
                [mean_like_rate(likes[:, group], views[:, group]) for group in range(likes.shape[1])]
            ),
            lift=lift,
        )
    counts = history.user_counts
    return Population(mean_like_rate(counts["likes"], counts["views"]), network.cohorts, groups)


def mean_like_rate(likes: Any, views: Any) -> float:
    """Return likes / views, over the rows with views and no more likes than views; 0 without such rows."""
    likes, views = np.asarray(likes, np.float64), np.asarray(views, np.float64)
    usable = (views > 0) & (likes <= views)
    return float(likes[usable].sum() / views[usable].sum()) if usable.any() else 0.0
