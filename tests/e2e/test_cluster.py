"""A Redis Cluster of three real servers: written to, made live, served from, cleared away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from batch import redis_client
from batch.publishing.memory import check_memory
from contract.errors import SettingsError, StoreError
from contract.settings import Settings
from tests.e2e.test_redis_users import LINES
from tests.support.batch import KEYS, live_run, make_network, run_here
from tests.support.cluster import cluster, keys_a_node
from tests.support.random_lists import RUN_ID, network_of, random_lists, sample_of
from tests.support.serving import ask, publish, recommend, serving


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with cluster() as url:
        yield url


@pytest.fixture
def client(cluster_url: str) -> Iterator[Any]:
    """A client of the emptied cluster, as the batch opens it."""
    with redis_client.connected(settings_of(cluster_url)) as client:
        client.flushall()
        yield client


def settings_of(url: str) -> Settings:
    return Settings.of(redis_url=url, redis_cluster=True)


def test_two_nights_in_a_cluster_go_live_are_served_and_cleared_away(
    client: Any, cluster_url: str, database_url: str, tmp_path: Path
) -> None:
    make_network(database_url, users=300)
    servers: dict[str, Any] = {
        "database_url": database_url, "redis_url": cluster_url, "model_dir": tmp_path,
        "OVERNIGHT_REDIS_CLUSTER": "on", "OVERNIGHT_KEEP_RUNS": "1", "OVERNIGHT_PRUNE_AFTER_MINUTES": "0",
    }  # fmt: skip
    runs = []
    for _ in range(2):
        done = run_here("run", "--variant", "control", **servers)
        assert done.returncode == 0, done.stderr
        runs.append(live_run(client))
    assert runs[0] != runs[1]
    assert redis_client.runs_in(client, KEYS) == {runs[1]}
    of_run = list(client.scan_iter(match=KEYS.run_pattern(str(runs[1]))))
    assert len(of_run) == 300 + 40 + 2  # users, posts, popular and manifest
    assert list(client.scan_iter(match=KEYS.run_pattern(str(runs[0])))) == []
    assert min(keys_a_node(client)) > 50
    with serving(settings_of(cluster_url)) as app:
        answers = [recommend(app, user) for user in range(1, 301, 30)]
        assert {answer["source"] for answer in answers} == {"personal"}
        assert {answer["run_id"] for answer in answers} == {runs[1]}
        assert ask(app, "/posts/popular")["stale"] is False
    assert run_here("lookup", "7", **servers).returncode == 0
    assert run_here("experiment", "drain", **servers).stdout == "10 exposures moved to recs.exposures\n"


def test_a_cluster_is_served_from_by_the_user_that_may_only_read(client: Any, cluster_url: str) -> None:
    publish(client)
    (rights,) = [line.split()[1:] for line in LINES if line.startswith("user serving ")]
    for node in client.get_primaries():
        client.get_redis_connection(node).execute_command("ACL", "SETUSER", *rights)
    url = cluster_url.replace("redis://", "redis://serving:REDIS_SERVING_PASSWORD@")
    with serving(settings_of(url).replace(top_n=12)) as app:
        answers = [recommend(app, 42), recommend(app, 43)]
        assert [answer["source"] for answer in answers] == ["personal", "popular"]
        assert [answer["stale"] for answer in answers] == [False, False]
    assert [entry["object"] for node in client.get_primaries()
            for entry in client.get_redis_connection(node).acl_log()] == []  # fmt: skip


def test_each_node_must_have_room_for_its_share(client: Any) -> None:
    network = network_of(900, 40)
    sample = sample_of(random_lists(900, 40, 50), network)
    forecast = check_memory(client, KEYS, RUN_ID, sample, network, similar_n=0)
    full = dict(client.info("memory", target_nodes=client.get_primaries()[0]))
    for share, fits in ((0.3, False), (0.4, True)):
        room = int(forecast.total_bytes * share)
        said = full | {"maxmemory": full["used_memory"] + room, "mem_not_counted_for_evict": 0}
        with patch.object(client, "info", lambda *_, said=said, **__: said):
            if fits:
                check_memory(client, KEYS, RUN_ID, sample, network, similar_n=0)
                continue
            with pytest.raises(StoreError, match=r"Redis at 127.0.0.1:\d+ has 0\.\d MiB free of maxmemory"):
                check_memory(client, KEYS, RUN_ID, sample, network, similar_n=0)


def test_a_cluster_and_a_single_server_are_told_apart(cluster_url: str, redis_url: str) -> None:
    def read(keys_at_a_time: int) -> None:
        with redis_client.connected(Settings.of(redis_url=cluster_url)) as client:
            for block in redis_client.blocks((f"key {number}" for number in range(50)), keys_at_a_time):
                redis_client.get_many(client, block)

    for keys_at_a_time in (1, 10):
        with pytest.raises(StoreError, match="it is a Redis Cluster; set OVERNIGHT_REDIS_CLUSTER=on"):
            read(keys_at_a_time)
    with pytest.raises(StoreError, match="set OVERNIGHT_REDIS_CLUSTER=off"):
        redis_client.open_redis(settings_of(redis_url))
    with pytest.raises(SettingsError, match="REDIS_URL cannot be used"):
        redis_client.open_redis(settings_of(f"{cluster_url}?nonsense=1"))


def test_a_cluster_that_is_out_of_reach_is_told_in_one_line() -> None:
    with pytest.raises(StoreError, match=r"^Redis at 127\.0\.0\.1: [^\n]*$"):
        redis_client.open_redis(settings_of("redis://:s3cret@127.0.0.1:1/0"))
    with serving(settings_of("redis://127.0.0.1:1/0")) as app:
        ask(app, "/posts/popular", 503)
