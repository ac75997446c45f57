"""Models with every kind of split that LightGBM makes, small networks, and LightGBM's scores for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
from hypothesis import strategies as st

from batch.executors.threads import ThreadExecutor
from batch.features.factors import Factors
from batch.features.tables import Affinity, Feature, FeatureTables, Kind
from batch.loading.likes import Likes
from batch.scoring.score import compile_model

NO_LIKES = Likes(np.zeros(1000, dtype=np.int64), np.empty(0, dtype=np.int32))
NONE_BLOCKED = np.empty(0, dtype=np.int64)

# Values that a column may have when it is scored and did not have in training.
UNSEEN_VALUES = np.array(
    [np.nan, np.inf, -np.inf, 0, -0.0, 1e-36, -1e-36, 1e-35, 1e-45, 1e10, -1e10, -0.5, 0.5, -1, -7, 2.5, 99],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Case:
    """A model with users and posts to score; `matrix` is the training data."""

    booster: lgb.Booster
    tables: FeatureTables
    matrix: np.ndarray


def plain_scores(booster: lgb.Booster, tables: FeatureTables, factors: Factors | None = None) -> np.ndarray:
    """Score every pair as LightGBM does: (users, posts) float64."""
    users, posts = tables.users, tables.posts
    rows = tables.rows(np.repeat(np.arange(users), posts), np.tile(np.arange(posts), users))
    scores = np.asarray(booster.predict(rows, raw_score=True)).reshape(users, posts)
    return scores if factors is None else scores + factors.users.astype(float) @ factors.posts.T.astype(float)


def all_scores(booster: lgb.Booster, tables: FeatureTables, factors: Factors | None = None) -> np.ndarray:
    """Score every pair as the night does, with lists that contain every post: (users, posts) float32."""
    model = compile_model(booster, tables, factors, NO_LIKES, NONE_BLOCKED)
    listed, of_lists = model.score(tables.posts, ThreadExecutor(1, 16))
    scores = np.full((tables.users, tables.posts), np.nan, dtype=np.float32)
    np.put_along_axis(scores, listed, of_lists, axis=1)
    return scores


def assert_exact(case: Case, factors: Factors | None = None) -> None:
    """Compare the score of every pair with LightGBM's; they are of the order of 1."""
    expected = plain_scores(case.booster, case.tables, factors)
    found = all_scores(case.booster, case.tables, factors)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def make_matrix(random: np.random.Generator, rows: int, kinds: list[str]) -> np.ndarray:
    """Make training data with a column of each kind, some of it missing, most of it informative."""
    columns = []
    for kind in kinds:
        column = {
            "number": random.normal(size=rows),
            "count": random.poisson(1.5, rows) - 1.0,
            "category": random.integers(0, random.integers(2, 60), rows),
            "sparse": random.normal(size=rows) * (random.random(rows) < 0.4),
            "tiny": random.choice([-2e-35, -1e-36, 0.0, 1e-36, 2e-35, 1.0], rows),
            "constant": np.ones(rows),
        }[kind].astype(np.float32)
        if random.random() < 0.6:
            column[random.random(rows) < random.choice([0.05, 0.5])] = np.nan
        columns.append(column)
    return np.stack(columns, axis=1)


def train(
    random: np.random.Generator, matrix: np.ndarray, kinds: list[str], parameters: dict[str, Any], rounds: int
) -> lgb.Booster:
    """Train on a target that depends on every column."""
    known = np.nan_to_num(np.clip(matrix, -5, 80)).astype(float)
    signal = np.sin(known * random.normal(size=known.shape[1])).sum(axis=1)
    target = signal + 0.3 * random.normal(size=len(matrix)) + random.choice([0, 20])
    if parameters["objective"] == "binary":
        target = (target > np.median(target)).astype(float)
    categorical = [index for index, kind in enumerate(kinds) if kind == "category"]
    data = lgb.Dataset(matrix, target, categorical_feature=categorical)
    return lgb.train({"verbosity": -1, "num_threads": 1, "min_data_in_bin": 1, **parameters}, data, rounds)


