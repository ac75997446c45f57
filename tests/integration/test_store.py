"""The interaction store against counts with pandas of the raw rows, for any chunk size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batch.loading import arrow_reader, interaction_store
from batch.loading import pull as pulling_module
from batch.loading.cohorts import Groupings
from batch.loading.history import History, count_histories
from batch.loading.period_counts import HALF_LIVES, RECENT
from batch.loading.pull import REASONS, PullResult
from batch.training.dataset import Dataset
from contract.experiment import VARIANTS
from tests.support.batch import execute, make_network, query, run_here, topics_of
from tests.support.evaluation import load_database, pull_database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = int((datetime(1, 1, 1, tzinfo=UTC) - EPOCH).total_seconds() - 366 * 86_400) * 1_000_000
LAST = int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - EPOCH).total_seconds()) * 1_000_000
"""Substitutes of `-infinity` and `infinity`, in microseconds since 1970."""

UNTIL = datetime(2021, 11, 1, 12, 0, 0, 5, tzinfo=UTC)
CUTOFFS = (
    UNTIL - timedelta(days=20),
    UNTIL - timedelta(days=7),
    UNTIL - timedelta(days=6, microseconds=1),
    UNTIL,
)
KINDS = {
    "bigint and timestamptz": ("bigint", "timestamptz", ""),
    "smallint, integer and naive timestamps": ("smallint", "timestamp", ""),
    "texts of limited length": ("integer", "timestamp(6)", "varchar(8)"),
}
USERS, POSTS = range(-3, 9), (*range(-2, 6), 1_000)


def make_odd_network(database_url: str, kind: str = "bigint and timestamptz", rows: int = 4_000) -> None:
    """Make a network whose log has all kinds of unusual rows, in a non-UTC database."""
    ids, times, actions = KINDS[kind]
    zone = " AT TIME ZONE 'UTC'" if times.startswith("timestamp") and not times.endswith("tz") else ""
    span = int(timedelta(days=40) / timedelta(hours=6))
    execute(
        database_url,
        "CREATE SCHEMA recs",
        f"CREATE TABLE recs.users (user_id {ids}, city text)",
        "CREATE TABLE recs.posts "
        "(post_id integer, topic text, text text, like_count bigint, view_count bigint)",
        f"CREATE TABLE recs.interactions "
        f"(user_id {ids}, post_id integer, action {actions or 'text'}, happened_at {times})",
        f"INSERT INTO recs.users SELECT unnest(ARRAY{[*USERS]}), 'Omsk'",
        f"INSERT INTO recs.posts SELECT unnest(ARRAY{[*POSTS]})",
        "UPDATE recs.posts SET topic = 'topic ' || post_id % 3, text = 'a text'",
        "UPDATE recs.posts SET like_count = 150, view_count = 500 WHERE post_id % 2 = 0",
        f"""
        INSERT INTO recs.interactions
        SELECT (ARRAY{[*USERS, 77, -77]})[1 + i * 7 % 13], (ARRAY{[*POSTS, 88]})[1 + h % 10],
               (ARRAY['view', 'view', 'like', 'share', 'LIKE'])[1 + CASE h % 23 WHEN 1 THEN 3 WHEN 2 THEN 4
                                                                ELSE h % 3 END],
               (timestamptz '{UNTIL.isoformat()}' - interval '6 hours' * (h / 7 % {span} - 12)){zone}
        FROM (SELECT i, abs(hashint4(i))::bigint AS h FROM generate_series(1, {rows}) i) drawn
        """,
        "INSERT INTO recs.interactions SELECT * FROM recs.interactions WHERE user_id = 3",
        "UPDATE recs.interactions SET user_id = NULL WHERE user_id = 4 AND post_id = 4",
        "UPDATE recs.interactions SET post_id = NULL WHERE user_id = 5 AND post_id = 4",
        "UPDATE recs.interactions SET action = NULL WHERE user_id = 6 AND post_id = 4",
        "UPDATE recs.interactions SET happened_at = NULL WHERE user_id = 7 AND post_id = 3",
        "UPDATE recs.interactions SET happened_at = '-infinity' WHERE user_id IN (0, 77) AND post_id < 4",
        "UPDATE recs.interactions SET happened_at = 'infinity' WHERE user_id IN (1, 77) AND post_id > 3",
        "DELETE FROM recs.interactions WHERE user_id = 8",
        "CREATE TABLE shuffled AS SELECT * FROM recs.interactions i ORDER BY md5(i::text)",
        "DELETE FROM recs.interactions",
        "INSERT INTO recs.interactions SELECT * FROM shuffled",
        "ALTER DATABASE "
        + database_url.partition("?")[0].rpartition("/")[2]
        + " SET timezone = 'Asia/Tokyo'",
    )


def raw_rows(database_url: str) -> pd.DataFrame:
    """Return all rows of the log; `at` is in microseconds, NA for a null time."""
    rows = query(
        database_url,
        f"""
        SELECT user_id, post_id, action, CASE
            WHEN happened_at = 'infinity' THEN {LAST} WHEN happened_at = '-infinity' THEN {FIRST}
            ELSE (extract(epoch FROM happened_at) * 1000000)::bigint END
        FROM recs.interactions
        """,
    )
    frame = pd.DataFrame(rows, columns=["user", "post", "action", "at"], dtype=object)
    return frame.assign(at=frame["at"].astype("Int64"))


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def usable_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the views and likes of known users and posts that have a time, with row indices for ids."""
    known = rows["user"].isin(USERS) & rows["post"].isin(POSTS) & rows["action"].isin(["view", "like"])
    kept = rows[known & rows["at"].notna()]
    return pd.DataFrame(
        {
            "user": [USERS.index(user) for user in kept["user"]],
            "post": [POSTS.index(post) for post in kept["post"]],
            "liked": (kept["action"] == "like").to_numpy(),
            "at": kept["at"].to_numpy(np.int64),
        }
    )


