"""Simulated networks without a server: rows and memory of the feed, invalid sizes, hits of a ranking."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import EXIT_USAGE
from demo import feed, oracle, simulate
from demo.ground_truth import MEAN_LIKE_RATE, draw_ground_truth
from demo.network import NetworkError
from demo.population import END


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 400), st.integers(0, 1_000))
def test_a_feed_has_exactly_its_rows_and_a_user_one_action_at_a_time(
    users: int, posts: int, rows: int, seed: int
) -> None:
    drawn = 0
    for views in feed.draw_feed(draw_ground_truth(seed, users, posts), rows, seed):
        drawn += len(views.users) + int(views.liked.sum())
        same_user = views.users[1:] == views.users[:-1]
        assert (views.times[1:] > views.times[:-1] + views.dwell_seconds[:-1])[same_user].all()
        assert (views.times + views.dwell_seconds <= END).all()
    assert drawn == rows


def test_blocks_have_disjoint_users_and_keep_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "BLOCK_ROWS", 500)
    blocks = list(feed.draw_feed(draw_ground_truth(1, 200, 30), 10_007, seed=1))
    assert len(blocks) == 21
    assert sum(len(views.users) + int(views.liked.sum()) for views in blocks) == 10_007
    bounds = [(views.users.min(), views.users.max()) for views in blocks]
    assert all(end < start for (_, end), (start, _) in pairwise(bounds))


def test_tastes_for_topics_differ_between_alike_users_and_leave_everything_else() -> None:
    without, with_tastes = draw_ground_truth(3, 2_000, 50), draw_ground_truth(3, 2_000, 50, topic_taste=1.0)
    added = with_tastes.user_topic - without.user_topic
    assert added.std(axis=0) == pytest.approx(np.ones(added.shape[1]), abs=0.1)
    assert abs(np.corrcoef(added, rowvar=False)[0, 1]) < 0.1
    assert (with_tastes.user_factors == without.user_factors).all()
    users = np.repeat(np.arange(2_000), 50)
    probabilities = with_tastes.probabilities(users, np.tile(np.arange(50), 2_000), users % 24)
    active = np.repeat(with_tastes.users.activity, 50)
    assert np.average(probabilities, weights=active) == pytest.approx(MEAN_LIKE_RATE, abs=0.02)


def test_memory_does_not_grow_with_the_number_of_interactions() -> None:
    truth = draw_ground_truth(1, 20_000, 1_000)
    tracemalloc.start()
    try:
        size = sum(len(chunk) for chunk in feed.encode_copy(feed.draw_feed(truth, 4_000_000, seed=1)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 4_000_000 * 46 + 21
    assert peak < size / 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 10, 100, 1), "users must be at least 1, not 0"),
        ((10, -5, 100, 1), "posts must be at least 1, not -5"),
        ((10, 10, 0, 1), "interactions must be at least 1, not 0"),
        ((10, 10, 100, -1), "seed must be 0 or more, not -1"),
        ((10, 10, 10_001, 1), "10,001 interactions are too many for 10 users: at most 10,000"),
    ],
)
def test_the_error_names_an_invalid_size(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(NetworkError, match=message) as raised:
        simulate.simulate("postgresql://nobody@localhost:1/none", *sizes)
    assert raised.value.exit_code == EXIT_USAGE


def test_hits_equal_a_count_by_hand() -> None:
    pairs = oracle.Pairs(
        users=np.array([1, 1, 1, 4, 4]),
        posts=np.array([0, 5, 7, 2, 3]),
        liked=np.array([False, False, True, True, False]),
        like_probability=np.array([0.1, 0.2, 0.5, 0.3, 0.4]),
        logit=np.zeros(5),
    )
    scores = np.array([1.0, 3.0, 2.0, 1.0, 1.0])
    # User 1 ranks post 5 first, not liked; user 4 ranks post 2 first: scores are equal, lower post first.
    assert oracle.count_hits(pairs, scores, k=1) == pytest.approx((1, 0.2 + 0.3))
    both = (1 - 0.8 * 0.5) + (1 - 0.7 * 0.6)
    assert oracle.count_hits(pairs, scores, k=2) == pytest.approx((2, both))
