"""Networks that are odd but whole: the night must hold for them, and serve everybody."""

from __future__ import annotations

import json
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import redis

from batch.loading.cohorts import frequent_topics
from batch.loading.history import count_history
from contract.codec import Ranked
from tests.support.batch import (
    DAYS,
    FIRST_DAY,
    execute,
    live_lists,
    live_run,
    make_network,
    query,
    run_here,
    topics_of,
)
from tests.support.evaluation import pull_database
from tests.support.serving import posts_of, recommend, serving, settings_for

USERS, POSTS = 60, 40
BIG = 2**53

ODD_COLUMNS = {
    'he said "hi"': "text DEFAULT 'hi'",
    "100 % sure": "numeric",
    ":colon a:b": "boolean",
    "naïve 名前": "text DEFAULT 'ß'",
    "all null": "text",
    "no number": "real",
    "Select": "smallint",
    "%(cutoff)s": "text DEFAULT 'x'",
    "b\\s": "double precision",
}


class SmallNetwork:
    """The small network, and the means to run nights over it."""

    def __init__(self, database_url: str, redis_client: redis.Redis, redis_url: str, model_dir: Path) -> None:
        self.database_url = database_url
        self.redis_client = redis_client
        self.redis_url = redis_url
        self.model_dir = model_dir
        make_network(database_url, USERS, POSTS)

    def change(self, *statements: str) -> None:
        """Change the network."""
        execute(self.database_url, *statements)

    def run(self, variant: str = "control") -> dict[int, Ranked]:
        """Run the night, which must succeed; return control's lists, one for every user."""
        servers: Any = {"database_url": self.database_url, "redis_url": self.redis_url}
        done = run_here("run", "--variant", variant, model_dir=self.model_dir, **servers)
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        lists = live_lists(self.redis_client)
        users = query(self.database_url, "SELECT user_id FROM recs.users")
        assert sorted(lists) == sorted(user for (user,) in users)
        return lists

    def manifest(self) -> Any:
        """Return the manifest of control's live run, as the ledger has it."""
        live = query(self.database_url, "SELECT manifest FROM recs.runs WHERE state = 'live'")
        return live[0][0]

    def show(self) -> str:
        """Return what `show` prints of control's live run."""
        servers: Any = {"database_url": self.database_url, "redis_url": self.redis_url}
        return run_here("show", self.manifest()["run_id"], model_dir=self.model_dir, **servers).stdout

    def columns(self) -> Any:
        """Return the columns that control's live model knows."""
        run_id = live_run(self.redis_client)
        assert run_id is not None
        return json.loads((self.model_dir / run_id / "model.json").read_text())


