"""A like that is taken back is a like until then, and afterwards as if it had never been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis

from batch.loading.combined_store import CombinedStore, read_recent
from batch.loading.examples import collect_labelled_views
from batch.loading.history import History, count_histories, count_history
from batch.loading.pull import PullResult
from batch.postgres import connected, snapshot
from batch.training.dataset import Dataset
from contract.settings import Settings
from tests.support.batch import DAYS, FIRST_DAY, execute, live_lists, make_network, query, run_here, topics_of
from tests.support.evaluation import load_database, pull_database

LATER = FIRST_DAY + timedelta(days=DAYS * 2)
HALF = FIRST_DAY + timedelta(days=DAYS / 2)

EFFECTIVE = """
    DELETE FROM recs.interactions i WHERE action = 'like' AND EXISTS (
        SELECT FROM recs.interactions u WHERE u.action = 'unlike' AND u.happened_at <= '{until}'
          AND (u.user_id, u.post_id) = (i.user_id, i.post_id) AND u.happened_at >= i.happened_at
    );
    DELETE FROM recs.interactions WHERE action = 'unlike'
"""


def add_unlikes(database_url: str, after: str = "random() * interval '20 days'") -> None:
    """Take every third like back some time after it; like every second of these posts again, a day later."""
    execute(
        database_url,
        "SELECT setseed(0.5)",
        f"""
        WITH likes AS (
            SELECT *, row_number() OVER (ORDER BY happened_at, user_id, post_id) AS number
            FROM recs.interactions WHERE action = 'like'
        ), undone AS (
            INSERT INTO recs.interactions
            SELECT user_id, post_id, 'unlike', happened_at + {after} FROM likes WHERE number % 3 = 0
            RETURNING *
        )
        INSERT INTO recs.interactions
        SELECT user_id, post_id, 'like', happened_at + interval '1 day'
        FROM (SELECT *, row_number() OVER (ORDER BY happened_at, user_id, post_id) AS number FROM undone) u
        WHERE number % 2 = 0
        """,
    )


def add_counters(database_url: str) -> None:
    """Add the network's own counters: what is liked now, and a past of which the log knows nothing."""
    execute(
        database_url,
        "ALTER TABLE recs.posts ADD COLUMN like_count bigint",
        "UPDATE recs.posts p SET like_count = 1000 + p.post_id",
    )


def remove_undone(database_url: str, until: datetime) -> None:
    """Remove the likes that were taken back by a time, and all unlikes."""
    execute(database_url, EFFECTIVE.format(until=until.isoformat()))


def assert_equal_histories(found: History, expected: History) -> None:
    pd.testing.assert_frame_equal(found.user_counts, expected.user_counts)
    pd.testing.assert_frame_equal(found.post_counts, expected.post_counts, rtol=1e-7, atol=1e-7)
    for name in found.groupings.names:
        mine, other = (each.of_groups[name].of_users(slice(None)) for each in (found, expected))
        np.testing.assert_array_equal(mine, other)
    for mine, other in ((found.likes, expected.likes), (found.impressions, expected.impressions)):
        for field in vars(mine):
            np.testing.assert_array_equal(getattr(mine, field), getattr(other, field))


@pytest.mark.parametrize("counters", [False, True], ids=["logged likes", "own counters"])
def test_history_as_of_any_time_is_that_of_the_likes_not_taken_back_by_then(
    database_url: str, counters: bool
) -> None:
    make_network(database_url)
    add_unlikes(database_url)
    if counters:
        add_counters(database_url)
    cutoffs = [FIRST_DAY + timedelta(days=days) for days in (5, 12, 12.5, 25)]
    pulled = pull_database(database_url, LATER)
    assert 0 < pulled.store.taken_back < pulled.store.interactions
    assert set(pulled.left_out.values()) == {0}
    histories = count_histories(pulled.store, pulled.network, cutoffs, topics_of(pulled.network))
    rows = query(database_url, "SELECT user_id, post_id, action, happened_at FROM recs.interactions")
    log = pd.DataFrame(rows, columns=["user_id", "post_id", "action", "happened_at"])
    own = pulled.network.posts["like_count"]
    for cutoff, history in zip(cutoffs, histories, strict=True):
        execute(database_url, "CREATE TABLE kept AS SELECT * FROM recs.interactions")
        execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{cutoff.isoformat()}'")
        remove_undone(database_url, cutoff)
        if counters:  # the own counter less what was liked since, and with what was taken back since
            liked_now, liked_then = (effective_likes(log, time) for time in (LATER, cutoff))
            counted = (own - liked_now.reindex(own.index, fill_value=0)).add(liked_then, fill_value=0)
            for post_id, count in counted.items():
                execute(
                    database_url, f"UPDATE recs.posts SET like_count = {count:.0f} WHERE post_id = {post_id}"
                )
        then = pull_database(database_url, LATER)
        assert then.store.taken_back == 0
        expected = count_history(then.store, then.network, cutoff, topics_of(then.network))
        assert expected.likes.posts.size > 0
        assert_equal_histories(history, expected)
        execute(
            database_url,
            "DELETE FROM recs.interactions",
            "INSERT INTO recs.interactions SELECT * FROM kept",
            "DROP TABLE kept",
        )


