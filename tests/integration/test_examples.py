"""Labelled examples and the time split."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from batch.loading.examples import collect_labelled_views
from batch.loading.history import count_history
from batch.loading.split import split_by_time
from batch.runs import ledger
from contract.errors import SourceError
from tests.support.batch import DAYS, FIRST_DAY, execute, make_engine, make_network, query, topics_of
from tests.support.evaluation import fit_model, load_database, pull_database, pulled_database

END = FIRST_DAY + timedelta(days=DAYS)


def examples_of(database_url: str, *rows: str, max_rows: int = 1_000) -> list[tuple[int, int, bool, bool]]:
    """Replace all interactions by rows 'user post action minute'; return the examples."""
    values = []
    for user, post, action, minute in (row.split() for row in rows):
        time = datetime(2021, 10, 10, 12, tzinfo=UTC) + timedelta(minutes=int(minute))
        values.append(f"({user}, {post}, '{action}', '{time.isoformat()}')")
    execute(database_url, "DELETE FROM recs.interactions")
    execute(database_url, f"INSERT INTO recs.interactions VALUES {', '.join(values)}")
    with pulled_database(database_url, END) as pulled:
        network, noon = pulled.network, datetime(2021, 10, 10, 12, tzinfo=UTC)
        before = count_history(pulled.store, network, noon, topics_of(network))
        found = collect_labelled_views(pulled.store, before, END, max_rows=max_rows, seed=1)
    users, posts = network.users.index[found.users], network.posts.index[found.posts]
    return list(zip(users, posts, found.liked.tolist(), found.viewed.tolist(), strict=True))


def test_a_view_is_positive_if_the_next_event_on_that_post_is_a_like(database_url: str) -> None:
    make_network(database_url, interactions=100)
    found = examples_of(
        database_url,
        "1 101 view 1", "1 102 view 2", "1 101 like 3",  # liked after a view of another post
        "2 101 view 1", "2 101 view 2", "2 101 like 3",  # the like belongs to the second view
        "3 101 view 5", "3 101 like 5",  # same time: the view is first
        "4 101 view 1", "5 101 like 2",  # another user's like
    )  # fmt: skip
    views = [row[:3] for row in found if row[3]]
    assert views == [
        (1, 101, True), (1, 102, False), (2, 101, False), (2, 101, True), (3, 101, True), (4, 101, False),
    ]  # fmt: skip
    assert [row[:3] for row in found if not row[3] and row[2]] == [(5, 101, True)]


def test_a_like_with_a_view_before_the_window_is_not_a_like_without_a_view(database_url: str) -> None:
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
    # four draws per like, minus those of the 20 liked among 40 posts
    assert 30 < len(negative) < 90
    assert all(post > 120 for _, post, _, _ in negative)


def test_too_many_rows_are_limited_by_leaving_out_whole_users(database_url: str) -> None:
    make_network(database_url, interactions=100)
    rows = [f"{user} {post} view {post}" for user in range(1, 61) for post in range(101, 111)]
    found = examples_of(database_url, *rows, max_rows=300)
    users, counts = np.unique([user for user, *_ in found], return_counts=True)
    assert 10 < users.size < 50
    assert set(counts) == {10}


def test_each_part_of_the_time_split_has_its_share_of_the_views(database_url: str) -> None:
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


def test_labels_in_too_few_minutes_are_an_error(database_url: str) -> None:
    make_network(database_url, interactions=100)
    execute(database_url, "UPDATE recs.interactions SET happened_at = '2021-10-10 12:00Z'")
    store = pull_database(database_url).store
    with pytest.raises(SourceError, match="1 minute"):
        split_by_time(store, END, 0.3, 0.2)


def test_weights_of_explored_places_reach_lightgbm_and_none_is_known_before_it_was_served(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url)
    before = load_database(database_url)
    engine = make_engine(database_url)
    ledger.create(engine)
    view = "action = 'view' ORDER BY happened_at DESC LIMIT 1"
    at = f"happened_at <= '{before.split.holdout_start.isoformat()}'"
    explored = "user_id, post_id::text, 'test', 'a run', 10, 0.25, happened_at - interval '{}', '{}'"
    for served in (
        f"SELECT {explored.format('1 hour', 'recs')} FROM recs.interactions WHERE {at} AND {view}",
        f"SELECT {explored.format('1 hour', 'other')} FROM recs.interactions WHERE {view}",
        f"SELECT {explored.format('1 hour', 'recs')} FROM recs.interactions WHERE {view}",
        "SELECT 999, '999', 'test', 'a run', 10, 0.25, '2021-10-10Z'::timestamptz, 'recs'",  # unknown ids
    ):
        execute(database_url, f"INSERT INTO recs.explored {served}")
    weights: list[list[float]] = []
    dataset_of = lgb.Dataset

    def make_dataset(*arguments: Any, **options: Any) -> lgb.Dataset:
        weights.append(options["weight"].tolist())
        return dataset_of(*arguments, **options)

    monkeypatch.setattr(lgb, "Dataset", make_dataset)
    dataset = load_database(database_url)
    fit_model(database_url, dataset, "control")  # before the holdout
    assert Counter(weights[-1]) == {1.0: len(weights[-1]) - 1, 4.0: 1}
    assert Counter(np.concatenate([each.views.weights for each in dataset.windows]).tolist())[4.0] == 2
    assert set(dataset.holdout.weights.tolist()) == {1.0}
    earlier = load_database(database_url, as_of=before.split.holdout_start - timedelta(days=3))
    assert {weight for each in earlier.windows for weight in each.views.weights.tolist()} == {1.0}


def test_examples_are_the_same_to_the_byte_without_explored_places(database_url: str) -> None:
    make_network(database_url)
    without_table = load_database(database_url)
    ledger.create(make_engine(database_url))
    empty = load_database(database_url)
    for one, other in zip(without_table.windows, empty.windows, strict=True):
        for name, values in vars(one.views).items():
            assert values.tobytes() == getattr(other.views, name).tobytes()
