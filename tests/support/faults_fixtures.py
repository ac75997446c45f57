"""Fixtures of the fault suite; a test module loads them with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from tests.support.batch import make_network
from tests.support.batch_live import copy_database
from tests.support.faulty_nights import LENGTHS, USERS, FaultyNetwork
from tests.support.store_proxies import StoreProxies


@pytest.fixture
def network(
    postgres_server: sa.URL, redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> Iterator[FaultyNetwork]:
    """A small network after a few successful nights; prints its counts at the end."""
    for folder in ("models", "learning"):
        (tmp_path / folder).mkdir()
    with copy_database(postgres_server) as database_url:
        make_network(database_url, users=USERS)
        network = FaultyNetwork(
            database_url, redis_url, tmp_path / "models", tmp_path / "learning", redis_client
        )
        for _ in LENGTHS:
            network.make_good_night()
        yield network
    if network.counts:
        print("\n" + network.table())


@pytest.fixture
def proxies(network: FaultyNetwork) -> Iterator[StoreProxies]:
    """Proxies in front of that network's servers."""
    with StoreProxies(network.redis_url, network.database_url) as proxies:
        yield proxies
