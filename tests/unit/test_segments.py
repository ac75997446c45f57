"""Popular posts by segment: which values count, and the order of each list."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import numpy as np
import pandas as pd
import pytest

from batch.feed_rules import segments
from batch.feed_rules.segments import check_attribute, find_popular_posts, find_segments
from batch.loading import interaction_store
from batch.loading.history import History
from batch.loading.interaction_store import TABLES, InteractionStore, StoreOptions
from batch.loading.network import Network
from contract.errors import SourceError

CUTOFF = datetime(2026, 3, 1, tzinfo=UTC)
BEFORE, AFTER = CUTOFF - timedelta(days=1), CUTOFF + timedelta(days=1)


def find(
    column: list[Any], likes: list[tuple[int, ...]], popular: list[int], **options: Any
) -> segments.Segments:
    """Find the popular posts of users with the values of a column, and posts with so many likes in all.

    Likes are (user, post), or (user, post, time) to the second; options as of `find_popular_posts`, and
    `taken_back` with (user, post, time, time of the unlike).
    """
    with duckdb.connect() as database:
        database.execute(TABLES.format(users="BIGINT", posts="BIGINT"))
        database.execute("INSERT INTO users SELECT range, range FROM range(?)", [len(column)])
        rows = [(*like[:2], "like", *(like[2:] or (BEFORE,))) for like in likes]
        rows += [(user, post, "view", BEFORE) for user, post, *_ in likes]
        insert(database, "interactions", rows)
        insert(database, "taken_back", undone := options.pop("taken_back", []))
        insert(database, "unlikes", [(user, post, until) for user, post, _, until in undone])
        history = SimpleNamespace(
            store=InteractionStore(None, StoreOptions(64, 1, Path("unused")), database),
            cutoff=CUTOFF,
            post_counts=pd.DataFrame({"likes": popular}),
        )
        network = Network(pd.DataFrame({"country": column}), pd.DataFrame(index=range(len(popular))))
        excluded = np.array(options.pop("excluded", []))
        return find_popular_posts(network, cast(History, history), excluded, name="country", **options)


def insert(database: duckdb.DuckDBPyConnection, table: str, rows: list[tuple[Any, ...]]) -> None:
    for row in rows:
        values = [each.replace(tzinfo=None) if isinstance(each, datetime) else each for each in row]
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def test_posts_are_in_the_order_of_the_segments_likes_and_then_of_all_likes() -> None:
    likes = [(0, 3), (0, 1), (1, 3), (1, 2), (2, 0), (2, 4), (3, 5)]
    found = find(["DE", "DE", "FR", None], likes, [9, 1, 1, 2, 1, 1, 7], n=5)
    assert found == {
        "DE": [(3, 2.0), (1, 1.0), (2, 1.0), (0, 0.0), (6, 0.0)],  # 1 and 2 tie: the first row
        "FR": [(0, 1.0), (4, 1.0), (6, 0.0), (3, 0.0), (1, 0.0)],
    }
    without = find(["DE", "DE", "FR", None], likes, [9, 1, 1, 2, 1, 1, 7], n=3, excluded=[3, 6])
    assert without["DE"] == [(1, 1.0), (2, 1.0), (0, 0.0)]


def test_likes_count_as_of_the_cutoff_and_a_second_like_of_a_user_counts_too() -> None:
    likes = [(0, 2), (0, 2, CUTOFF), (1, 2), (1, 1), (1, 0, AFTER)]
    taken_back = [(0, 1, BEFORE, AFTER), (0, 0, BEFORE, CUTOFF)]
    found = find(["DE", "DE"], likes, [0, 0, 0], n=3, taken_back=taken_back)
    assert found == {"DE": [(2, 3.0), (1, 2.0), (0, 0.0)]}


def test_likes_are_counted_by_ranges_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    column = random.choice(["a", "b", "c"], 50).tolist()
    likes = [(int(user), int(post)) for user, post in random.integers(0, (50, 9), (200, 2))]
    whole = find(column, likes, [1] * 9, n=9)
    monkeypatch.setattr(interaction_store, "USERS_PER_BUCKET", 4)
    for rows in (1, 70):
        monkeypatch.setattr(interaction_store, "PART_ROWS", rows)
        assert find(column, likes, [1] * 9, n=9) == whole


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0, 7.0, np.nan, -3.0], ["7", "-3"]),  # whole numbers are read as floats
        (pd.Series([True, False, True, None], dtype=object), ["true", "false"]),
        (["DE", "", "a\nb", "x" * 129, "DE", None, "São Paulo"], ["DE", "São Paulo"]),
        ([None, None], []),
    ],
    ids=["numbers", "booleans", "text", "nothing"],
)
def test_values_are_written_as_requests_name_them(values: Any, expected: list[str]) -> None:
    column = pd.Series(values, name="age")
    found, of_user = find_segments(column)
    assert found == expected
    written = [expected[row] if row >= 0 else None for row in of_user]
    assert [text for text in written if text] == [
        segments.format_value(value)
        for value in column
        if pd.notna(value) and segments.format_value(value) in found
    ]


def test_of_many_values_those_with_the_most_users_have_a_list(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 2)
    with caplog.at_level(logging.INFO):
        values, of_user = find_segments(pd.Series([*"abbcccdd"], name="city"))
    assert values == ["c", "b"]  # b and d tie
    assert of_user.tolist() == [-1, 1, 1, 0, 0, 0, -1, -1]
    assert "city has 4 values; the 2 with the most users get popular posts of their own" in caplog.text


@pytest.mark.parametrize(
    ("name", "ignored", "reason"),
    [
        ("land", "", "recs.users has no column land"),
        ("height", "", "recs.users.height is of type double precision"),
        ("age", "posts.x,users.age", "OVERNIGHT_IGNORE_COLUMNS leaves out users.age"),
    ],
)
def test_a_column_that_makes_no_segments_is_refused(name: str, ignored: str, reason: str) -> None:
    types = {"age": "integer", "height": "double precision", "city": "text"}
    check_attribute(types, "city", "users.age")
    with pytest.raises(SourceError, match=reason):
        check_attribute(types, name, ignored)
