"""Text features and clusters of posts, compared with values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from batch.arrays import Float32s
from batch.features.tables import FeatureColumns
from batch.features.text import cluster_posts, compute_text_features


def column(found: FeatureColumns, name: str) -> Float32s:
    (index,) = [index for index, feature in enumerate(found.features) if feature.name == name]
    values: Float32s = found.values[:, index]
    return values


def test_statistics_of_tf_idf_equal_values_computed_by_hand() -> None:
    # 18 texts; each of the words "alpha" and "beta" is in 10 of them, so their idf is the same.
    texts = pd.Series(["alpha"] * 8 + ["beta"] * 8 + ["alpha beta", "beta alpha solo"], dtype=object)
    found = compute_text_features(texts, seed=1)
    half = 1 / np.sqrt(2)
    expected: dict[str, Any] = {
        "post_tfidf_sum": [1, 2 * half, 2 * half],
        "post_tfidf_mean": [1, half, half],
        "post_tfidf_max": [1, half, half],
        "post_words": np.log1p([1, 2, 3]),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(column(found, name)[[0, 16, 17]], values, rtol=1e-5)


def test_statistics_are_zero_for_unknown_words_and_nan_without_text() -> None:
    texts = pd.Series(["alpha beta"] * 20 + ["unheard", None, "  "], dtype=object)
    found = compute_text_features(texts, seed=1)
    names = ("post_tfidf_sum", "post_tfidf_mean", "post_tfidf_max")
    assert [column(found, name)[20] for name in names] == [0, 0, 0]
    assert column(found, "post_words")[20] == pytest.approx(np.log(2))
    assert np.isnan(found.values[21:]).all()


def test_clusters_follow_the_vectors_and_posts_without_a_vector_are_separate() -> None:
    random = np.random.default_rng(2)
    truth = np.repeat([0, 1, 2], 40)
    vectors = (10 * np.eye(3)[truth] + random.normal(size=(120, 3))).astype(np.float32)
    vectors[[5, 50]] = np.nan
    groups = cluster_posts(vectors, 3, seed=1)
    assert set(groups[[5, 50]]) == {3}
    known = np.delete(np.arange(120), [5, 50])
    pairs = {(int(true), int(group)) for true, group in zip(truth[known], groups[known], strict=True)}
    assert len(pairs) == 3
    assert {group for _, group in pairs} == {0, 1, 2}


def test_the_same_seed_gives_the_same_clusters() -> None:
    vectors = np.random.default_rng(2).normal(size=(500, 8)).astype(np.float32)
    np.testing.assert_array_equal(cluster_posts(vectors, 12, seed=4), cluster_posts(vectors, 12, seed=4))


@pytest.mark.parametrize(
    ("vectors", "groups"),
    [
        (np.empty((3, 0), np.float32), [0, 0, 0]),
        (np.full((3, 2), np.nan, np.float32), [0, 0, 0]),
        (np.ones((3, 2), np.float32), [0, 0, 0]),
        (np.array([[1], [np.nan], [1]], np.float32), [0, 1, 0]),
    ],
)
def test_fewer_vectors_than_clusters_make_fewer_groups(vectors: Float32s, groups: list[int]) -> None:
    assert cluster_posts(vectors, 5, seed=1).tolist() == groups