def check_history(history: History, rows: pd.DataFrame, pulled: PullResult) -> None:
    """Check every field of a history against the raw rows."""
    cutoff = microseconds(history.cutoff)
    until = rows[rows["at"] <= cutoff]
    recent = until[until["at"] > microseconds(history.cutoff - RECENT)]
    later = rows[rows["at"] > cutoff]

    def count(some: pd.DataFrame, by: str, size: int) -> np.ndarray:
        return np.bincount(some[by], minlength=size).astype(np.float64)

    users, posts = len(USERS), len(POSTS)
    latest = until.groupby("user")["at"].max().reindex(range(users)).to_numpy(np.float64)
    expected = {
        "views": count(until[~until["liked"]], "user", users),
        "likes": count(until[until["liked"]], "user", users),
        "recent": count(recent, "user", users),
        "days_since": (cutoff - latest) / 86_400e6,
    }
    assert list(history.user_counts) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(history.user_counts[name], values, name)

    frame = pulled.network.posts
    for name, counter, liked in (("views", "view_count", False), ("likes", "like_count", True)):
        own = frame[counter].to_numpy(np.float64)
        since = own - count(later[later["liked"] == liked], "post", posts)
        logged = count(until[until["liked"] == liked], "post", posts)
        values = np.where(np.isnan(own), logged, np.maximum(since, 0))
        np.testing.assert_array_equal(history.post_counts[name], values, name)
    np.testing.assert_array_equal(
        history.post_counts["recent_likes"], count(recent[recent["liked"]], "post", posts)
    )
    assert history.post_counts.index.equals(frame.index)
    likes = until[until["liked"]]
    by_post = likes.groupby("post")["at"]
    days = (cutoff - by_post.max().reindex(range(posts)).to_numpy(np.float64)) / 86_400e6
    np.testing.assert_array_equal(history.post_counts["last_like"], days)
    age = (cutoff - likes["at"].to_numpy(np.float64)) / 86_400e6
    for column, half_life in enumerate(HALF_LIVES.values()):
        weights = 2 ** (-age / (half_life / timedelta(days=1)))
        fading = np.bincount(likes["post"], weights, minlength=posts)
        np.testing.assert_allclose(history.fading_likes[:, column], fading, rtol=1e-6, atol=1e-6)
    created = frame["created_at"].dt.tz_convert(UTC)
    expected_known = [
        bool((until["post"] == row).any()) if pd.isna(time) else time <= history.cutoff
        for row, time in enumerate(created)
    ]
    assert history.known.tolist() == expected_known

    for name, size in zip(history.groupings.names, history.groupings.sizes, strict=True):
        group = history.groupings.of_post(name)
        counts = history.of_groups[name].of_users(slice(None))
        for counted, liked in zip(counts, (False, True), strict=True):
            some = until[until["liked"] == liked]
            values = np.zeros((users, size), np.float32)
            np.add.at(values, (some["user"], group[some["post"]]), 1)
            np.testing.assert_array_equal(counted, values)

    liked = until[until["liked"]][["user", "post"]].drop_duplicates().sort_values(["user", "post"])
    np.testing.assert_array_equal(history.likes.users, liked["user"])
    np.testing.assert_array_equal(history.likes.posts, liked["post"])
    pairs = until.assign(viewed=~until["liked"]).groupby(["user", "post"])[["viewed", "liked"]].sum()
    found = history.impressions
    index = pairs.index.to_frame()
    for values, column in (
        (found.users, index["user"]), (found.posts, index["post"]),
        (found.views, pairs["viewed"]), (found.likes, pairs["liked"]),
    ):  # fmt: skip
        np.testing.assert_array_equal(values, column)
    assert found.starts.size == users + 1


