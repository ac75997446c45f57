from __future__ import annotations

import numpy as np
import pytest

from batch.features.factors import Factors
from batch.similar_posts import LEAST, Block, centred, similar_posts, standardised, tastes
from contract.codec import Ranked

NOBODY = np.empty(0, dtype=np.int64)


def nearest(
    blocks: list[Block], ids: np.ndarray, n: int, blocked: np.ndarray = NOBODY, pairs: int = 4_000_000
) -> dict[int, Ranked]:
    """Return each post's list from `similar_posts`, and check that nothing follows a pad."""
    lists: dict[int, Ranked] = {}
    for count, chunk in similar_posts(blocks, ids, blocked, n, pairs):
        assert count == len(chunk.post_ids)
        for post_id, places, similarities in zip(*vars(chunk).values(), strict=True):
            length = int((places >= 0).sum())
            assert (places[length:] == -1).all()
            assert np.isnan(similarities[length:]).all()
            lists[int(post_id)] = list(
                zip(ids[places[:length]].tolist(), similarities[:length].tolist(), strict=True)
            )
    return lists


def slowly(blocks: list[Block], ids: np.ndarray, n: int, blocked: np.ndarray) -> dict[int, Ranked]:
    """Return what `nearest` should: one pair at a time, in double precision."""
    lists: dict[int, Ranked] = {}
    for post in range(ids.size):
        lengths = [float(np.linalg.norm(block.vectors[post].astype(float))) for block in blocks]
        weight = sum(block.weight for block, length in zip(blocks, lengths, strict=True) if length > 0)
        found = []
        for other in range(ids.size):
            total = 0.0
            for block, length in zip(blocks, lengths, strict=True):
                theirs = block.vectors[other].astype(float)
                if length > 0 and theirs.any():
                    cosine = float(block.vectors[post].astype(float) @ theirs) / length
                    total += block.weight * cosine / float(np.linalg.norm(theirs))
            if weight > 0 and total / weight >= LEAST and other != post and other not in blocked:
                found.append((int(ids[other]), total / weight))
        lists[int(ids[post])] = sorted(found, key=lambda pair: (-round(pair[1], 5), pair[0]))[:n]
    return lists


@pytest.mark.parametrize("pairs_at_a_time", [1, 500, 4_000_000])
def test_the_nearest_are_those_that_a_loop_over_all_pairs_finds(pairs_at_a_time: int) -> None:
    random = np.random.default_rng(7)
    ids = np.sort(random.choice(10_000, 90, replace=False)).astype(np.int64)
    likes = random.normal(size=(90, 6)).astype(np.float32)
    likes[::4] = 0
    content = random.normal(size=(90, 9)).astype(np.float32)
    content[::6] = 0
    blocks = [Block(1.0, likes), Block(0.5, content)]
    blocked = np.array([3, 50])
    found = nearest(blocks, ids, 7, blocked, pairs_at_a_time)
    expected = slowly(blocks, ids, 7, blocked)
    assert list(found) == list(expected)
    for post_id, ranked in expected.items():
        assert [post for post, _ in found[post_id]] == [post for post, _ in ranked]
        assert [value for _, value in found[post_id]] == pytest.approx([s for _, s in ranked], abs=2e-6)
    assert found[int(ids[0])] == []  # in neither block
    assert found[int(ids[4])] != []  # no likes: by content alone


def test_equal_similarities_go_to_the_lower_post_id() -> None:
    vectors = np.ones((200, 3), dtype=np.float32)
    ids = np.arange(1, 201)
    lists = nearest([Block(1.0, vectors)], ids, 4, np.array([1]))
    assert [post for post, _ in lists[1]] == [3, 4, 5, 6]
    assert [post for post, _ in lists[4]] == [1, 3, 5, 6]
    assert all(value == 1.0 for ranked in lists.values() for _, value in ranked)


def test_a_post_that_is_the_opposite_or_unrelated_is_not_listed() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 1], [1, 1]], dtype=np.float32)
    lists = nearest([Block(1.0, vectors)], np.arange(4), 3)
    assert [post for post, _ in lists[0]] == [3]
    assert lists[1] == []


def test_a_list_longer_than_there_are_posts_holds_all_the_others() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    assert [post for post, _ in nearest([Block(1.0, vectors)], np.arange(3), 50)[1]] == [0, 2]
    assert nearest([Block(1.0, vectors[:1])], np.arange(1), 5) == {0: []}
    assert nearest([], np.arange(3), 5) == {0: [], 1: [], 2: []}


def test_the_block_of_more_weight_decides() -> None:
    likes = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    content = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    for weight, first in ((3.0, 1), (1 / 3, 2)):
        ranked = nearest([Block(weight, likes), Block(1.0, content)], np.arange(3), 2)[0]
        assert ranked[0][0] == first
        assert ranked[0][1] == pytest.approx(0.75)


def test_what_is_the_same_for_all_users_or_all_posts_is_no_taste() -> None:
    taste = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    ones = np.ones((3, 1), dtype=np.float32)
    worth = np.array([[7], [8], [9]], dtype=np.float32)
    factors = Factors(np.hstack([taste, ones, worth]), np.hstack([taste, worth, ones]))
    assert (tastes(factors) == taste).all()


def test_columns_of_any_scale_count_alike_and_missing_values_as_the_mean() -> None:
    numbers = np.array([[1, 1e6, 5, 0.1], [2, 3e6, 5, 0.1], [np.nan, 2e6, np.inf, 0.1], [3, 2e6, 5, 0.1]])
    scaled = standardised(numbers)
    root = np.sqrt(1.5)
    assert scaled[:, 0] == pytest.approx([-root, 0, 0, root], abs=1e-6)
    assert scaled[:, 1] == pytest.approx([-np.sqrt(2), np.sqrt(2), 0, 0], abs=1e-6)
    assert not scaled[:, 2:].any()
    assert standardised(np.empty((4, 0))).shape == (4, 0)


def test_a_text_vector_is_measured_from_the_mean_and_a_post_without_text_has_none() -> None:
    vectors = np.array([[1, 10], [np.nan, np.nan], [3, 30]], dtype=np.float32)
    assert centred(vectors).tolist() == [[-1, -10], [0, 0], [1, 10]]
    assert not centred(np.full((2, 3), np.nan, dtype=np.float32)).any()
