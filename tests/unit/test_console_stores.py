"""A server that accepts connections and says nothing: a page waits for it once, and shows what it has."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from psycopg2 import extensions

from batch.context import Stores
from console.readings import Readings
from console.stores import limit_replies, open_stores
from contract.settings import Settings


class SilentServer:
    """Accepts connections on a port of 127.0.0.1, counts them, and never answers."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._listening.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


@contextmanager
def stores_at(server: SilentServer) -> Iterator[Stores]:
    settings = Settings.of(
        database_url=f"postgresql://someone:secret-word@127.0.0.1:{server.port}/network",
        redis_url=f"redis://:secret-word@127.0.0.1:{server.port}/0",
    )
    with patch.multiple("console.stores", REDIS_SECONDS=0.2, CONNECT_SECONDS=1):
        stores = open_stores(settings)
        limit_replies()
        try:
            yield stores
        finally:
            extensions.set_wait_callback(None)
            stores.engine.dispose()
            stores.redis.close()


def ask_postgres(stores: Stores) -> int:
    with stores.engine.connect() as connection:
        return int(connection.execute(sa.text("SELECT 1")).scalar_one())


@pytest.mark.parametrize("server", ["Redis", "Postgres"])
def test_a_silent_server_costs_a_request_one_wait(silent: SilentServer, server: str) -> None:
    from flask import Flask

    with stores_at(silent) as stores:
        readings = Readings(stores.settings)

        def ask() -> int:
            return ask_postgres(stores) if server == "Postgres" else int(stores.redis.exists("x"))

        for requests in (1, 2):
            with Flask("a test").test_request_context("/"):
                found = [readings.read(("number", key), ask) for key in range(5)]
            assert [reading.value for reading in found] == [None] * 5
            assert all(str(reading.error).startswith(f"{server} at 127.0.0.1") for reading in found)
            assert "secret-word" not in str(found)
            assert len(silent.connections) == requests, (
                "of five readings one waited; the next request tries again"
            )


def test_what_was_read_before_is_shown_with_its_time(silent: SilentServer) -> None:
    with stores_at(silent) as stores:
        readings = Readings(stores.settings)
        first = readings.read("number", lambda: 7)
        later = readings.read("number", lambda: ask_postgres(stores))
        assert (later.value, later.at) == (7, first.at)
        assert later.error is not None
