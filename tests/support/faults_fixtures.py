"""Fixtures of the fault suite; a test module takes them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from tests.support.batch import make_network
from tests.support.batch_live import copy_database
from tests.support.faulty_nights import LENGTHS, USERS, Place
from tests.support.wires import Wires


@pytest.fixture
def place(
    postgres_server: sa.URL, redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> Iterator[Place]:
    """A small network with a few good nights behind it; what was counted is printed in the end."""
    for folder in ("models", "learning"):
        (tmp_path / folder).mkdir()
    with copy_database(postgres_server) as database_url:
        make_network(database_url, users=USERS)
        place = Place(database_url, redis_url, tmp_path / "models", tmp_path / "learning", redis_client)
        for _ in LENGTHS:
            place.make_good_night()
        yield place
    if place.counts:
        print("\n" + place.table())


@pytest.fixture
def wires(place: Place) -> Iterator[Wires]:
    """The way to that network's servers on which commands can be struck."""
    with Wires(place.redis_url, place.database_url) as wires:
        yield wires
