"""Similar posts that a night publishes."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import redis

from batch.context import Stores
from batch.pipeline import run_night
from batch.postgres import open_engine
from contract.codec import decode_list
from contract.keys import Keys
from contract.manifest import Manifest
from contract.settings import Settings
from tests.support.batch import execute, live_run, make_network, query

KEYS = Keys()


@pytest.fixture
def stores(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Stores:
    """A night on a small network, with lists of five similar posts."""
    make_network(database_url)
    settings = Settings.of(
        database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path), threads=1, similar_n=5
    )
    return Stores(settings, open_engine(settings), redis_client, "tests")


def read_list(stores: Stores, manifest: Manifest, post_id: int) -> str:
    """Return the stored list of a post in a run; it must exist."""
    value = stores.redis.get(KEYS.post(manifest.run_id, post_id))
    assert isinstance(value, str)
    return value


def test_each_post_has_a_list_in_every_variant_without_itself_and_blocked_posts(stores: Stores) -> None:
    stores.redis.sadd(KEYS.blocked, 103)
    for manifest in run_night(stores, ("control", "test")):
        assert manifest.similar_posts == 40
        assert "similar" in [row["stage"] for row in manifest.stages]
        for post_id in range(101, 141):
            ranked = decode_list(read_list(stores, manifest, post_id))
            posts = [post for post, _ in ranked]
            assert 0 < len(posts) <= 5
            assert not {post_id, 103} & set(posts)
            assert set(posts) <= set(range(101, 141))
            assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_similar_posts_share_topic_and_audience(stores: Stores, database_url: str) -> None:
    topics = dict(query(database_url, "SELECT post_id, topic FROM recs.posts"))
    chance = max(list(topics.values()).count(topic) for topic in topics.values()) / len(topics)
    (manifest,) = run_night(stores, ("test",))
    pairs = [
        (post_id, other)
        for post_id in topics
        for other, _ in decode_list(read_list(stores, manifest, post_id))
    ]
    same = sum(topics[post_id] == topics[other] for post_id, other in pairs) / len(pairs)
    assert same > 2 * chance


def test_embedding_columns_of_the_posts_view_make_posts_similar(stores: Stores, database_url: str) -> None:
    execute(
        database_url,
        "UPDATE recs.posts SET text = NULL",
        "ALTER TABLE recs.posts ADD e0 double precision, ADD e1 double precision",
        "UPDATE recs.posts SET e0 = cos(post_id / 2), e1 = sin(post_id / 2)",  # equal for pairs of posts
    )
    (manifest,) = run_night(stores, ("control",))
    for post_id in range(102, 140):
        ranked = decode_list(read_list(stores, manifest, post_id))
        assert ranked[0] == (post_id ^ 1, 1.0)


def test_similar_posts_are_reproducible_and_deleted_with_their_run(stores: Stores) -> None:
    stores = replace(stores, settings=stores.settings.replace(keep_runs=1, prune_after_minutes=0))
    first, second = run_night(stores, ("test", "test"))
    values = [f"{post}\t{read_list(stores, second, post)}\n" for post in range(101, 141)]
    part = sha256("".join(values).encode())  # few posts are one part
    assert sha256(part.digest()).hexdigest() == second.similar_checksum
    assert second.similar_checksum == first.similar_checksum
    assert live_run(stores.redis, "test") == second.run_id
    assert list(stores.redis.scan_iter(KEYS.run_pattern(first.run_id))) == []


def test_similar_n_of_zero_disables_similar_posts(stores: Stores) -> None:
    stores = replace(stores, settings=stores.settings.replace(similar_n=0))
    (manifest,) = run_night(stores, ("control",))
    assert manifest.similar_posts == 0
    assert list(stores.redis.scan_iter(KEYS.post(manifest.run_id, 0)[:-1] + "*")) == []
    assert "similar" not in [row["stage"] for row in manifest.stages]
