"""Features of users are made for each task: the same bytes for any ranges, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batch.features.build import NetworkTables, build_tables, compute_population
from batch.features.tables import ColumnEncoder, FeatureColumns, Kind
from batch.loading.cohorts import CLUSTER, Groupings
from batch.loading.group_counts import GroupCounts
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.period_counts import FADING_COLUMNS
from batch.scoring import score
from batch.scoring.score import CompiledModel
from batch.variants import MODELS
from contract import columns

POSTS, TOPICS, CLUSTERS, CELLS = 40, 8, 20, 3
NOON = datetime(2021, 10, 10, 12, tzinfo=UTC)


def make_counts(random: np.random.Generator, users: int, groups: int) -> GroupCounts:
    """Make counts in a few groups for each user, of two periods."""
    found = np.sort(random.permuted(np.tile(np.arange(2 * groups), (users, 1)), axis=1)[:, :CELLS], axis=1)
    views, likes = random.integers(0, 9, (2, users * CELLS)).astype(np.uint8)
    return GroupCounts(
        groups, 2, np.arange(users + 1) * CELLS, found.astype(np.uint8).ravel(), views + likes, likes
    )


def make_tables(users: int) -> NetworkTables:
    """Make the tables of the test variant for a random network."""
    random = np.random.default_rng(users)
    posts = pd.DataFrame({columns.TEXT: "text", columns.CREATED_AT: pd.Timestamp(NOON)}, index=range(POSTS))
    profiles = pd.DataFrame(
        {"age": random.integers(14, 90, users).astype(np.float64), "os": random.choice(["a", "b"], users)}
    )
    groups = (random.integers(0, size, POSTS).astype(np.int32) for size in (TOPICS, CLUSTERS))
    topic, cluster = zip(groups, (TOPICS, CLUSTERS), strict=True)
    liked = random.integers(0, POSTS, users)
    counts = random.integers(0, 50, (3, users))
    history = History(
        cutoff=NOON,
        user_counts=pd.DataFrame(dict(zip(("views", "likes", "recent"), counts, strict=True))).assign(
            days_since=random.random(users)
        ),
        post_counts=pd.DataFrame(
            1.0, range(POSTS), ["likes", "views", "recent_likes", "last_like", *FADING_COLUMNS]
        ),
        groupings=Groupings.of(**{columns.TOPIC: topic, CLUSTER: cluster}),
        of_groups={
            columns.TOPIC: make_counts(random, users, TOPICS),
            CLUSTER: make_counts(random, users, CLUSTERS),
        },
        likes=Likes.from_sorted_pairs(np.arange(users), liked, users),
        store=None,  # type: ignore[arg-type]
    )
    network, variant = Network(profiles, posts), MODELS["test"]
    return build_tables(
        variant,
        network,
        history,
        compute_population(variant, network, history),
        users=ColumnEncoder.fit(Kind.USER, profiles, np.arange(users)),
        posts=ColumnEncoder(Kind.POST, {}),
        text=FeatureColumns.empty(POSTS),
    )


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "MAX_USERS_PER_TASK", score.PART_USERS)


def make_model(tables: NetworkTables) -> CompiledModel:
    """Return a model whose users can be cut into tasks; it has no forest."""
    forest: Any = None
    return CompiledModel(forest, tables, None, tables.history.likes)


@pytest.mark.usefixtures("small_tasks")
def test_ranges_of_users_have_the_same_features_as_all_users() -> None:
    tables = make_tables(3_000)
    whole, sizes = tables.of_users(slice(None)), []
    for first, rows in make_model(tables).cut(3_000, 1):
        some = slice(first, first + len(rows.values))
        sizes.append(len(rows.values))
        assert rows.values.tobytes() == whole.user_values[some].tobytes()
        for values, affinity in zip(rows.affinities, whole.affinities, strict=True):
            assert values.tobytes() == affinity.values[some].tobytes()
    assert sizes == [1_024, 1_024, 952]
    backwards = tables.of_users(np.arange(3_000)[::-1])
    assert backwards.affinities[1].values[::-1].tobytes() == whole.affinities[1].values.tobytes()
    pairs = np.array([7, 2_999, 7]), np.array([0, 5, 39])
    np.testing.assert_array_equal(tables.rows(*pairs), whole.rows(*pairs))


@pytest.mark.usefixtures("small_tasks")
def test_memory_to_cut_tasks_does_not_grow_with_users() -> None:
    peaks = []
    for users in (4_096, 4_096, 16_384):  # the first time, caches fill
        model = make_model(make_tables(users))
        tracemalloc.start()
        assert sum(len(rows.values) for _, rows in model.cut(users, 1)) == users
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole = model.user_rows(0, 1)
    table = 4 * (whole.values.size + sum(values.size for values in whole.affinities))
    assert peaks[2] - peaks[1] < table * (16_384 - 4_096) / 50
