from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from batch.loading.cohorts import Groupings
from batch.loading.examples import collect_likes
from batch.loading.history import History
from batch.loading.likes import Likes

NOON = datetime(2021, 10, 10, 12, tzinfo=UTC)
USERS, POSTS = 60, 50


def make_history(likes: Likes, known: np.ndarray) -> History:
    """Return a history with nothing but likes, and which posts are known."""
    return History(
        cutoff=NOON,
        user_counts=pd.DataFrame(index=range(USERS)),
        post_counts=pd.DataFrame({"known": known.astype(np.float64)}),
        groupings=Groupings.of(all=(np.zeros(POSTS, np.int32), 1)),
        of_groups={},
        likes=likes,
        store=None,  # type: ignore[arg-type]
    )


def draw_likes() -> tuple[Likes, Likes, np.ndarray]:
    """Draw likes before and up to a later time, and known posts: four of five, also of those liked."""
    random = np.random.default_rng(3)
    before, new = random.random((2, USERS, POSTS)) < np.array([0.04, 0.08])[:, None, None]
    new[7] = False
    earlier, later = (
        Likes.from_pairs(*(rows.astype(np.int32) for rows in np.nonzero(liked)), USERS)
        for liked in (before, before | new)
    )
    return earlier, later, np.arange(POSTS) % 5 > 0


def pair_keys(users: np.ndarray, posts: np.ndarray) -> np.ndarray:
    keys: np.ndarray = users.astype(np.int64) * POSTS + posts
    return keys


def test_positives_are_the_new_likes_of_known_posts_and_no_liked_post_is_drawn() -> None:
    before, later, known = draw_likes()
    found = collect_likes(make_history(before, known), later, negatives_per_like=8, max_rows=10_000, seed=1)
    earlier, until = pair_keys(before.users, before.posts), pair_keys(later.users, later.posts)
    expected = np.setdiff1d(until, earlier)
    assert (~known[expected % POSTS]).sum() > 10
    expected = expected[known[expected % POSTS]]
    keys = pair_keys(found.users, found.posts)
    np.testing.assert_array_equal(keys[found.liked], expected)
    assert found.liked[: expected.size].all()
    drawn = keys[~found.liked]
    assert known[drawn % POSTS].all()
    assert not np.isin(drawn, until).any()
    assert set(found.users) == set(expected // POSTS)
    # Eight a like, less those that hit a post that the user likes.
    liked = np.bincount(until[known[until % POSTS]] // POSTS, minlength=USERS)
    fresh = 1 - liked[expected // POSTS] / known.sum()
    assert drawn.size == pytest.approx(8 * fresh.sum(), rel=0.03)
    assert not found.viewed.any()
    np.testing.assert_array_equal(found.weights, np.ones(len(found), np.float32))
    assert found.weights.dtype == np.float32


def test_posts_are_drawn_evenly_over_the_known_ones_whatever_their_likes() -> None:
    random, known = np.random.default_rng(5), np.arange(POSTS) % 5 > 0
    nothing = Likes.from_pairs(np.empty(0, np.int32), np.empty(0, np.int32), USERS)
    # Everybody likes post 1, half of all post 2: popular ones are not drawn more, only less by those likes.
    users = np.concatenate([np.arange(USERS), np.flatnonzero(random.random(USERS) < 0.5)]).astype(np.int32)
    posts = np.where(np.arange(users.size) < USERS, 1, 2).astype(np.int32)
    later = Likes.from_pairs(users, posts, USERS)
    drawn = collect_likes(make_history(nothing, known), later, negatives_per_like=400, max_rows=10**6, seed=2)
    counts = np.bincount(drawn.posts[~drawn.liked], minlength=POSTS)
    assert not counts[~known].any()
    assert counts[1] == 0
    others = counts[known][2:]
    # Poisson: the sum of squared deviations over the mean is chi-square, with a standard deviation below 9.
    chi_square = ((others - others.mean()) ** 2 / others.mean()).sum()
    assert abs(chi_square - (others.size - 1)) < 4 * np.sqrt(2 * others.size)
    assert others.mean() == pytest.approx(users.size * 400 / known.sum(), rel=0.02)
    liked_by_half = np.bincount(later.users[later.posts == 2], minlength=USERS) > 0
    assert 0 < counts[2] < others.mean() * (1 - liked_by_half.mean())


def test_likes_are_thinned_to_the_rows_allowed_and_one_seed_gives_one_set() -> None:
    before, later, known = draw_likes()
    history = make_history(before, known)
    whole = collect_likes(history, later, negatives_per_like=8, max_rows=10_000, seed=1)
    thin, again, other = (
        collect_likes(history, later, negatives_per_like=8, max_rows=300, seed=seed) for seed in (1, 1, 2)
    )
    assert thin.liked.sum() == 300 // 9
    assert len(thin) <= 300
    everything = pair_keys(whole.users[whole.liked], whole.posts[whole.liked])
    for found in (thin, other):
        positive = pair_keys(found.users[found.liked], found.posts[found.liked])
        assert (np.diff(positive) > 0).all()
        assert np.isin(positive, everything).all()
        assert set(found.users) == set(positive // POSTS)
    np.testing.assert_array_equal(pair_keys(thin.users, thin.posts), pair_keys(again.users, again.posts))
    assert not np.array_equal(thin.users[thin.liked], other.users[other.liked])


def test_where_no_post_is_known_or_no_like_is_new_there_are_no_examples() -> None:
    before, later, known = draw_likes()
    for history, likes in (
        (make_history(before, np.zeros(POSTS, bool)), later),
        (make_history(later, known), later),
    ):
        assert len(collect_likes(history, likes, negatives_per_like=8, max_rows=10_000, seed=1)) == 0