def use_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read interactions in many chunks, and count them in many parts."""
    monkeypatch.setattr(arrow_reader, "BATCH_BYTES", 2_000)
    monkeypatch.setattr(pulling_module, "CHUNK_ROWS", 300)
    monkeypatch.setattr(interaction_store, "USERS_PER_BUCKET", 2)
    monkeypatch.setattr(interaction_store, "PART_ROWS", 500)


@pytest.mark.parametrize("small", [False, True], ids=["at once", "in small parts"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_count_equals_that_of_pandas_on_the_raw_rows(
    database_url: str, kind: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_odd_network(database_url, kind)
    if small:
        use_small_parts(monkeypatch)
    pulled, rows = pull_database(database_url, UNTIL), usable_rows(raw_rows(database_url))
    assert pulled.store.interactions == len(rows) > 2_000
    assert (len(pulled.store.user_ranges()) > 3) == small
    both = Groupings.of(
        topic=(topics_of(pulled.network).of_post("topic"), topics_of(pulled.network).sizes[0]),
        parity=(np.arange(len(POSTS), dtype=np.int32) % 2, 2),
    )
    histories = count_histories(pulled.store, pulled.network, CUTOFFS, both)
    for cutoff, history in zip(CUTOFFS, histories, strict=True):
        assert history.cutoff == cutoff
        check_history(history, rows, pulled)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_left_out_are_counted_by_their_first_reason(database_url: str, kind: str) -> None:
    make_odd_network(database_url, kind)
    pulled, rows = pull_database(database_url, UNTIL), raw_rows(database_url)
    past, until = rows[(rows["at"] <= microseconds(UNTIL)).fillna(value=False)], microseconds(UNTIL)
    known_user, known_post = past["user"].isin(USERS), past["post"].isin(POSTS)
    expected = {
        "of_unknown_users": int((~known_user).sum()),
        "of_unknown_posts": int((known_user & ~known_post).sum()),
        "with_unknown_actions": int((known_user & known_post & ~past["action"].isin(["view", "like"])).sum()),
        "in_the_future": int((rows["at"] > until).sum()),
        "without_a_time": int(rows["at"].isna().sum()),
    }
    assert pulled.left_out == expected
    assert min(expected.values()) > 0
    assert tuple(expected) == REASONS
    assert pulled.latest == EPOCH + timedelta(microseconds=int(past["at"].max()))


def test_a_log_with_only_infinite_times_is_pulled(database_url: str) -> None:
    make_odd_network(database_url, rows=300)
    execute(database_url, "UPDATE recs.interactions SET happened_at = '-infinity'")
    assert pull_database(database_url, UNTIL).store.interactions == len(usable_rows(raw_rows(database_url)))


def arrays_of(dataset: Dataset) -> list[Any]:
    """Return all arrays of a dataset."""
    found: list[Any] = [dataset.split, dataset.left_out, dataset.hidden]
    for history in (*(each.history for each in dataset.windows), dataset.now):
        pairs = history.impressions
        found += [history.user_counts.to_numpy(), history.post_counts.to_numpy()]
        found += [each for counts in history.of_groups.values() for each in counts.of_users(slice(None))]
        found += [
            history.likes.starts,
            history.likes.posts,
            pairs.starts,
            pairs.posts,
            pairs.views,
            pairs.likes,
        ]
    found += [
        array for each in dataset.windows for array in (each.later_likes.starts, each.later_likes.posts)
    ]
    for rows in (dataset.holdout, *(each.views for each in dataset.windows)):
        found += [rows.users, rows.posts, rows.liked, rows.viewed, rows.weights]
    return found


def test_parts_chunks_and_threads_make_no_difference_to_any_array(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, users=90, interactions=6_000)
    whole = arrays_of(load_database(database_url, threads=1))
    use_small_parts(monkeypatch)
    for threads in (1, 2):
        again = arrays_of(load_database(database_url, threads=threads))
        for one, other in zip(whole, again, strict=True):
            np.testing.assert_equal(other, one)
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype


def test_parts_chunks_and_threads_make_no_difference_to_any_list(
    database_url: str, redis_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url)
    servers = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    assert run_here("run", **servers).returncode == 0
    use_small_parts(monkeypatch)
    assert run_here("run", **servers, OVERNIGHT_THREADS="2", OVERNIGHT_STORE_MEMORY_MIB="64").returncode == 0
    names = "variant, manifest->>'checksum', manifest->>'similar_checksum', manifest->>'model_digest'"
    runs = query(database_url, f"SELECT {names} FROM recs.runs ORDER BY started_at")
    assert [variant for variant, *_ in runs] == [*VARIANTS, *VARIANTS]
    assert runs[:2] == runs[2:]
