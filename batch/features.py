"""Every feature of every user and post as of a cutoff.

One function, three callers: training calls it with the end of the history,
evaluation with the start of the holdout, the night with now. It sees a
`History`, which holds nothing later than its cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.encode import Encoder
from batch.history import History
from batch.load import Network
from batch.tables import Affinity, Feature, FeatureTables, Float32s, Kind
from contract import columns

Floats = npt.NDArray[np.float64]

PRIOR_VIEWS_OF_USER = 20.0
PRIOR_VIEWS_OF_POST = 100.0
PRIOR_LIKES_OF_USER = 5.0
"""How many views or likes at the average rate each estimate starts from."""

NOT_FEATURES = (columns.TEXT, columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT)

ACTIVITY = ("likes", "views", "recent", "days_since", "like_rate")
TRACTION = ("age_days", "text_length", "likes", "recent_likes", "like_rate")
BY_TOPIC = ("like_share", "like_rate")


@dataclass(frozen=True)
class TextFeatures:
    """Columns of the posts' texts and their (posts, columns) float32 values; perhaps none."""

    features: tuple[Feature, ...]
    values: Float32s

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


def mean_like_rate(likes: Any, views: Any) -> float:
    """Return likes / views over the rows that can tell it; 0 where none can."""
    likes, views = np.asarray(likes, np.float64), np.asarray(views, np.float64)
    usable = (views > 0) & (likes <= views)
    return float(likes[usable].sum() / views[usable].sum()) if usable.any() else 0.0


def profile_columns(network: Network) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns of users and of posts that are features as they stand."""
    return network.users, network.posts.drop(columns=list(NOT_FEATURES))


def build_tables(
    network: Network, history: History, users: Encoder, posts: Encoder, text: TextFeatures
) -> FeatureTables:
    """Put all features as of `history.cutoff` into tables."""
    user_columns, post_columns = profile_columns(network)
    return FeatureTables(
        user_ids=network.users.index.to_numpy(np.int64),
        user_features=users.features + tuple(Feature(f"user_{name}", Kind.USER) for name in ACTIVITY),
        user_values=_beside(users.encode(user_columns), _activity(history)),
        post_ids=network.posts.index.to_numpy(np.int64),
        post_features=posts.features
        + tuple(Feature(f"post_{name}", Kind.POST) for name in TRACTION)
        + text.features,
        post_values=_beside(posts.encode(post_columns), _traction(network, history), text.values),
        affinities=(_topic_affinity(history),),
    )


def _beside(*blocks: Any) -> Float32s:
    return np.ascontiguousarray(np.concatenate(blocks, axis=1), dtype=np.float32)


def _activity(history: History) -> Floats:
    """What the user did: counts as logarithms, days since the last action, shrunk like rate."""
    counts = history.user_counts
    mean = mean_like_rate(counts["likes"], counts["views"])
    rate = shrunk_rate(counts["likes"], counts["views"], mean, PRIOR_VIEWS_OF_USER)
    logged = np.log1p(counts[["likes", "views", "recent"]].to_numpy())
    return np.column_stack([logged, counts["days_since"], rate])


def _traction(network: Network, history: History) -> Floats:
    """How the post does: age, length, likes in all and in the last seven days, shrunk like rate.

    A post made after the cutoff has no age yet: 0, as on the day it appears.
    """
    created = network.posts[columns.CREATED_AT]
    age = (pd.Timestamp(history.cutoff) - created).dt.total_seconds() / 86_400
    length = network.posts[columns.TEXT].astype(object).str.len()
    logged = np.log1p(history.post_counts[["likes", "recent_likes"]].to_numpy())
    numbers = [age.clip(lower=0), pd.to_numeric(length), *logged.T, post_like_rate(history)]
    return np.column_stack([np.asarray(column, np.float64) for column in numbers])


def post_like_rate(history: History) -> Floats:
    """Return each post's shrunk like rate, (posts,); NaN where views are not known."""
    likes, views = history.post_counts["likes"].to_numpy(), history.post_counts["views"].to_numpy()
    rate: Floats = shrunk_rate(likes, views, mean_like_rate(likes, views), PRIOR_VIEWS_OF_POST)
    return rate if (views > 0).any() else np.full_like(rate, np.nan)


def _topic_affinity(history: History) -> Affinity:
    """What the user makes of each topic: share of their likes, and shrunk like rate."""
    likes, views = history.topic_likes, history.topic_views
    likes_of_topic = likes.sum(axis=0, dtype=np.float64)
    share_of_topic = likes_of_topic / max(likes_of_topic.sum(), 1.0)
    share = (likes + PRIOR_LIKES_OF_USER * share_of_topic) / (
        likes.sum(axis=1, keepdims=True) + PRIOR_LIKES_OF_USER
    )
    rates = [
        shrunk_rate(
            likes[:, topic],
            views[:, topic],
            mean_like_rate(likes[:, topic], views[:, topic]),
            PRIOR_VIEWS_OF_USER,
        )
        for topic in range(likes.shape[1])
    ]
    values = np.stack([share, np.stack(rates, axis=1)], axis=2).astype(np.float32)
    features = tuple(Feature(f"topic_{name}", Kind.AFFINITY) for name in BY_TOPIC)
    return Affinity(columns.TOPIC, features, history.topic_of_post, values)
