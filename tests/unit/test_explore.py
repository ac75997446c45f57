"""Explored places: what is drawn, how likely, and that a list is else as it was."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batch.feed_rules.explore import DrawKey, Exploration, find_unknown_posts
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.scoring.chunk import Lists
from tests.support.explore import hash_pairs

KEY = DrawKey(42, "test", datetime(2026, 11, 27, tzinfo=UTC))
POSTS = 12


def exploration(pool: list[int], every: int = 3, key: DrawKey = KEY, post_ids: Any = None) -> Exploration:
    """Return an exploration of posts 0, 1, ... unless other ids are given."""
    ids = np.arange(POSTS) if post_ids is None else post_ids
    rows = np.array(pool, np.int32)
    return Exploration(every, key, rows, key.hash_ids("post", ids[rows]), ids.size)


def draw(explored: Exploration, lists: Lists, first: int = 0) -> Lists:
    """Draw for the users 100, 101, ... from the one of this number on."""
    return explored.draw(lists, np.arange(100 + first, 100 + first + len(lists.posts)))


def make_lists(ranked: list[list[int]], left_out: list[list[int]] | None = None, n: int = 10) -> Lists:
    """Make lists whose scores fall by 1 from 50."""
    posts, scores = np.full((len(ranked), n), -1, np.int32), np.full((len(ranked), n), np.nan, np.float32)
    for row, each in enumerate(ranked):
        posts[row, : len(each)], scores[row, : len(each)] = each, 50 - np.arange(len(each))
    pairs = [(user, post) for user, each in enumerate(left_out or []) for post in each]
    users, hidden = np.array(pairs, np.int32).reshape(-1, 2).T
    likes = Likes.from_pairs(users, hidden, len(ranked))
    return Lists(posts, scores, left_out=likes)


def draw_slowly(explored: Exploration, lists: Lists, user: int) -> list[tuple[int, float, int]]:
    """Draw one user's places as the module's text says; return (post, score, size of the pool)."""
    assert lists.left_out is not None
    length = int((lists.posts[user] >= 0).sum())
    scores = lists.scores[user, :length]
    rows = [(int(post), float(score), 0) for post, score in zip(lists.posts[user], scores, strict=False)]
    known = {post: score for post, score, _ in rows}
    order = hash_pairs(explored.key, 100 + user, explored.pool.tolist())
    for at in range(explored.every - 1, length, explored.every):
        pool = set(order) - set(lists.left_out.of(user).tolist()) - {post for post, *_ in rows[:at]}
        if pool:
            post = min(pool, key=lambda each: order[each])
            rest = [row for row in rows[at:] if row[0] != post]
            rows = [*rows[:at], (post, known.get(post, min(known.values())), len(pool)), *rest][:length]
    return rows


subsets = st.lists(st.integers(0, POSTS - 1), unique=True)


@given(
    users=st.lists(st.tuples(subsets, subsets), min_size=1, max_size=4),
    pool=subsets.map(sorted),
    every=st.integers(2, 5),
)
def test_places_are_drawn_as_the_slow_draw_says_and_what_else_is_in_a_list_stays(
    users: list[tuple[list[int], list[int]]], pool: list[int], every: int
) -> None:
    left_out = [hidden for hidden, _ in users]
    ranked = [[post for post in each if post not in hidden][:10] for hidden, each in users]
    lists, explored = make_lists(ranked, left_out), exploration(pool, every)
    drawn = draw(explored, lists)
    assert drawn.drawn_from is not None
    for user, before in enumerate(ranked):
        length = len(before)
        found = list(
            zip(
                *(each[user, :length].tolist() for each in (drawn.posts, drawn.scores, drawn.drawn_from)),
                strict=True,
            )
        )
        assert found == draw_slowly(explored, lists, user)
        assert (drawn.posts[user, length:] == -1).all()
        posts = [post for post, *_ in found]
        assert len(set(posts)) == length
        assert not set(posts) & set(left_out[user])
        inserted = {post for post, _, size in found if size}
        assert inserted <= set(pool)
        kept = [post for post in posts if post not in inserted]
        assert kept == [post for post in before if post not in inserted][: len(kept)]
    assert lists.drawn_from is None  # the lists themselves are unchanged
    assert lists.posts.tolist() == make_lists(ranked, left_out).posts.tolist()


def test_a_large_pool_is_drawn_from_in_the_same_way() -> None:
    random, users, ids = np.random.default_rng(5), 60, np.arange(500)
    pool = np.sort(random.permutation(500)[:400]).tolist()
    ranked = [random.permutation(500)[:10].tolist() for _ in range(users)]
    shares = np.linspace(
        0, 1, users
    )  # of the pool: nothing is left out for the first, everything for the last
    left_out = [
        [post for post in pool if random.random() < share and post not in each]
        for share, each in zip(shares, ranked, strict=True)
    ]
    lists, explored = make_lists(ranked, left_out), exploration(pool, post_ids=ids)
    drawn = draw(explored, lists)
    assert drawn.drawn_from is not None
    for user in range(users):
        found = zip(
            *(each[user].tolist() for each in (drawn.posts, drawn.scores, drawn.drawn_from)), strict=True
        )
        assert list(found) == draw_slowly(explored, lists, user)
    sizes = drawn.drawn_from[:, 2]
    assert sizes.min() < 20
    assert sizes.max() > 390


def test_every_post_of_the_pool_is_equally_likely() -> None:
    users, pool = 6_000, [1, 2, 5, 8, 9, 11]
    ranked = [[0, 1, 3, 4, 6, 7] for _ in range(users)]  # 1 is higher than each explored place
    drawn = draw(exploration(pool), make_lists(ranked, n=6))
    assert drawn.drawn_from is not None
    for at, size in ((2, 5), (5, 4)):
        assert set(drawn.drawn_from[:, at]) == {size}
    first, second = (np.unique(drawn.posts[:, at], return_counts=True) for at in (2, 5))
    assert first[0].tolist() == second[0].tolist() == [2, 5, 8, 9, 11]
    for _, counts in (first, second):
        assert stats.chisquare(counts).pvalue > 1e-4
    pairs = np.unique(drawn.posts[:, [2, 5]], axis=0, return_counts=True)[1]
    assert pairs.size == 20  # the second draw does not depend on the first
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_the_draw_depends_on_seed_variant_night_and_user_and_not_on_the_chunk() -> None:
    ranked = [list(range(9)) for _ in range(40)]
    lists, pool = make_lists(ranked, n=9), [1, 4, 6, 9, 10, 11]
    drawn = draw(exploration(pool), lists).posts
    keys = [
        DrawKey(43, "test", KEY.cutoff),
        DrawKey(42, "control", KEY.cutoff),
        DrawKey(42, "test", datetime(2026, 11, 28, tzinfo=UTC)),
    ]
    for key in keys:
        assert (draw(exploration(pool, key=key), lists).posts != drawn).any()
    assert len(np.unique(drawn, axis=0)) > 10
    for start, stop in ((0, 1), (1, 25), (25, 40)):
        part = Lists(
            lists.posts[start:stop], lists.scores[start:stop],
            left_out=lists.left_out.of_users(start, stop) if lists.left_out else None,
        )  # fmt: skip
        assert draw(exploration(pool), part, start).posts.tolist() == drawn[start:stop].tolist()


def test_a_refresh_draws_the_same_post_where_it_is_still_in_the_pool() -> None:
    users, pool = 200, list(range(4, POSTS))
    lists = make_lists([[0, 1, 2, 3]] * users, n=4)
    night = draw(exploration(pool), lists).posts[:, 2]
    ids = np.insert(np.arange(POSTS), 2, 99)  # a new post moves the rows of others
    moved = np.where(np.arange(POSTS) < 2, np.arange(POSTS), np.arange(POSTS) + 1)
    left = [post for post in pool if post != 7]
    pool_of_now = exploration([2, *moved[left]], post_ids=ids)
    refreshed = draw(pool_of_now, make_lists([[0, 1, 3, 4]] * users, n=4))
    now = ids[refreshed.posts[:, 2]]
    kept = now == night
    assert (kept | (night == 7) | (now == 99)).all()
    assert 100 < kept.sum() < 180  # 7 in 8 stay, less those for whom the new post has the lowest hash


@pytest.mark.parametrize(("views", "expected"), [([0, 9, 3, 2, 0], [2, 3]), ([0] * 5, [1, 2])])
def test_unknown_posts_have_few_views_or_few_likes_where_no_view_is_logged(
    views: list[int], expected: list[int]
) -> None:
    counts = pd.DataFrame({"views": views, "likes": [0, 1, 2, 3, 4]})
    history = cast(History, SimpleNamespace(post_counts=counts))
    assert find_unknown_posts(history, 4 if any(views) else 3, np.array([0, 4])).tolist() == expected
