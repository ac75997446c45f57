"""Lists are compared with a plain sort; scores arrive in random order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batch.loading.likes import Likes
from batch.scoring.simd import WIDTH
from batch.scoring.top_n import POST_BLOCKS_BATCH, BlockScores, TopNBuffers, rank_ties, sortable_bits


def slow_top_n(
    scores: np.ndarray, popularity: np.ndarray, liked: set[tuple[int, int]], n: int
) -> list[list[int]]:
    """Return each user's list by a plain sort: by score, then by likes, then by row."""
    lists = []
    for user, row in enumerate(scores):
        left = [post for post in range(row.size) if (user, post) not in liked]
        lists.append(sorted(left, key=lambda post: (-row[post], -popularity[post], post))[:n])
    return lists


def push_all(
    scores: np.ndarray, popularity: np.ndarray, likes: Likes, n: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Push all scores, posts and users in random order, some post blocks at a time; return the lists."""
    posts = random.permutation(scores.shape[1]).astype(np.int32)
    post_blocks = np.pad(posts, (0, -posts.size % WIDTH), constant_values=-1).reshape(-1, WIDTH)
    buffers = TopNBuffers.empty(len(scores), n, rank_ties(popularity))
    users = random.permutation(len(scores))
    for start in range(0, len(post_blocks), POST_BLOCKS_BATCH):
        posts_of_batch = post_blocks[start : start + POST_BLOCKS_BATCH]
        block = np.ascontiguousarray(scores[users][:, posts_of_batch].transpose(1, 0, 2))
        best = np.array([[sortable_bits(bits) for bits in row] for row in block.max(axis=2).view(np.uint32)])
        buffers.push(BlockScores(block, best.astype(np.uint32)), users, posts_of_batch, likes)
    return buffers.lists()


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, set[tuple[int, int]], int, int]:
    users, posts = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 31, 32, 33, 200, 1500]))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    # From one score for all posts to few ties.
    scores = random.integers(-1, draw(st.sampled_from([0, 1, 4, 1000])), (users, posts)) / 8
    liked_share = draw(st.sampled_from([0, 0.1, 0.9, 1]))
    liked = {
        (int(user), int(post)) for user, post in np.argwhere(random.random((users, posts)) < liked_share)
    }
    return scores.astype(np.float32), liked, draw(st.sampled_from([1, 2, 10, 100, 300])), seed


@given(cases())
def test_lists_equal_a_plain_sort(case: tuple[np.ndarray, set[tuple[int, int]], int, int]) -> None:
    scores, liked, n, seed = case
    popularity = np.random.default_rng(seed).integers(0, 5, scores.shape[1]).astype(np.float64)
    pairs = np.array(sorted(liked), dtype=np.int32).reshape(-1, 2)
    likes = Likes.from_pairs(pairs[:, 0], pairs[:, 1], len(scores))
    best, best_scores = push_all(scores, popularity, likes, n, np.random.default_rng(seed))
    for user, expected in enumerate(slow_top_n(scores, popularity, liked, n)):
        assert best[user].tolist() == expected + [-1] * (n - len(expected))
        assert best_scores[user, : len(expected)].tolist() == scores[user, expected].tolist()
        assert np.isnan(best_scores[user, len(expected) :]).all()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_scores_of_any_size_and_sign_keep_every_bit(values: list[float]) -> None:
    scores = np.array([values], dtype=np.float32) + np.float32(0)
    likes = Likes(np.zeros(2, dtype=np.int64), np.empty(0, dtype=np.int32))
    _, best_scores = push_all(scores, np.zeros(len(values)), likes, len(values), np.random.default_rng(0))
    assert best_scores.tobytes() == np.sort(scores)[:, ::-1].tobytes()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_likes_contain_each_pair_once_and_in_order(pairs: list[tuple[int, int]]) -> None:
    rows = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    likes = Likes.from_pairs(rows[:, 0], rows[:, 1], 6)
    for user in range(6):
        assert likes.of(user).tolist() == sorted({post for other, post in pairs if other == user})
    part = likes.of_users(2, 5)
    assert [part.of(user).tolist() for user in range(3)] == [likes.of(user).tolist() for user in (2, 3, 4)]
    assert sorted(zip(likes.users.tolist(), likes.posts.tolist(), strict=True)) == sorted(set(pairs))
