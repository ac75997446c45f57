"""Similar posts, compared with a loop over all pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.features.factors import Factors
from batch.similar_posts import (
    MIN_SIMILARITY,
    PostVectors,
    SimilarityJob,
    centre,
    find_neighbours,
    select_taste_factors,
    standardise,
)
from contract.codec import Ranked

NONE_BLOCKED = np.empty(0, dtype=np.int64)


def find_lists(
    vector_sets: list[PostVectors],
    ids: np.ndarray,
    n: int,
    blocked: np.ndarray = NONE_BLOCKED,
    pairs: int = 4_000_000,
) -> dict[int, Ranked]:
    """Return each post's list from `find_neighbours`; check that only pads follow a pad."""
    lists: dict[int, Ranked] = {}
    job = replace(SimilarityJob.of(vector_sets, ids.size, blocked, n), pairs_per_chunk=pairs)
    for chunk in find_neighbours(job, range(ids.size)):
        assert len(chunk.rows) <= job.posts_per_chunk
        for row, rows, similarities in zip(*vars(chunk).values(), strict=True):
            length = int((rows >= 0).sum())
            assert (rows[length:] == -1).all()
            assert np.isnan(similarities[length:]).all()
            lists[int(ids[row])] = list(
                zip(ids[rows[:length]].tolist(), similarities[:length].tolist(), strict=True)
            )
    return lists


def find_lists_slowly(
    vector_sets: list[PostVectors], ids: np.ndarray, n: int, blocked: np.ndarray
) -> dict[int, Ranked]:
    """Compute the lists pair by pair, in double precision."""
    lists: dict[int, Ranked] = {}
    for post in range(ids.size):
        lengths = [float(np.linalg.norm(each.vectors[post].astype(float))) for each in vector_sets]
        weight = sum(each.weight for each, length in zip(vector_sets, lengths, strict=True) if length > 0)
        found = []
        for other in range(ids.size):
            total = 0.0
            for each, length in zip(vector_sets, lengths, strict=True):
                theirs = each.vectors[other].astype(float)
                if length > 0 and theirs.any():
                    cosine = float(each.vectors[post].astype(float) @ theirs) / length
                    total += each.weight * cosine / float(np.linalg.norm(theirs))
            if weight > 0 and total / weight >= MIN_SIMILARITY and other != post and other not in blocked:
                found.append((int(ids[other]), total / weight))
        lists[int(ids[post])] = sorted(found, key=lambda pair: (-round(pair[1], 5), pair[0]))[:n]
    return lists


@pytest.mark.parametrize("pairs_per_chunk", [1, 500, 4_000_000])
def test_lists_equal_those_of_a_loop_over_all_pairs(pairs_per_chunk: int) -> None:
    random = np.random.default_rng(7)
    ids = np.sort(random.choice(10_000, 90, replace=False)).astype(np.int64)
    likes = random.normal(size=(90, 6)).astype(np.float32)
    likes[::4] = 0
    content = random.normal(size=(90, 9)).astype(np.float32)
    content[::6] = 0
    vector_sets = [PostVectors(1.0, likes), PostVectors(0.5, content)]
    blocked = np.array([3, 50])
    found = find_lists(vector_sets, ids, 7, blocked, pairs_per_chunk)
    expected = find_lists_slowly(vector_sets, ids, 7, blocked)
    assert list(found) == list(expected)
    for post_id, ranked in expected.items():
        assert [post for post, _ in found[post_id]] == [post for post, _ in ranked]
        assert [value for _, value in found[post_id]] == pytest.approx([s for _, s in ranked], abs=2e-6)
    assert found[int(ids[0])] == []  # no vector in either set
    assert found[int(ids[4])] != []  # no likes: by content only


def test_equal_similarities_go_to_the_lower_post_id() -> None:
    vectors = np.ones((200, 3), dtype=np.float32)
    ids = np.arange(1, 201)
    lists = find_lists([PostVectors(1.0, vectors)], ids, 4, np.array([1]))
    assert [post for post, _ in lists[1]] == [3, 4, 5, 6]
    assert [post for post, _ in lists[4]] == [1, 3, 5, 6]
    assert all(value == 1.0 for ranked in lists.values() for _, value in ranked)


def test_a_post_that_is_the_opposite_or_unrelated_is_not_listed() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 1], [1, 1]], dtype=np.float32)
    lists = find_lists([PostVectors(1.0, vectors)], np.arange(4), 3)
    assert [post for post, _ in lists[0]] == [3]
    assert lists[1] == []


def test_a_list_longer_than_the_number_of_posts_contains_all_others() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    assert [post for post, _ in find_lists([PostVectors(1.0, vectors)], np.arange(3), 50)[1]] == [0, 2]
    assert find_lists([PostVectors(1.0, vectors[:1])], np.arange(1), 5) == {0: []}
    assert find_lists([], np.arange(3), 5) == {0: [], 1: [], 2: []}


def test_the_set_of_greater_weight_decides() -> None:
    likes = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    content = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    for weight, first in ((3.0, 1), (1 / 3, 2)):
        ranked = find_lists([PostVectors(weight, likes), PostVectors(1.0, content)], np.arange(3), 2)[0]
        assert ranked[0][0] == first
        assert ranked[0][1] == pytest.approx(0.75)


def test_factors_equal_for_all_users_or_all_posts_are_dropped() -> None:
    taste = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    ones = np.ones((3, 1), dtype=np.float32)
    bias = np.array([[7], [8], [9]], dtype=np.float32)
    factors = Factors(np.hstack([taste, ones, bias]), np.hstack([taste, bias, ones]))
    assert (select_taste_factors(factors) == taste).all()


def test_columns_are_standardised_and_missing_values_become_the_mean() -> None:
    numbers = np.array([[1, 1e6, 5, 0.1], [2, 3e6, 5, 0.1], [np.nan, 2e6, np.inf, 0.1], [3, 2e6, 5, 0.1]])
    scaled = standardise(numbers)
    root = np.sqrt(1.5)
    assert scaled[:, 0] == pytest.approx([-root, 0, 0, root], abs=1e-6)
    assert scaled[:, 1] == pytest.approx([-np.sqrt(2), np.sqrt(2), 0, 0], abs=1e-6)
    assert not scaled[:, 2:].any()
    assert standardise(np.empty((4, 0))).shape == (4, 0)


def test_text_vectors_are_centred_and_a_post_without_text_has_zeros() -> None:
    vectors = np.array([[1, 10], [np.nan, np.nan], [3, 30]], dtype=np.float32)
    assert centre(vectors).tolist() == [[-1, -10], [0, 0], [1, 10]]
    assert not centre(np.full((2, 3), np.nan, dtype=np.float32)).any()
