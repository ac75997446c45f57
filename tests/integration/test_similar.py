"""Similar posts: nearest by brute force, one pair at a time, and what a night publishes."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from batch.features.factors import Factors
from batch.pipeline import Night, run_night
from batch.postgres import open_engine
from batch.similar_posts import (
    MIN_SIMILARITY,
    PostVectors,
    centre,
    find_similar_posts,
    select_taste_factors,
    standardise,
)
from contract.codec import Ranked, decode_list
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch_support import execute, live_run, make_network, query

KEYS = Keys()
NOBODY = np.empty(0, dtype=np.int64)


@pytest.fixture
def night(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Night:
    """A night on a small network, with lists of five similar posts."""
    make_network(database_url)
    settings = Settings.of(
        database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path), threads=1, similar_n=5
    )
    return Night(settings, open_engine(settings), redis_client, "tests")


def nearest(
    blocks: list[PostVectors], ids: np.ndarray, n: int, blocked: np.ndarray = NOBODY, pairs: int = 4_000_000
) -> dict[int, Ranked]:
    """Return each post's list from `similar_posts`, and check that nothing follows a pad."""
    lists: dict[int, Ranked] = {}
    for count, chunk in find_similar_posts(blocks, ids, blocked, n, pairs):
        assert count == len(chunk.post_ids)
        for post_id, places, similarities in zip(*vars(chunk).values(), strict=True):
            length = int((places >= 0).sum())
            assert (places[length:] == -1).all()
            assert np.isnan(similarities[length:]).all()
            lists[int(post_id)] = list(
                zip(ids[places[:length]].tolist(), similarities[:length].tolist(), strict=True)
            )
    return lists


def value_of(night: Night, manifest: dict[str, Any], post_id: int) -> str:
    """Return a post's list as a run stored it; it must be there."""
    value = night.redis.get(KEYS.post(manifest["run_id"], post_id))
    assert isinstance(value, str)
    return value


def slowly(blocks: list[PostVectors], ids: np.ndarray, n: int, blocked: np.ndarray) -> dict[int, Ranked]:
    """Return what `nearest` should: one pair at a time, in double precision."""
    lists: dict[int, Ranked] = {}
    for post in range(ids.size):
        lengths = [float(np.linalg.norm(block.vectors[post].astype(float))) for block in blocks]
        weight = sum(block.weight for block, length in zip(blocks, lengths, strict=True) if length > 0)
        found = []
        for other in range(ids.size):
            total = 0.0
            for block, length in zip(blocks, lengths, strict=True):
                theirs = block.vectors[other].astype(float)
                if length > 0 and theirs.any():
                    cosine = float(block.vectors[post].astype(float) @ theirs) / length
                    total += block.weight * cosine / float(np.linalg.norm(theirs))
            if weight > 0 and total / weight >= MIN_SIMILARITY and other != post and other not in blocked:
                found.append((int(ids[other]), total / weight))
        lists[int(ids[post])] = sorted(found, key=lambda pair: (-round(pair[1], 5), pair[0]))[:n]
    return lists


@pytest.mark.parametrize("pairs_at_a_time", [1, 500, 4_000_000])
def test_the_nearest_are_those_that_a_loop_over_all_pairs_finds(pairs_per_chunk: int) -> None:
    random = np.random.default_rng(7)
    ids = np.sort(random.choice(10_000, 90, replace=False)).astype(np.int64)
    likes = random.normal(size=(90, 6)).astype(np.float32)
    likes[::4] = 0
    content = random.normal(size=(90, 9)).astype(np.float32)
    content[::6] = 0
    blocks = [PostVectors(1.0, likes), PostVectors(0.5, content)]
    blocked = np.array([3, 50])
    found = nearest(blocks, ids, 7, blocked, pairs_per_chunk)
    expected = slowly(blocks, ids, 7, blocked)
    assert list(found) == list(expected)
    for post_id, ranked in expected.items():
        assert [post for post, _ in found[post_id]] == [post for post, _ in ranked]
        assert [value for _, value in found[post_id]] == pytest.approx([s for _, s in ranked], abs=2e-6)
    assert found[int(ids[0])] == []  # in neither block
    assert found[int(ids[4])] != []  # no likes: by content alone


def test_equal_similarities_go_to_the_lower_post_id() -> None:
    vectors = np.ones((200, 3), dtype=np.float32)
    ids = np.arange(1, 201)
    lists = nearest([PostVectors(1.0, vectors)], ids, 4, np.array([1]))
    assert [post for post, _ in lists[1]] == [3, 4, 5, 6]
    assert [post for post, _ in lists[4]] == [1, 3, 5, 6]
    assert all(value == 1.0 for ranked in lists.values() for _, value in ranked)


def test_a_post_that_is_the_opposite_or_unrelated_is_not_listed() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 1], [1, 1]], dtype=np.float32)
    lists = nearest([PostVectors(1.0, vectors)], np.arange(4), 3)
    assert [post for post, _ in lists[0]] == [3]
    assert lists[1] == []


