"""A night with explored places and popular posts by segment, beside one without, on the same data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import redis
import sqlalchemy as sa

from batch.feed_rules.explore import DrawKey
from batch.feed_rules.segments import find_popular_posts
from batch.publishing.shared_keys import popular_posts
from batch.reports.describe_rules import describe_rules
from contract.codec import StoredList, decode_list, decode_stored_list
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.manifest import Manifest
from tests.integration.test_unlikes import add_unlikes
from tests.support.batch import execute, live_run, make_network, query, run_here
from tests.support.batch_live import check_error, copy_database
from tests.support.evaluation import load_database
from tests.support.explore import hash_pairs

KEYS = Keys()
EVERY, MAX_VIEWS = 4, 50
RULES = {
    "OVERNIGHT_EXPLORE_PLACES": str(EVERY),
    "OVERNIGHT_EXPLORE_MAX_VIEWS": str(MAX_VIEWS),
    "OVERNIGHT_POPULAR_BY": "city",
    "OVERNIGHT_TOP_N": "20",
}
LIKES_BY_CITY = """
    SELECT city, post_id, count(*) FROM recs.interactions JOIN recs.users USING (user_id)
    WHERE action = 'like' GROUP BY 1, 2
"""


@dataclass(frozen=True)
class Nights:
    """A network with two nights of each variant: one without rules, and then one with them."""

    servers: dict[str, Any]
    client: redis.Redis
    before: dict[str, str]
    runs: dict[str, str]

    def lists(self, run_id: str) -> dict[int, StoredList]:
        """Return the list of each user in a run."""
        start = KEYS.user(run_id, 0).removesuffix("0")
        names = sorted(self.client.scan_iter(match=f"{start}*", count=5_000))
        values: Any = self.client.mget(names)
        return {
            int(name.removeprefix(start)): decode_stored_list(value)
            for name, value in zip(names, values, strict=True)
        }

    def manifest(self, run_id: str) -> dict[str, Any]:
        """Return the manifest of a run."""
        found: dict[str, Any] = json.loads(str(self.client.get(KEYS.manifest(run_id))))
        return found

    def run(self, *arguments: str, **environment: str) -> Any:
        """Run the command line with the rules."""
        return run_here(*arguments, **(self.servers | RULES | environment))


def live_runs(client: redis.Redis) -> dict[str, str]:
    return {variant: str(live_run(client, variant)) for variant in VARIANTS}


@pytest.fixture(scope="module")
def nights(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nights]:
    with (
        copy_database(postgres_server) as database_url,
        redis.Redis.from_url(valkey_server, decode_responses=True) as client,
    ):
        make_network(database_url)
        folder = tmp_path_factory.mktemp("models")
        servers: dict[str, Any] = {
            "database_url": database_url, "redis_url": valkey_server, "model_dir": folder,
        }  # fmt: skip
        assert run_here("run", **servers, OVERNIGHT_TOP_N="20").returncode == 0
        before = live_runs(client)
        done = run_here("run", **servers, **RULES)
        assert done.returncode == 0, done.stderr
        yield Nights(servers, client, before, live_runs(client))


def read_known(database_url: str) -> tuple[set[int], dict[int, set[int]]]:
    """Return the posts that nobody knows yet, and what each user has liked."""
    posts = "SELECT post_id FROM recs.posts p WHERE (SELECT count(*) FROM recs.interactions i WHERE {}) < {}"
    views = "i.post_id = p.post_id AND action = 'view'"
    unknown = {post for (post,) in query(database_url, posts.format(views, MAX_VIEWS))}
    liked: dict[int, set[int]] = defaultdict(set)
    for user, post in query(
        database_url, "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like'"
    ):
        liked[user].add(post)
    return unknown, liked


def test_explored_places_have_their_probability_and_the_rest_of_a_list_is_that_of_a_night_without(
    nights: Nights,
) -> None:
    unknown, liked = read_known(nights.servers["database_url"])
    assert 10 < len(unknown) < 30
    drawn = defaultdict(int)
    for variant in VARIANTS:
        before = nights.lists(nights.before[variant])
        for user, now in nights.lists(nights.runs[variant]).items():
            posts = [post for post, _ in now.posts]
            scores = dict(before[user].posts)
            assert before[user].probabilities == {}
            assert len(set(posts)) == len(before[user].posts) == 20
            for index in range(20):
                pool = unknown - liked[user] - set(posts[:index])
                if (index + 1) % EVERY or not pool:
                    assert index not in now.probabilities
                    continue
                post, score = now.posts[index]
                assert post in pool
                assert now.probabilities[index] == float(f"{1 / len(pool):.6g}")
                assert score == scores.get(post, min(scores.values()))
                drawn[post] += 1
            chosen = {posts[index] for index in now.probabilities}
            kept = [row for row in before[user].posts if row[0] not in chosen]
            assert [row for row in now.posts if row[0] not in chosen] == kept[: 20 - len(chosen)]
    assert set(drawn) == unknown


def test_the_gate_and_the_record_look_at_the_lists_before_the_draw(nights: Nights) -> None:
    for variant in VARIANTS:
        manifest = nights.manifest(nights.runs[variant])
        assert {rule["rule"]: rule["value"] for rule in manifest["gate"]}["overlap"] > 0.95
        before = nights.manifest(nights.before[variant])
        for name in ("warnings", "short_lists", "model_digest", "some_users"):
            assert manifest.get(name) == before.get(name)
        assert manifest["explored"] == {
            "posts": len(read_known(nights.servers["database_url"])[0]),
            "places": sum(len(each.probabilities) for each in nights.lists(nights.runs[variant]).values()),
        }
        described = describe_rules(Manifest.from_record(manifest))
        assert f"explored places, one of {EVERY}: {manifest['explored']['places']} places" in described[1]
        assert described[2] == "learnt from 0 views of explored places with a weight"
        assert described[3] == "popular posts by city: 3 values have their own"
        assert described[4].startswith("cost of the rule explore: likes found in the first 20 ")
        cost = manifest["metrics"]["rule_costs"]["explore"]
        assert cost["users"] > 0
        assert "rule_costs" not in before["metrics"]
        assert "explored" not in before
        assert "weighted_views" not in before


def test_each_city_has_the_posts_that_its_users_like_most(nights: Nights) -> None:
    database_url = nights.servers["database_url"]
    likes: dict[str, dict[int, int]] = defaultdict(dict)
    for city, post, count in query(database_url, LIKES_BY_CITY):
        likes[city][post] = count
    for variant, run_id in nights.runs.items():
        found: Any = nights.client.hgetall(KEYS.segments(run_id))
        assert set(found) == set(likes)
        for city, value in found.items():
            ranked = decode_list(value)
            order = sorted(likes[city], key=lambda post: (-likes[city][post], post))
            expected = [(post, likes[city][post]) for post in order]
            assert ranked[: len(expected)] == expected[:20]
            assert len(ranked) == 20
        manifest = nights.manifest(run_id)
        assert (manifest["popular_by"], manifest["segments"]) == ("city", 3)
        assert "popular_by" not in nights.manifest(nights.before[variant])
        assert not nights.client.exists(KEYS.segments(nights.before[variant]))


def test_a_segment_of_all_users_has_the_popular_list(database_url: str) -> None:
    make_network(database_url)
    execute(
        database_url,
        "ALTER TABLE recs.users ADD everyone boolean DEFAULT true",
        """
        INSERT INTO recs.interactions
        SELECT user_id, post_id, action, happened_at + interval '1 hour' FROM recs.interactions
        WHERE action = 'like' AND user_id % 3 = 0
        """,
    )
    add_unlikes(database_url)
    dataset = load_database(database_url)
    network, excluded = dataset.network, np.array([2, 3])
    found = find_popular_posts(network, dataset.now, excluded, name="everyone", n=20)
    popular = popular_posts(dataset.now.post_counts["likes"].to_numpy(), network.post_ids, excluded, 20)
    assert list(found) == ["true"]
    assert [(network.post_ids[row], likes) for row, likes in found["true"]] == popular


def test_a_column_that_is_not_there_ends_the_night_in_one_line(nights: Nights) -> None:
    done = nights.run("run", OVERNIGHT_POPULAR_BY="country")
    check_error(done, 1, "recs.users has no column country to find popular posts by")
    assert live_runs(nights.client) == nights.runs


def test_the_same_night_gives_the_same_draws_whatever_the_chunks(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.scoring.score.users_per_chunk", lambda *_: 7)
    checksum = nights.manifest(nights.runs["test"])["checksum"]
    for environment, equal in (({"OVERNIGHT_THREADS": "2"}, True), ({"OVERNIGHT_SEED": "43"}, False)):
        done = nights.run("run", "--variant", "test", **environment)
        assert done.returncode == 0, done.stderr
        run_id = live_runs(nights.client)["test"]
        assert (nights.manifest(run_id)["checksum"] == checksum) is equal
        assert nights.run("rollback", "test").returncode == 0


def test_explored_places_hold_to_what_is_left_out_and_come_after_the_limit_of_topics(nights: Nights) -> None:
    database_url = nights.servers["database_url"]
    rules = {"OVERNIGHT_LEAVE_OUT": "viewed", "OVERNIGHT_MOST_PER_TOPIC": "1", "OVERNIGHT_TOPIC_WINDOW": "4"}
    assert nights.run("run", "--variant", "test", **rules).returncode == 0
    run_id, seen = live_runs(nights.client)["test"], defaultdict[int, set[int]](set)
    for user, post in query(database_url, "SELECT DISTINCT user_id, post_id FROM recs.interactions"):
        seen[user].add(post)
    topics = dict(query(database_url, "SELECT post_id, topic FROM recs.posts"))
    unknown, _ = read_known(database_url)
    for user, stored in nights.lists(run_id).items():
        posts = [post for post, _ in stored.posts]
        assert not seen[user] & set(posts)
        assert len({topics[post] for post in posts[: EVERY - 1]}) == EVERY - 1  # of four topics
        for index, probability in stored.probabilities.items():
            pool = unknown - seen[user] - set(posts[:index])
            assert probability == float(f"{1 / len(pool):.6g}")
    assert nights.manifest(run_id)["explored"]["places"] > 100
    assert nights.run("rollback", "test").returncode == 0


def test_a_night_says_what_it_learnt_from_explored_places_and_warns_if_nobody_records_them(
    nights: Nights,
) -> None:
    database_url = nights.servers["database_url"]
    served = "user_id, post_id::text, 'test', 'R', 5, 0.25, happened_at - interval '1 hour', 'recs'"
    last = "FROM recs.interactions WHERE action = 'view' ORDER BY happened_at DESC LIMIT 3"
    execute(database_url, f"INSERT INTO recs.explored SELECT {served} {last}")
    rules = {"OVERNIGHT_EXPOSURES": "off", "OVERNIGHT_RECIPE": "liked-if-viewed"}
    done = nights.run("run", "--variant", "test", **rules)
    assert done.returncode == 0, done.stderr
    assert "3 views of explored places have a weight in training" in done.stderr
    run_id, warning = live_runs(nights.client)["test"], "nothing is learnt from explored places"
    manifest = nights.manifest(run_id)
    assert manifest["weighted_views"] == 3
    assert [warning in each for each in manifest["warnings"]] == [True]
    assert warning in done.stderr
    assert warning in nights.run("doctor").stdout
    shown = nights.run("show", run_id).stdout
    assert warning in shown
    assert "learnt from 3 views of explored places with a weight" in shown
    assert nights.run("rollback", "test").returncode == 0
    execute(database_url, "DELETE FROM recs.explored")


def test_a_refresh_draws_by_the_key_of_the_night_and_a_pruned_run_leaves_no_key(nights: Nights) -> None:
    run_id, database_url = nights.runs["control"], nights.servers["database_url"]
    before, now = nights.lists(run_id), datetime.now(UTC).isoformat()
    first = {user: stored.posts[0][0] for user, stored in before.items() if user <= 30}
    values = ", ".join(f"({user}, {post}, 'like', '{now}')" for user, post in first.items())
    execute(database_url, f"INSERT INTO recs.interactions VALUES {values}")
    assert nights.run("refresh").returncode == 0
    key = DrawKey(42, "control", datetime.fromisoformat(nights.manifest(run_id)["cutoff"]))
    unknown, liked = read_known(database_url)
    kept = drawn = 0
    for user, stored in nights.lists(run_id).items():
        if user > 30:
            assert stored == before[user]
            continue
        posts = [post for post, _ in stored.posts]
        assert first[user] not in posts
        hashes = hash_pairs(key, user, unknown)
        for index in stored.probabilities:
            assert posts[index] == min(
                unknown - liked[user] - set(posts[:index]), key=lambda post: hashes[post]
            )
            kept += posts[index] == before[user].posts[index][0]
            drawn += 1
    assert 0.6 * drawn < kept < drawn  # the order of the other posts changes what is higher in a list
    for _ in range(2):
        assert nights.run("run", OVERNIGHT_KEEP_RUNS="1", OVERNIGHT_PRUNE_AFTER_MINUTES="0").returncode == 0
    assert list(nights.client.scan_iter(match=KEYS.run_pattern(run_id))) == []
