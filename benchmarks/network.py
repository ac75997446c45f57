"""A synthetic network for scoring benchmarks: 60 columns of all three kinds, and a forest trained on them."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np

from batch.features.tables import Affinity, Feature, FeatureTables, Kind
from batch.loading.likes import Likes

TOPICS, CLUSTERS = 7, 40
LIKES_PER_USER = 40
_TASTES = 6


def make_tables(users: int, posts: int) -> FeatureTables:
    """Make a network of 8 user, 46 post and 2 x 3 affinity columns; the same sizes give the same network."""
    random = np.random.default_rng(users + posts)
    age = random.normal(size=(users, 2))
    attributes = np.stack([random.integers(0, count, users) for count in (2, 6, 12, 60)], axis=1)
    counters = np.floor(random.exponential(20, (users, 2)))
    user_taste = np.concatenate([age, attributes[:, :2] - 1, random.normal(size=(users, 2))], axis=1)
    content = random.normal(size=(posts, 43)) * np.linspace(2, 0.5, 43)
    topic = np.argmax(content[:, :TOPICS], axis=1).astype(np.int32)
    cluster = np.argmax(content[:, :_TASTES] @ random.normal(size=(_TASTES, CLUSTERS)), axis=1)
    popularity = random.exponential(1, (posts, 2))
    return FeatureTables(
        user_features=tuple(Feature(f"user_{n}", Kind.USER, 2 <= n < 6) for n in range(8)),
        user_values=np.concatenate([age, attributes, counters], axis=1).astype(np.float32),
        post_features=tuple(Feature(f"post_{n}", Kind.POST, n == 0) for n in range(46)),
        post_values=np.concatenate([topic[:, None], popularity, content], axis=1).astype(np.float32),
        post_likes=np.floor(100 * popularity[:, 0]),
        affinities=(
            _affinity("topic", topic, TOPICS, user_taste, random),
            _affinity("cluster", cluster.astype(np.int32), CLUSTERS, user_taste, random),
        ),
    )


def _affinity(
    grouping: str, groups: np.ndarray, count: int, user_taste: np.ndarray, random: np.random.Generator
) -> Affinity:
    """Make three affinity columns for each group; two of them are NaN for half of the users."""
    liking = user_taste @ random.normal(size=(_TASTES, count))
    seen = random.poisson(2, liking.shape)
    values = np.stack([liking, seen, liking * seen], axis=2)
    values[random.random(len(user_taste)) < 0.5, :, :2] = np.nan
    features = tuple(Feature(f"{grouping}_{n}", Kind.AFFINITY) for n in range(3))
    return Affinity(grouping, features, groups, values.astype(np.float32))


def make_likes(tables: FeatureTables) -> Likes:
    """Make random likes, LIKES_PER_USER a user on average."""
    random = np.random.default_rng(1)
    likes = LIKES_PER_USER * tables.users
    users = random.integers(0, tables.users, likes).astype(np.int32)
    posts = random.integers(0, tables.posts, likes).astype(np.int32)
    return Likes.from_pairs(users, posts, tables.users)


def train(tables: FeatureTables, trees: int, leaves: int = 31) -> lgb.Booster:
    """Train a forest on 100,000 views of that network."""
    random = np.random.default_rng(2)
    users = random.integers(0, tables.users, 100_000)
    posts = random.integers(0, tables.posts, 100_000)
    rows = tables.rows(users, posts)
    signal = np.nan_to_num(rows)[:, :54].astype(float) @ (random.normal(size=54) / 8)
    taste = np.nan_to_num(tables.affinities[0].values)[users, tables.affinities[0].group_of_post[posts], 0]
    liked = signal + taste + random.logistic(size=len(users)) > np.median(signal)
    categorical = [index for index, column in enumerate(tables.columns) if column.categorical]
    data = lgb.Dataset(rows, liked.astype(float), categorical_feature=categorical)
    parameters = {
        "objective": "binary",
        "num_leaves": leaves,
        "learning_rate": 0.03,
        "feature_fraction": 0.5,
        "min_data_in_leaf": 50,
        "verbosity": -1,
    }
    return lgb.train(parameters, data, trees)
