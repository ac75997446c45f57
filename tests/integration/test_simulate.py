"""Simulated networks: sizes, reproducibility, and likes as often as their true probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import redis
import sqlalchemy as sa

from contract.errors import OvernightError
from contract.ids import IdKind, encode_id, parse_id
from demo import feed, simulate
from demo.ground_truth import MEAN_LIKE_RATE, draw_ground_truth
from demo.ids import make_ids
from demo.network import NetworkError, transaction
from demo.population import FIRST_POST_ID, FIRST_USER_ID
from tests.support.batch import live_lists, run_here

TABLES = ('"user"', "post", "feed_action", "simulation")


def query(database_url: str, sql: str) -> pd.DataFrame:
    with transaction(database_url) as connection:
        return pd.read_sql(sa.text(sql), connection)


def digests(database_url: str) -> list[str]:
    """Return one digest per table over all rows, in stored order."""
    sql = "SELECT md5(string_agg(row::text, '|' ORDER BY ctid)) AS digest FROM {} AS row"
    return [query(database_url, sql.format(table)).digest.item() for table in TABLES]


def test_equal_seeds_give_equal_rows_and_another_seed_gives_others(database_url: str) -> None:
    simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7)
    first = digests(database_url)
    simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7)
    assert digests(database_url) == first
    simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=8)
    assert all(now != before for now, before in zip(digests(database_url), first, strict=True))


def test_a_shift_changes_no_more_than_days(database_url: str) -> None:
    rows, shifted = [], []
    for days in (0, 1000, 1000):
        simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7, shift_days=days)
        shifted.append(digests(database_url))
        rows.append([query(database_url, f"SELECT * FROM {table} ORDER BY ctid") for table in TABLES])
    assert shifted[1] == shifted[2]
    unshifted, found, _ = rows
    for frame, time in zip(found[1:3], ("created_at", "time"), strict=True):
        frame[time] -= pd.Timedelta(days=1000)
    assert (found[3].pop("shift_days") - unshifted[3].pop("shift_days") == 1000).all()
    for before, after in zip(unshifted, found, strict=True):
        pd.testing.assert_frame_equal(before, after)


def test_a_night_after_a_shift_gives_equal_lists(database_url: str, redis_url: str, tmp_path: Path) -> None:
    lists = []
    for days in (0, 1000):  # to another day of the week
        simulate.simulate(database_url, users=200, posts=50, interactions=5_000, seed=7, shift_days=days)
        stores = {"database_url": database_url, "redis_url": redis_url}
        done = run_here("run", "--variant", "control", **stores, model_dir=tmp_path)
        assert done.returncode == 0, done.stderr
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            lists.append(live_lists(client))
    assert len(lists[0]) == 200
    assert lists[0] == lists[1]


def read_rows(database_url: str, ids: IdKind) -> list[pd.DataFrame]:
    """Return the three views of a network of 80 users and 40 posts, with rows in place of ids."""
    made = make_ids(ids, 80, 40, seed=7)
    user_rows = {str(user): row for user, row in made.user_rows().items()}
    post_rows = {str(post): row for post, row in made.post_rows().items()}
    views = []
    for view in ("users", "posts", "interactions"):
        rows = query(database_url, f"SELECT * FROM recs.{view}")
        for name, of_ids in (("user_id", user_rows), ("post_id", post_rows)):
            if name in rows:
                rows[name] = rows[name].map(str).map(of_ids)
        by = [name for name in ("user_id", "post_id", "happened_at") if name in rows]
        views.append(rows.sort_values(by, ignore_index=True))
    return views


@pytest.mark.parametrize("ids", [IdKind.UUID, IdKind.TEXT])
def test_ids_of_another_kind_name_the_same_network_and_posts_have_authors(
    database_url: str, ids: IdKind
) -> None:
    simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7)
    expected = read_rows(database_url, IdKind.NUMBER)
    simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7, ids=ids)
    found = read_rows(database_url, ids)
    assert expected[1].pop("author_id").isna().all()
    assert set(found[1].pop("author_id").map(str)) <= set(make_ids(ids, 80, 40, seed=7).users)
    for rows, of_numbers in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(rows, of_numbers)


def test_ids_of_text_are_valid_and_some_are_percent_encoded_in_keys() -> None:
    made = make_ids(IdKind.TEXT, 500, 500, seed=7)
    for ids in (made.users, made.posts):
        assert len(set(ids)) == 500
        assert all(parse_id(str(each), IdKind.TEXT) == each for each in ids)
        assert sum(encode_id(each) != each for each in ids) == 250
    assert made.users != make_ids(IdKind.TEXT, 500, 500, seed=8).users
    users = make_ids(IdKind.UUID, 500, 1, seed=7).users
    assert all(parse_id(str(user), IdKind.UUID) == user for user in users)


@pytest.mark.parametrize(
    "ddl", ["CREATE SCHEMA recs", "CREATE TABLE post (id bigint)", 'CREATE TABLE "user" ()']
)
def test_tables_that_the_demo_did_not_make_are_never_dropped(database_url: str, ddl: str) -> None:
    with transaction(database_url) as connection:
        connection.exec_driver_sql(ddl)
    with pytest.raises(NetworkError, match="did not make"):
        simulate.simulate(database_url, users=80, posts=40, interactions=5_000, seed=7)
    with (
        transaction(database_url) as connection,
        pytest.raises(sa.exc.ProgrammingError, match="already exists"),
    ):
        connection.exec_driver_sql(ddl)


def test_the_network_has_the_given_size_and_counters_that_agree_with_its_rows(database_url: str) -> None:
    simulate.simulate(database_url, users=300, posts=70, interactions=12_345, seed=1)
    sizes = query(
        database_url,
        """SELECT (SELECT count(*) FROM recs.users) AS users, (SELECT count(*) FROM recs.posts) AS posts,
        (SELECT count(*) FROM recs.interactions) AS interactions""",
    )
    assert sizes.iloc[0].to_dict() == {"users": 300, "posts": 70, "interactions": 12_345}
    wrong = query(
        database_url,
        """SELECT post_id FROM recs.posts LEFT JOIN (
            SELECT post_id, count(*) FILTER (WHERE action = 'view') AS views,
                count(*) FILTER (WHERE action = 'like') AS likes
            FROM recs.interactions GROUP BY 1
        ) AS counted USING (post_id)
        WHERE (view_count, like_count) IS DISTINCT FROM (coalesce(views, 0), coalesce(likes, 0))""",
    )
    assert wrong.empty


def test_a_like_follows_its_view_before_the_users_next_view(database_url: str) -> None:
    simulate.simulate(database_url, users=200, posts=50, interactions=30_000, seed=2)
    steps = query(
        database_url,
        """SELECT action, post_id, happened_at, lag(action) OVER past AS action_before,
        lag(post_id) OVER past AS post_before, happened_at - lag(happened_at) OVER past AS gap
        FROM recs.interactions WINDOW past AS (PARTITION BY user_id ORDER BY happened_at)""",
    )
    likes = steps[steps.action == "like"]
    assert len(likes) > 1_000
    assert (likes.action_before == "view").all()
    assert (likes.post_before == likes.post_id).all()
    assert likes.gap.between(pd.Timedelta("8s"), pd.Timedelta("118s")).all()
    assert (steps.gap.dropna() > pd.Timedelta(0)).all()
    assert steps.happened_at.max() <= pd.Timestamp("2021-12-29T23:59Z")
    assert steps.happened_at.min() >= pd.Timestamp("2021-09-30T00:00Z")


def test_posts_are_shown_only_once_they_exist_and_some_are_new_or_without_text(database_url: str) -> None:
    simulate.simulate(database_url, users=200, posts=100, interactions=20_000, seed=3)
    early = query(
        database_url,
        "SELECT 1 FROM recs.interactions JOIN recs.posts USING (post_id) WHERE happened_at < created_at",
    )
    assert early.empty
    posts = query(database_url, "SELECT topic, text, created_at FROM recs.posts")
    assert (posts.created_at > pd.Timestamp("2021-10-01T00:00Z")).mean() == pytest.approx(0.25, abs=0.1)
    assert 0 < posts.text.isna().sum() < 20
    assert posts.topic.nunique() == 7
    lengths = posts.text.dropna().map(len)
    assert lengths.quantile(0.9) > 3 * lengths.quantile(0.1)


def test_activity_follows_a_power_law_and_some_users_never_act(database_url: str) -> None:
    simulate.simulate(database_url, users=1_000, posts=50, interactions=50_000, seed=4)
    counts = query(
        database_url,
        """SELECT count(post_id) AS n FROM recs.users LEFT JOIN recs.interactions USING (user_id)
        GROUP BY user_id ORDER BY n DESC""",
    ).n
    assert 50 <= (counts == 0).sum() <= 200
    assert counts.iloc[:100].sum() > 0.35 * counts.sum()
    assert counts.median() < 0.7 * counts.mean()
    users = query(database_url, "SELECT gender, age, city, os, source FROM recs.users")
    assert users.isna().sum().between(1, 200).all()


def test_likes_are_as_frequent_as_their_true_probabilities(database_url: str) -> None:
    simulate.simulate(database_url, users=1_000, posts=300, interactions=200_000, seed=5)
    views = query(
        database_url,
        """SELECT user_id, post_id, extract(hour FROM happened_at AT TIME ZONE 'UTC')::int AS hour, liked
        FROM (SELECT *, lead(action, 1, '') OVER (PARTITION BY user_id ORDER BY happened_at) = 'like' AS liked
              FROM recs.interactions) AS steps WHERE action = 'view'""",
    )
    truth = draw_ground_truth(5, 1_000, 300)
    users, posts = views.user_id - FIRST_USER_ID, views.post_id - FIRST_POST_ID
    views["p"] = truth.probabilities(users.to_numpy(), posts.to_numpy(), views.hour.to_numpy())
    assert views.liked.mean() == pytest.approx(MEAN_LIKE_RATE, abs=0.01)
    for by in (pd.qcut(views.p, 20), views.hour):
        groups = views.groupby(by, observed=True)
        rate, expected, size = groups.liked.mean(), groups.p.mean(), groups.size()
        assert (abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / size)).all()
    assert views.p.quantile(0.95) > 4 * views.p.quantile(0.25)


def test_after_an_interrupted_load_the_previous_network_stays(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate.simulate(database_url, users=50, posts=20, interactions=1_000, seed=1)
    before = digests(database_url)

    draw_feed = feed.draw_feed

    def interrupted(*_: object) -> Iterator[feed.Views]:
        yield from draw_feed(draw_ground_truth(2, 60, 20), 500, seed=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(feed, "draw_feed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(database_url, users=60, posts=20, interactions=2_000, seed=2)
    assert digests(database_url) == before


def test_the_error_for_an_unreachable_database_is_one_line_without_the_password() -> None:
    with pytest.raises(OvernightError) as raised:
        simulate.simulate("postgresql://someone:hidden@127.0.0.1:1/none", 10, 10, 100, 1)
    message = str(raised.value)
    assert message.startswith("Postgres: ")
    assert "\n" not in message
    assert "hidden" not in message
