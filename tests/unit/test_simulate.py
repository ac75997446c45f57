from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import EXIT_USAGE, OvernightError
from demo import feed, simulate
from demo.ground_truth import draw_tastes
from demo.network import NetworkError
from demo.population import END


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 400), st.integers(0, 1_000))
def test_any_feed_has_exactly_its_rows_and_no_two_at_once(
    users: int, posts: int, rows: int, seed: int
) -> None:
    drawn = 0
    for views in feed.draw_feed(draw_tastes(seed, users, posts), rows, seed):
        drawn += len(views.users) + int(views.liked.sum())
        same_user = views.users[1:] == views.users[:-1]
        assert (views.times[1:] > views.times[:-1] + views.dwell[:-1])[same_user].all()
        assert (views.times + views.dwell <= END).all()
    assert drawn == rows


def test_blocks_part_the_users_and_keep_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "BLOCK_ROWS", 500)
    blocks = list(feed.draw_feed(draw_tastes(1, 200, 30), 10_007, seed=1))
    assert len(blocks) == 21
    assert sum(len(views.users) + int(views.liked.sum()) for views in blocks) == 10_007
    bounds = [(views.users.min(), views.users.max()) for views in blocks]
    assert all(end < start for (_, end), (start, _) in pairwise(bounds))


def test_memory_does_not_grow_with_the_number_of_interactions() -> None:
    tastes = draw_tastes(1, 20_000, 1_000)
    tracemalloc.start()
    try:
        size = sum(len(part) for part in feed.to_copy(feed.draw_feed(tastes, 4_000_000, seed=1)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 4_000_000 * 46 + 21
    assert peak < size / 2


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 10, 100, 1), "users must be at least 1, not 0"),
        ((10, -5, 100, 1), "posts must be at least 1, not -5"),
        ((10, 10, 0, 1), "interactions must be at least 1, not 0"),
        ((10, 10, 100, -1), "seed must be 0 or more, not -1"),
        ((10, 10, 10_001, 1), "10,001 interactions are too many for 10 users: at most 10,000"),
    ],
)
def test_impossible_numbers_are_named(numbers: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(NetworkError, match=message) as raised:
        simulate.simulate("postgresql://nobody@localhost:1/none", *numbers)
    assert raised.value.exit_code == EXIT_USAGE


def test_an_unreachable_database_is_told_in_one_line_without_the_password() -> None:
    with pytest.raises(OvernightError) as raised:
        simulate.simulate("postgresql://someone:hidden@127.0.0.1:1/none", 10, 10, 100, 1)
    message = str(raised.value)
    assert message.startswith("Postgres: ")
    assert "\n" not in message
    assert "hidden" not in message
