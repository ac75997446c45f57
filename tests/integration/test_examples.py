"""What becomes a labelled example, and how time is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from batch.loading.examples import Examples, labelled_between
from batch.loading.history import count_history
from batch.loading.split import split_by_time
from contract.errors import SourceError
from tests.support.batch_support import DAYS, FIRST_DAY, execute, make_network, query, topics_of
from tests.support.evaluation_support import pull_database, pulled_database

END = FIRST_DAY + timedelta(days=DAYS)


def examples_of(database_url: str, *rows: str, most_rows: int = 1_000) -> list[tuple[int, int, bool, bool]]:
    """Put rows 'user post action minute' in place of all interactions; return what they make."""
    values = []
    for user, post, action, minute in (row.split() for row in rows):
        moment = datetime(2021, 10, 10, 12, tzinfo=UTC) + timedelta(minutes=int(minute))
        values.append(f"({user}, {post}, '{action}', '{moment.isoformat()}')")
    execute(database_url, "DELETE FROM recs.interactions")
    execute(database_url, f"INSERT INTO recs.interactions VALUES {', '.join(values)}")
    with pulled_database(database_url, END) as pulled:
        network, noon = pulled.network, datetime(2021, 10, 10, 12, tzinfo=UTC)
        before = count_history(pulled.store, network, noon, topics_of(network))
        found = labelled_between(pulled.store, before, END, most_rows, seed=1)
    users, posts = network.users.index[found.users], network.posts.index[found.posts]
    return list(zip(users, posts, found.liked.tolist(), found.viewed.tolist(), strict=True))


def test_a_view_is_positive_if_the_next_event_on_that_post_is_a_like(database_url: str) -> None:
    make_network(database_url, interactions=100)
    found = examples_of(
        database_url,
        "1 101 view 1", "1 102 view 2", "1 101 like 3",  # liked after another post was seen
        "2 101 view 1", "2 101 view 2", "2 101 like 3",  # the second view is the one that ended in a like
        "3 101 view 5", "3 101 like 5",  # at the same time: the view came first
        "4 101 view 1", "5 101 like 2",  # somebody else's like
    )  # fmt: skip
    views = [row[:3] for row in found if row[3]]
    assert views == [
        (1, 101, True), (1, 102, False), (2, 101, False), (2, 101, True), (3, 101, True), (4, 101, False),
    ]  # fmt: skip
    assert [row[:3] for row in found if not row[3] and row[2]] == [(5, 101, True)]


def test_a_like_whose_view_came_before_the_window_is_not_a_like_without_a_view(database_url: str) -> None:
    make_network(database_url, interactions=100)
    assert examples_of(database_url, "1 101 view -5", "1 101 like 5", "2 101 view 6") == [
        (2, 101, False, True)
    ]


def test_likes_without_views_get_negatives_that_were_never_liked(database_url: str) -> None:
    make_network(database_url, interactions=100)
    likes = [f"{user} {post} like {post - 60}" for user in (1, 2, 3) for post in range(101, 111)]
    earlier = [f"{user} {post} like -{post}" for user in (1, 2, 3) for post in range(111, 121)]
    found = examples_of(database_url, *likes, *earlier)
    positive = [row for row in found if row[2]]
    negative = [row for row in found if not row[2]]
    assert len(positive) == 30
    assert not any(viewed for *_, viewed in found)
    # four draws a like, less those that hit one of the user's 20 liked posts among 40
    assert 30 < len(negative) < 90
    assert all(post > 120 for _, post, _, _ in negative)


def test_more_rows_than_wanted_are_thinned_by_whole_users(database_url: str) -> None:
    make_network(database_url, interactions=100)
    rows = [f"{user} {post} view {post}" for user in range(1, 61) for post in range(101, 111)]
    found = examples_of(database_url, *rows, most_rows=300)
    users, counts = np.unique([user for user, *_ in found], return_counts=True)
    assert 10 < users.size < 50
    assert set(counts) == {10}


def test_distinct_rows_are_liked_if_any_of_their_rows_is() -> None:
    yes, no = True, False
    examples = Examples(
        np.array([1, 0, 1]), np.array([5, 5, 5]), np.array([no, no, yes]), np.array([yes, yes, yes]),
        np.ones(3, dtype=np.float32),
    )  # fmt: skip
    distinct = examples.distinct()
    assert distinct.users.tolist() == [0, 1]
    assert distinct.liked.tolist() == [no, yes]


def test_time_is_cut_so_that_each_part_holds_its_share_of_the_views(database_url: str) -> None:
    make_network(database_url)
    split = split_by_time(pull_database(database_url).store, END, 0.3, 0.2)
    total, before, held = (
        query(
            database_url,
            f"SELECT count(*) FROM recs.interactions WHERE action = 'view' AND happened_at {side}",
        )[0][0]
        for side in (
            f"<= '{END.isoformat()}'",
            f"< '{split.history_end.isoformat()}'",
            f">= '{split.holdout_start.isoformat()}'",
        )
    )
    assert before / total == pytest.approx(0.3, abs=0.01)
    assert held / total == pytest.approx(0.2, abs=0.01)


def test_time_that_cannot_be_cut_is_named(database_url: str) -> None:
    make_network(database_url, interactions=100)
    execute(database_url, "UPDATE recs.interactions SET happened_at = '2021-10-10 12:00Z'")
    store = pull_database(database_url).store
    with pytest.raises(SourceError, match="1 minute"):
        split_by_time(store, END, 0.3, 0.2)