@pytest.fixture
def night(database_url: str, redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> SmallNetwork:
    return SmallNetwork(database_url, redis_client, redis_url, tmp_path)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _posts(ranked: Ranked) -> list[int]:
    return [post for post, _ in ranked]


def _liked(night: SmallNetwork) -> dict[int, set[int]]:
    liked: dict[int, set[int]] = {}
    for user, post in query(
        night.database_url, "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like'"
    ):
        liked.setdefault(user, set()).add(post)
    return liked


def test_interactions_that_cannot_be_used_are_counted_reported_and_change_no_list(
    night: SmallNetwork,
) -> None:
    before = night.run()
    assert set(night.manifest()["left_out"].values()) == {0}
    night.change(
        """INSERT INTO recs.interactions VALUES
            (1, 900, 'like', '2021-10-09'), (2, 901, 'like', '2021-10-09'), (3, NULL, 'like', '2021-10-09'),
            (1, 101, 'share', '2021-10-09'), (1, 101, 'VIEW', '2021-10-09'), (1, 101, NULL, '2021-10-09'),
            (4, 101, 'view', now() + interval '1 hour'), (4, 102, 'view', 'infinity'),
            (5, 101, 'like', NULL), (5, 102, 'view', NULL), (NULL, NULL, NULL, NULL)"""
    )
    assert night.run() == before
    night.change(
        """INSERT INTO recs.interactions VALUES
            (-7, 101, 'view', '2021-10-09'), (900, 900, 'like', '2021-10-09'),
            (NULL, 101, 'view', '2021-10-09'), (901, 102, 'share', '2021-10-09')"""
    )
    night.run()
    left_out = {
        "of_unknown_users": 4,
        "of_unknown_posts": 3,
        "with_unknown_actions": 3,
        "in_the_future": 2,
        "without_a_time": 3,
    }
    assert night.manifest()["left_out"] == left_out
    assert ", ".join(f"{name} {count}" for name, count in left_out.items()) in night.log


def test_a_network_that_logs_no_views_works(night: SmallNetwork) -> None:
    night.change("DELETE FROM recs.interactions WHERE action = 'view'")
    lists = night.run("all")
    liked = _liked(night)
    every = set(range(101, 101 + POSTS))
    for user, ranked in lists.items():
        assert set(_posts(ranked)) == every - liked.get(user, set())
    assert night.manifest()["metrics"]["protocol"] == "likes beside sampled negatives"


def test_a_network_that_began_to_log_views_today_is_served_as_one_without_views(night: SmallNetwork) -> None:
    night.change("DELETE FROM recs.interactions WHERE action = 'view' AND happened_at < '2021-10-30 21:00Z'")
    night.run()
    manifest = night.manifest()
    assert manifest["recipe"]["name"] == "liked"
    assert manifest["metrics"]["protocol"] == "likes beside sampled negatives"
    assert manifest["metrics"]["holdout"]["from"] < "2021-10-28"
    split = manifest["metrics"]["split"]
    assert split["labels"] == "likes"
    assert split["training_likes"] > 100
    assert split["holdout_users"] >= 30
    (warning,) = manifest["warnings"]
    assert warning.startswith(f"the logged views are not used yet: {split['why']}. ")
    assert night.log.count(f"WARNING batch: run {manifest['run_id']}: {warning}") == 1
    assert f"\nWARNING: {warning}\n" in night.show()


def test_a_forest_without_a_split_is_reported_and_lists_are_ordered_by_likes(night: SmallNetwork) -> None:
    night.change(
        "DELETE FROM recs.interactions",
        """INSERT INTO recs.interactions SELECT 1 + number * 7 % 60, 101 + number * 3 % 40, 'view',
            timestamptz '2021-10-01' + number * interval '4 hours' FROM generate_series(1, 154) number""",
        """INSERT INTO recs.interactions
            SELECT user_id, 120 + user_id % 6, 'like', happened_at + interval '1 minute'
            FROM recs.interactions WHERE user_id % 7 = 1""",
    )
    lists = night.run()
    likes = dict(query(night.database_url, "SELECT post_id, count(*) FROM recs.interactions "
                       "WHERE action = 'like' GROUP BY 1"))  # fmt: skip
    by_likes = sorted(range(101, 101 + POSTS), key=lambda post: (-likes.get(post, 0), post))
    assert by_likes[0] != 101
    liked = _liked(night)
    for user, ranked in lists.items():
        assert _posts(ranked) == [post for post in by_likes if post not in liked.get(user, set())]
        assert len({score for _, score in ranked}) == 1
    manifest, shown = night.manifest(), night.show()
    shortage, split, order = manifest["warnings"]
    assert shortage.startswith("too little data: ")
    assert split.startswith("the forest has no split: it learnt nothing from the examples. ")
    assert order.startswith(f"all {USERS} lists have the posts in the same order")
    for warning in manifest["warnings"]:
        assert f"WARNING batch: run {manifest['run_id']}: {warning}" in night.log
        assert f"\nWARNING: {warning}\n" in shown
        assert warning in unescape((night.model_dir / manifest["run_id"] / "report.html").read_text())


def test_whoever_liked_everything_nearly_everything_or_nothing_is_served(night: SmallNetwork) -> None:
    night.change(
        "INSERT INTO recs.interactions SELECT 1, post_id, 'like', '2021-10-20' FROM recs.posts",
        "INSERT INTO recs.interactions SELECT 2, post_id, 'like', '2021-10-20' FROM recs.posts "
        "WHERE post_id NOT IN (105, 120, 133)",
        "DELETE FROM recs.interactions WHERE user_id = 2 AND post_id IN (105, 120, 133)",
        "INSERT INTO recs.users VALUES (61, NULL, NULL, NULL), (62, 30, 'Oslo', true)",
    )
    lists = night.run()
    assert lists[1] == []
    assert sorted(_posts(lists[2])) == [105, 120, 133]
    assert sorted(_posts(lists[61])) == sorted(_posts(lists[62])) == list(range(101, 101 + POSTS))
    assert night.manifest()["empty_lists"] == 1
    with serving(settings_for(night.redis_url)) as app:
        answer = recommend(app, 1)
        assert (answer["source"], len(answer["recommendations"])) == ("popular", 5)
        answer = recommend(app, 2)
        assert (answer["source"], posts_of(answer)) == ("personal", _posts(lists[2]))
        assert recommend(app, 62)["source"] == "personal"


def test_views_with_the_required_columns_alone_are_enough(night: SmallNetwork) -> None:
    night.change(
        "ALTER TABLE recs.users DROP age, DROP city, DROP subscribed",
        "ALTER TABLE recs.posts DROP topic, DROP text, DROP created_at",
    )
    night.run("all")
    assert night.redis_client.hget("recs:posts", "101") == '{"text":"","topic":null}'


def test_missing_values_odd_names_and_odd_numbers_are_taken(night: SmallNetwork) -> None:
    added = ", ".join(f"ADD {_quoted(name)} {kind}" for name, kind in ODD_COLUMNS.items())
    night.change(
        f"ALTER TABLE recs.users {added}",
        "UPDATE recs.users SET age = NULL, city = NULL, subscribed = NULL WHERE user_id % 3 = 0",
        "UPDATE recs.users SET \"100 % sure\" = 'NaN', \"b\\s\" = 'Infinity' WHERE user_id % 4 = 0",
        'UPDATE recs.users SET "100 % sure" = 12.5, "b\\s" = \'-1e300\' WHERE user_id % 4 = 1',
        "UPDATE recs.posts SET topic = NULL, text = NULL, created_at = NULL WHERE post_id % 3 = 0",
        "UPDATE recs.posts SET topic = '', text = '' WHERE post_id % 7 = 0",
        "UPDATE recs.posts SET topic = E'NA, \"nan\"\\n\\\\N' WHERE post_id % 5 = 0",
        "ALTER TABLE recs.posts ADD like_count bigint DEFAULT -1, ADD view_count integer, ADD user_id bigint",
        "UPDATE recs.posts SET view_count = 3, user_id = post_id % 2 WHERE post_id % 2 = 0",
    )
    night.run("all")
    columns = night.columns()
    assert list(columns["users"]) == ["age", "city", "subscribed", *ODD_COLUMNS]
    assert columns["users"]['he said "hi"'] == ["hi"]
    assert columns["users"]["all null"] == []
    assert list(columns["posts"]) == ["topic", "user_id"]


def test_likes_and_views_of_any_topic_are_counted_under_it(night: SmallNetwork) -> None:
    night.change(
        "UPDATE recs.posts SET topic = E'NA, \"nan\"\\r\\n\\\\N' WHERE post_id % 5 = 0",
        "UPDATE recs.posts SET topic = '' WHERE post_id % 5 = 1",
        "UPDATE recs.posts SET topic = NULL WHERE post_id % 5 = 2",
        "UPDATE recs.posts SET topic = '7' WHERE post_id % 5 = 3",
    )
    cutoff = FIRST_DAY + timedelta(days=DAYS)
    pulled = pull_database(night.database_url, cutoff)
    network = pulled.network
    history = count_history(pulled.store, network, cutoff, topics_of(network))
    counted = query(
        night.database_url,
        """SELECT nullif(topic, ''), count(*) FILTER (WHERE action = 'view'),
                  count(*) FILTER (WHERE action = 'like')
           FROM recs.interactions JOIN recs.posts USING (post_id) GROUP BY 1""",
    )
    found = zip(
        [*frequent_topics(network.posts), None],
        *history.of_groups["topic"].totals(),
        strict=True,
    )
    assert set(found) == set(counted)


def test_columns_of_other_types_are_left_out_with_a_warning(night: SmallNetwork) -> None:
    kinds = {
        "created_at": "timestamp with time zone",
        "post_id": "uuid",
        "tags": "text[]",
        "profile": "jsonb",
    }
    added = ", ".join(f"ADD {name} {kind}" for name, kind in kinds.items())
    night.change(f"ALTER TABLE recs.users {added}")
    night.run()
    for column, kind in kinds.items():
        assert f"WARNING batch: recs.users.{column} is of type {kind} and is left out; cast it" in night.log
    assert list(night.columns()["users"]) == ["age", "city", "subscribed"]


def test_a_users_column_of_any_name_is_read_by_its_type(night: SmallNetwork) -> None:
    night.change("ALTER TABLE recs.users ADD created_at text DEFAULT 'long ago', ADD post_id text")
    night.run()
    assert night.columns()["users"]["created_at"] == ["long ago"]


@pytest.mark.parametrize("shift", [BIG, -30], ids=["beyond 2^53", "negative"])
def test_ids_of_any_size_and_sign_are_kept_to_the_last_digit(night: SmallNetwork, shift: int) -> None:
    before = night.run()
    night.change(
        f"UPDATE recs.users SET user_id = user_id + {shift}",
        f"UPDATE recs.posts SET post_id = post_id + {shift}",
        f"UPDATE recs.interactions SET user_id = user_id + {shift}, post_id = post_id + {shift}",
        "INSERT INTO recs.interactions VALUES (NULL, NULL, 'like', '2021-10-09')",
    )
    shifted = {
        user + shift: [(post + shift, score) for post, score in ranked] for user, ranked in before.items()
    }
    assert night.run() == shifted


def test_views_of_unknown_posts_do_not_take_the_holdout_for_themselves(night: SmallNetwork) -> None:
    night.change("UPDATE recs.interactions SET post_id = -1 WHERE happened_at > '2021-10-22'")
    night.run("all")
    metrics = night.manifest()["metrics"]
    assert metrics["holdout"]["from"] < "2021-10-22"
    assert metrics["model"]["hitrate_at_5"] > 0


def test_a_blocked_member_that_is_no_posts_id_does_not_stop_the_night(night: SmallNetwork) -> None:
    night.redis_client.sadd("recs:blocked", "105", "not a post", "-3")
    lists = night.run()
    assert all(105 not in _posts(ranked) for ranked in lists.values())