def effective_likes(log: pd.DataFrame, time: datetime) -> pd.Series[Any]:
    """Return post -> number of likes by a time that were not taken back by then."""
    log = log[log["happened_at"] <= time]
    undone = log[log["action"] == "unlike"].groupby(["user_id", "post_id"])["happened_at"].max()
    likes = log[log["action"] == "like"].join(undone.rename("undone"), on=["user_id", "post_id"])
    kept = likes[likes["undone"].isna() | (likes["happened_at"] > likes["undone"])]
    return kept.groupby("post_id").size()


def arrays_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield every array that a model learns from or is evaluated on."""
    for window in (*dataset.windows, *dataset.training):
        for part in (window.views, window.later_likes):
            yield from vars(part).values()
        yield from vars(window.history.likes).values()
    yield from vars(dataset.holdout).values()
    for frame in (dataset.now.user_counts, dataset.now.post_counts):
        yield frame.to_numpy()
    yield from vars(dataset.now.impressions).values()


def make_early_unlikes(database_url: str) -> None:
    """Take back likes of the first three days, within ten minutes."""
    make_network(database_url)
    execute(
        database_url,
        f"""
        INSERT INTO recs.interactions
        SELECT user_id, post_id, 'unlike', happened_at + interval '10 minutes' FROM recs.interactions
        WHERE action = 'like' AND happened_at < '{(FIRST_DAY + timedelta(days=3)).isoformat()}'
        """,
    )


def test_likes_taken_back_before_every_cutoff_leave_the_data_of_views_alone(database_url: str) -> None:
    make_early_unlikes(database_url)
    found = load_database(database_url)
    execute(database_url, "UPDATE recs.interactions SET action = 'share' WHERE action = 'unlike'")
    liked = load_database(database_url)
    execute(database_url, "UPDATE recs.interactions SET action = 'unlike' WHERE action = 'share'")
    remove_undone(database_url, LATER)
    expected = load_database(database_url)
    assert found.now.likes.posts.size < liked.now.likes.posts.size
    assert found.split == expected.split
    for mine, other in zip(arrays_of(found), arrays_of(expected), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_lists_are_those_of_the_network_without_the_likes_taken_back(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    make_early_unlikes(database_url)
    undone = query(database_url, "SELECT user_id, post_id FROM recs.interactions WHERE action = 'unlike'")
    assert run_here("run", **servers).returncode == 0
    found = [live_lists(redis_client, variant) for variant in ("control", "test")]
    again = query(
        database_url,
        "SELECT user_id, post_id FROM recs.interactions GROUP BY 1, 2 "
        "HAVING max(happened_at) FILTER (WHERE action = 'unlike') "
        ">= max(happened_at) FILTER (WHERE action = 'like')",
    )
    assert 0 < len(again) <= len(undone)
    for lists in found:
        assert all(post in {listed for listed, _ in lists[user]} for user, post in again)
    remove_undone(database_url, LATER)
    assert run_here("run", **servers).returncode == 0
    assert [live_lists(redis_client, variant) for variant in ("control", "test")] == found


def act(database_url: str, *actions: tuple[str, str], user: int = 1, post: int = 101) -> None:
    for action, time in actions:
        execute(
            database_url,
            f"INSERT INTO recs.interactions VALUES ({user}, {post}, '{action}', '2021-10-10 {time}Z')",
        )


@pytest.mark.parametrize(
    ("actions", "liked"),
    [
        ([("view", "12:00"), ("like", "12:01"), ("unlike", "12:02")], [False]),
        ([("view", "12:00"), ("like", "12:01"), ("unlike", "12:01")], [False]),
        ([("view", "12:00"), ("like", "12:01"), ("unlike", "12:02"), ("like", "12:03")], [True]),
        ([("view", "12:00"), ("unlike", "12:01"), ("like", "12:02")], [True]),
        ([("view", "12:00"), ("like", "12:01"), ("unlike", "12:02"), ("view", "12:03")], [False, False]),
        ([("view", "12:00"), ("like", "12:01"), ("like", "12:01"), ("unlike", "12:02")], [False]),
        ([("view", "12:00"), ("like", "12:01"), ("unlike", "13:01")], [True]),
    ],
)
def test_a_view_whose_like_was_taken_back_is_a_view_without_a_like(
    database_url: str, actions: list[tuple[str, str]], liked: list[bool]
) -> None:
    make_network(database_url, interactions=100)
    execute(database_url, "DELETE FROM recs.interactions")
    act(database_url, *actions)
    pulled = pull_database(database_url, LATER)
    until = datetime.fromisoformat("2021-10-10 13:00Z")
    groups = topics_of(pulled.network)
    before = count_history(pulled.store, pulled.network, FIRST_DAY, groups)
    examples = collect_labelled_views(pulled.store, before, until, max_rows=100, seed=1)
    assert examples.viewed.all()
    assert examples.liked.tolist() == liked
    after = count_history(pulled.store, pulled.network, until, groups)
    assert after.likes.posts.tolist() == ([0] if liked[-1] else [])


def test_what_is_taken_back_in_the_holdout_was_a_like_before_it_and_teaches_none_after_it(
    database_url: str,
) -> None:
    make_network(database_url)
    plain = load_database(database_url)
    window = plain.training[0]
    rows = np.flatnonzero(window.views.liked & window.views.viewed)
    user, post = (int(ids[rows[0]]) for ids in (window.views.users, window.views.posts))
    pair = plain.network.users.index[user], plain.network.posts.index[post]
    time = plain.split.holdout_start + timedelta(minutes=1)
    execute(
        database_url,
        f"INSERT INTO recs.interactions VALUES ({pair[0]}, {pair[1]}, 'unlike', '{time.isoformat()}')",
    )
    found = load_database(database_url)
    assert found.split.holdout_start == plain.split.holdout_start

    def labels(dataset: Dataset, windows: Any) -> list[bool]:
        views = windows[0].views
        return list(views.liked[(views.users == user) & (views.posts == post)])

    assert any(labels(found, found.training))
    assert labels(found, found.training) == labels(plain, plain.training)
    assert not any(labels(found, found.windows))
    assert found.at_holdout.likes.contain(np.array([user]), np.array([post]), len(plain.network.posts)).all()
    assert post not in found.now.likes.of(user)


def test_an_unlike_of_the_future_takes_nothing_back_yet(database_url: str) -> None:
    make_network(database_url)
    before = load_database(database_url).now.likes
    execute(
        database_url,
        "INSERT INTO recs.interactions SELECT user_id, post_id, 'unlike', timestamptz "
        f"'{LATER.isoformat()}' + interval '1 day' FROM recs.interactions WHERE action = 'like'",
    )
    np.testing.assert_array_equal(load_database(database_url).now.likes.posts, before.posts)


@contextmanager
def combined(database_url: str, night: PullResult, since: datetime, folder: Path) -> Iterator[CombinedStore]:
    settings = Settings.of(database_url=database_url, threads=1)
    with (
        connected(settings) as engine,
        snapshot(engine) as connection,
        read_recent(connection, settings, since, LATER, folder) as recent,
    ):
        yield CombinedStore(night.store, since, recent)


@pytest.mark.parametrize("night_has_unlikes", [True, False])
def test_a_refresh_counts_as_a_night_would_when_older_likes_are_taken_back(
    database_url: str, tmp_path: Path, night_has_unlikes: bool
) -> None:
    make_network(database_url)
    execute(
        database_url,
        "CREATE TABLE later AS SELECT * FROM recs.interactions WHERE false",
    )
    add_unlikes(database_url)
    condition = f"happened_at > '{HALF.isoformat()}'"
    if not night_has_unlikes:
        condition += " OR action = 'unlike'"
        execute(
            database_url,
            f"DELETE FROM recs.interactions WHERE action = 'unlike' AND happened_at <= '{HALF.isoformat()}'",
        )
    execute(
        database_url,
        f"INSERT INTO later SELECT * FROM recs.interactions WHERE {condition}",
        f"DELETE FROM recs.interactions WHERE {condition}",
    )
    night = pull_database(database_url, LATER)
    assert (night.store.taken_back > 0) == night_has_unlikes
    execute(database_url, "INSERT INTO recs.interactions SELECT * FROM later")
    fresh = pull_database(database_url, LATER)
    groups, cutoff = topics_of(fresh.network), fresh.latest
    assert cutoff is not None
    for time in (cutoff, HALF + timedelta(days=2)):
        expected = count_history(fresh.store, fresh.network, time, groups)
        with combined(database_url, night, HALF, tmp_path) as store:
            counts = store.post_counts(fresh.network.posts, time)
            with store.history(fresh.network, time, groups, counts, leave_out_viewed=False) as history:
                assert_equal_histories(history, expected)


def test_an_unlike_of_an_old_like_makes_its_user_stale_and_the_post_is_listed_again(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    make_network(database_url)
    assert run_here("run", **servers).returncode == 0
    ((post,),) = query(
        database_url,
        "SELECT post_id FROM recs.interactions WHERE user_id = 7 AND action = 'like' "
        "ORDER BY happened_at LIMIT 1",
    )
    before = live_lists(redis_client)
    assert post not in {listed for listed, _ in before[7]}
    assert "; liked at " in run_here("explain", "7", str(post), **servers).stdout
    execute(database_url, f"INSERT INTO recs.interactions VALUES (7, {post}, 'unlike', now())")
    for _ in range(2):
        records = json.loads(run_here("refresh", "--json", **servers).stdout)
        after = live_lists(redis_client)
        assert post in {listed for listed, _ in after[7]}
        assert {user for user in before if before[user] != after[user]} == {7}
    assert [record["users"] for record in records] == [0, 0]
    assert "liked at " not in run_here("explain", "7", str(post), **servers).stdout
    execute(database_url, f"INSERT INTO recs.interactions VALUES (7, {post}, 'like', now())")
    assert run_here("refresh", **servers).returncode == 0
    assert post not in {listed for listed, _ in live_lists(redis_client)[7]}
