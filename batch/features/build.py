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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Bools, Float32s, Float64s, Int64s, Rows
from batch.features.tables import Affinity, ColumnEncoder, Feature, FeatureColumns, FeatureTables, Kind
from batch.loading.cohorts import Cohorts, cohort_lift, cohort_log_odds, count_cohort_likes, one_hot
from batch.loading.history import History
from batch.loading.network import Network
from batch.variants import Variant
from contract import columns

PRIOR_VIEWS_OF_USER = 20.0
PRIOR_VIEWS_OF_POST = 100.0
PRIOR_LIKES_OF_USER = 5.0
PRIOR_LIKES_OF_POST = 20.0
"""Views or likes at the average rate that are added to each estimate (its prior)."""

USERS_BATCH = 50_000
"""Users of whom statistics are computed at a time; it bounds the memory."""

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


@dataclass(frozen=True)
class NetworkTables:
    """Every feature of a network as of one cutoff; those of users are made for some users at a time.

    Attributes
    ----------
    population
        Of the whole network; `network` and `history` may have only some of its users.
    encoder
        Encodes the profile columns of the users.
    of_posts
        The features of the posts, and of no user.
    """

    variant: Variant
    network: Network
    history: History
    population: Population
    encoder: ColumnEncoder
    of_posts: FeatureTables

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.network.users)

    @property
    def posts(self) -> int:
        """Number of posts."""
        return self.of_posts.posts

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The model's columns, see `FeatureTables.columns`."""
        return self.of_posts.columns

    def of_users(self, rows: Rows) -> FeatureTables:
        """Make the tables of some users, in the order of the rows."""
        users, counts = self.network.users.iloc[rows], self.history.user_counts.iloc[rows]
        of_users = _user_columns(self.variant, self.encoder, users, counts, self.population)
        affinities = _affinities(self.variant, self.history, rows, users, self.population)
        return replace(self.of_posts, user_values=of_users.values, affinities=affinities)

    def rows(self, users: npt.NDArray[np.intp], posts: npt.NDArray[np.intp]) -> Float32s:
        """Assemble the matrix rows of some (user, post) pairs, see `FeatureTables.rows`."""
        distinct, index = np.unique(users, return_inverse=True)
        return self.of_users(distinct).rows(index, posts)


def build_tables(
    variant: Variant,
    network: Network,
    history: History,
    population: Population,
    *,
    users: ColumnEncoder,
    posts: ColumnEncoder,
    text: FeatureColumns,
) -> NetworkTables:
    """Build the features of a variant's posts as of `history.cutoff`; those of users are made on demand.

    Parameters
    ----------
    population
        As in `NetworkTables`.
    users, posts
        Encode the profile columns of the users and of the posts.
    text
        Features of the posts' texts, one row per post.
    """
    nobody = slice(0, 0)
    user_columns, post_columns = select_profile_columns(network)
    counts, no_users = history.user_counts.iloc[nobody], user_columns.iloc[nobody]
    of_users = _user_columns(variant, users, no_users, counts, population)
    of_posts = posts.encode(post_columns).hstack(_traction(network, history), text).without(variant.without)
    tables = FeatureTables(
        user_features=of_users.features,
        user_values=of_users.values,
        post_features=of_posts.features,
        post_values=of_posts.values,
        post_likes=history.post_counts["likes"].to_numpy(np.float64),
        affinities=_affinities(variant, history, nobody, no_users, population),
    )
    return NetworkTables(variant, network, history, population, users, tables)


def _user_columns(
    variant: Variant,
    encoder: ColumnEncoder,
    users: pd.DataFrame,
    counts: pd.DataFrame,
    population: Population,
) -> FeatureColumns:
    """Compute the features of some users; `counts` are their rows of `History.user_counts`."""
    return encoder.encode(users).hstack(_activity(counts, population)).without(variant.without)


def _affinities(
    variant: Variant, history: History, rows: Rows, users: pd.DataFrame, population: Population
) -> tuple[Affinity, ...]:
    """Compute the affinities of some users: their rows in the history, and their rows of `Network.users`."""
    cohorts = population.cohorts.encode(users) if variant.with_cohorts else None
    return tuple(
        _affinity(history, grouping, rows, population.groups[grouping], cohorts).without(variant.without)
        for grouping in variant.groupings
    )


def _activity(counts: pd.DataFrame, population: Population) -> FeatureColumns:
    """Compute the user's activity: logarithms of counts, days since the last action, shrunk like rate."""
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
    history: History, grouping: str, rows: Rows, population: GroupPopulation, cohorts: Int64s | None
) -> Affinity:
    """Compute the features of (user, group of posts).

    `share`: the group's share of the user's likes, shrunk to its share of all
    likes. `like_rate`: likes per view of the group, shrunk to its mean.
    `people`: log-odds that users with the same attributes like the group,
    relative to all users.
    """
    views, likes = history.of_groups[grouping].of_users(rows)
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
    """Compute the statistics of a network as of `history.cutoff`, one range of users at a time.

    All sums are of whole numbers, so they do not depend on the ranges.
    """
    ranges = [
        slice(start, min(start + USERS_BATCH, len(network.users)))
        for start in range(0, len(network.users), USERS_BATCH)
    ]
    groups = {name: _group_population(variant, network, history, name, ranges) for name in variant.groupings}
    counts = history.user_counts
    return Population(mean_like_rate(counts["likes"], counts["views"]), network.cohorts, groups)


def _group_population(
    variant: Variant, network: Network, history: History, grouping: str, ranges: list[slice]
) -> GroupPopulation:
    counts, group_of_post = history.of_groups[grouping], history.groupings.of_post(grouping)
    size, cohorts = counts.groups, network.cohorts
    usable_likes, usable_views = np.zeros(size), np.zeros(size)
    liked_posts, of_cohort = np.zeros(size), np.zeros((cohorts.count, size))
    for some in ranges:
        views, likes = counts.of_users(some)
        usable = _usable(likes, views)
        usable_likes += np.sum(likes, axis=0, dtype=np.float64, where=usable)
        usable_views += np.sum(views, axis=0, dtype=np.float64, where=usable)
        if variant.with_cohorts:
            values = one_hot(cohorts.encode(network.users.iloc[some]), cohorts.count)
            liked = history.likes.of_users(some.start, some.stop)
            of_cohort += count_cohort_likes(values, liked, group_of_post, size)
            liked_posts += np.bincount(group_of_post[liked.posts], minlength=size)
    likes_of_group = counts.totals()[1]
    return GroupPopulation(
        share=likes_of_group / max(likes_of_group.sum(), 1.0),
        like_rate=np.divide(usable_likes, usable_views, out=np.zeros(size), where=usable_views > 0),
        lift=cohort_lift(of_cohort, liked_posts) if variant.with_cohorts else None,
    )


def mean_like_rate(likes: Any, views: Any) -> float:
    """Return likes / views, over the rows with views and no more likes than views; 0 without such rows."""
    likes, views = np.asarray(likes, np.float64), np.asarray(views, np.float64)
    usable = _usable(likes, views)
    return float(likes[usable].sum() / views[usable].sum()) if usable.any() else 0.0


def _usable(likes: Any, views: Any) -> Bools:
    """Return where a like rate is known: there are views, and no more likes than views."""
    known: Bools = (views > 0) & (likes <= views)
    return known