def make_tables(
    random: np.random.Generator, matrix: np.ndarray, kinds: list[Kind | int], users: int, posts: int
) -> FeatureTables:
    """Make users and posts with values from training and unseen values.

    `kinds` gives each column's kind, in the order of the tables: an integer is
    the grouping of an affinity.
    """
    features = [
        Feature(f"column {index}", kind if isinstance(kind, Kind) else Kind.AFFINITY)
        for index, kind in enumerate(kinds)
    ]

    def draw(index: int, shape: tuple[int, ...]) -> np.ndarray:
        known = random.choice(matrix[:, index], shape)
        return np.where(random.random(shape) < 0.3, random.choice(UNSEEN_VALUES, shape), known).astype(
            np.float32
        )

    def columns_of(kind: Kind | int) -> tuple[int, ...]:
        return tuple(index for index, other in enumerate(kinds) if other is kind or other == kind)

    def table(kind: Kind | int, *shape: int) -> np.ndarray:
        values = [draw(index, shape) for index in columns_of(kind)]
        return np.stack(values, axis=-1) if values else np.zeros((*shape, 0), dtype=np.float32)

    affinities = []
    for grouping in sorted({kind for kind in kinds if not isinstance(kind, Kind)}):
        groups = int(random.integers(1, 8))
        affinities.append(
            Affinity(
                grouping=f"grouping {grouping}",
                features=tuple(features[index] for index in columns_of(grouping)),
                group_of_post=random.integers(0, groups, posts).astype(np.int32),
                values=table(grouping, users, groups),
            )
        )
    return FeatureTables(
        user_features=tuple(features[index] for index in columns_of(Kind.USER)),
        user_values=table(Kind.USER, users),
        post_features=tuple(features[index] for index in columns_of(Kind.POST)),
        post_values=table(Kind.POST, posts),
        post_likes=np.zeros(posts),
        affinities=tuple(affinities),
    )


PARAMETERS = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(["binary", "regression", "regression_l1"]),
        "boosting": st.sampled_from(["gbdt", "gbdt", "dart", "rf"]),
        "num_leaves": st.sampled_from([2, 3, 8, 31, 32, 33, 63, 64, 128, 255]),
        "max_depth": st.sampled_from([-1, -1, 1, 4]),
        "min_data_in_leaf": st.sampled_from([1, 1, 5, 20, 300]),
        "learning_rate": st.sampled_from([0.05, 0.3]),
        "use_missing": st.sampled_from([True, True, False]),
        "zero_as_missing": st.booleans(),
        "max_bin": st.sampled_from([3, 63, 255, 1000]),
        "max_cat_to_onehot": st.sampled_from([1, 4, 100]),
        "min_data_per_group": st.just(1),
        "cat_smooth": st.just(1.0),
        "bagging_fraction": st.just(0.7),
        "bagging_freq": st.just(1),
        "boost_from_average": st.booleans(),
    }
)

CONTENTS = ["number", "number", "count", "category", "category", "sparse", "tiny", "constant"]
DRAWN_KINDS: list[Kind | int] = [Kind.USER, Kind.POST, 0, 1]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a model and a small network; a seed draws the columns, Hypothesis the parameters."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = random.integers(1, 9)
    kinds = [DRAWN_KINDS[index] for index in sorted(random.integers(0, len(DRAWN_KINDS), count))]
    contents = random.choice(CONTENTS, count).tolist()
    matrix = make_matrix(random, draw(st.sampled_from([30, 300, 1500])), contents)
    booster = train(random, matrix, contents, draw(PARAMETERS), draw(st.integers(1, 12)))
    if draw(st.booleans()):
        booster.best_iteration = draw(st.integers(1, booster.num_trees()))
    users, posts = draw(st.integers(1, 12)), draw(st.integers(1, 45))
    return Case(booster, make_tables(random, matrix, kinds, users, posts), matrix)