def test_a_list_longer_than_there_are_posts_holds_all_the_others() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    assert [post for post, _ in nearest([PostVectors(1.0, vectors)], np.arange(3), 50)[1]] == [0, 2]
    assert nearest([PostVectors(1.0, vectors[:1])], np.arange(1), 5) == {0: []}
    assert nearest([], np.arange(3), 5) == {0: [], 1: [], 2: []}


def test_the_block_of_more_weight_decides() -> None:
    likes = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    content = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    for weight, first in ((3.0, 1), (1 / 3, 2)):
        ranked = nearest([PostVectors(weight, likes), PostVectors(1.0, content)], np.arange(3), 2)[0]
        assert ranked[0][0] == first
        assert ranked[0][1] == pytest.approx(0.75)


def test_what_is_the_same_for_all_users_or_all_posts_is_no_taste() -> None:
    taste = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    ones = np.ones((3, 1), dtype=np.float32)
    worth = np.array([[7], [8], [9]], dtype=np.float32)
    factors = Factors(np.hstack([taste, ones, worth]), np.hstack([taste, worth, ones]))
    assert (select_taste_factors(factors) == taste).all()


def test_columns_of_any_scale_count_alike_and_missing_values_as_the_mean() -> None:
    numbers = np.array([[1, 1e6, 5, 0.1], [2, 3e6, 5, 0.1], [np.nan, 2e6, np.inf, 0.1], [3, 2e6, 5, 0.1]])
    scaled = standardise(numbers)
    root = np.sqrt(1.5)
    assert scaled[:, 0] == pytest.approx([-root, 0, 0, root], abs=1e-6)
    assert scaled[:, 1] == pytest.approx([-np.sqrt(2), np.sqrt(2), 0, 0], abs=1e-6)
    assert not scaled[:, 2:].any()
    assert standardise(np.empty((4, 0))).shape == (4, 0)


def test_a_text_vector_is_measured_from_the_mean_and_a_post_without_text_has_none() -> None:
    vectors = np.array([[1, 10], [np.nan, np.nan], [3, 30]], dtype=np.float32)
    assert centre(vectors).tolist() == [[-1, -10], [0, 0], [1, 10]]
    assert not centre(np.full((2, 3), np.nan, dtype=np.float32)).any()


def test_each_post_gets_a_list_in_every_variant_and_never_itself_or_a_blocked_post(night: Night) -> None:
    night.redis.sadd(KEYS.blocked, 103)
    for manifest in run_night(night, ("control", "test")):
        assert manifest["similar_posts"] == 40
        assert "similar" in [row["stage"] for row in manifest["stages"]]
        for post_id in range(101, 141):
            ranked = decode_list(value_of(night, manifest, post_id))
            posts = [post for post, _ in ranked]
            assert 0 < len(posts) <= 5
            assert not {post_id, 103} & set(posts)
            assert set(posts) <= set(range(101, 141))
            assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_posts_of_one_topic_and_one_public_are_found_alike(night: Night, database_url: str) -> None:
    topics = dict(query(database_url, "SELECT post_id, topic FROM recs.posts"))
    chance = max(list(topics.values()).count(topic) for topic in topics.values()) / len(topics)
    (manifest,) = run_night(night, ("test",))
    pairs = [
        (post_id, other) for post_id in topics for other, _ in decode_list(value_of(night, manifest, post_id))
    ]
    same = sum(topics[post_id] == topics[other] for post_id, other in pairs) / len(pairs)
    assert same > 2 * chance


def test_embedding_columns_of_the_posts_view_make_posts_alike(night: Night, database_url: str) -> None:
    execute(
        database_url,
        "UPDATE recs.posts SET text = NULL",
        "ALTER TABLE recs.posts ADD e0 double precision, ADD e1 double precision",
        "UPDATE recs.posts SET e0 = cos(post_id / 2), e1 = sin(post_id / 2)",  # pairs of posts point one way
    )
    (manifest,) = run_night(night, ("control",))
    for post_id in range(102, 140):
        ranked = decode_list(value_of(night, manifest, post_id))
        assert ranked[0] == (post_id ^ 1, 1.0)


def test_similar_posts_are_the_same_byte_for_byte_and_go_with_their_run(night: Night) -> None:
    night.settings = night.settings.replace(keep_runs=1, prune_after_minutes=0)
    first, second = run_night(night, ("test", "test"))
    values = [f"{post}\t{value_of(night, second, post)}\n" for post in range(101, 141)]
    assert sha256("".join(values).encode()).hexdigest() == second["similar_checksum"]
    assert second["similar_checksum"] == first["similar_checksum"]
    assert live_run(night.redis, "test") == second["run_id"]
    assert list(night.redis.scan_iter(KEYS.run_pattern(first["run_id"]))) == []


def test_zero_turns_similar_posts_off(night: Night) -> None:
    night.settings = night.settings.replace(similar_n=0)
    (manifest,) = run_night(night, ("control",))
    assert manifest["similar_posts"] == 0
    assert list(night.redis.scan_iter(KEYS.post(manifest["run_id"], 0)[:-1] + "*")) == []
    assert "similar" not in [row["stage"] for row in manifest["stages"]]
