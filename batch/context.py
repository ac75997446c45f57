"""Stores: the connections and settings that a command works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
import sqlalchemy as sa

from batch import postgres, redis_client
from batch.executors import Executor
from batch.executors.choose import make_executor
from contract.keys import Keys
from contract.settings import Settings


@dataclass(frozen=True)
class Stores:
    """Settings, Postgres, Redis and who acts; entry points open it with `open_stores`.

    `actor` is what the ledger records: command, user, host and process, see `runs.ledger.actor`.
    """

    settings: Settings
    engine: sa.Engine
    redis: redis.Redis
    actor: str

    @property
    def keys(self) -> Keys:
        """Key names under the prefix of the settings."""
        return Keys(self.settings.stores.key_prefix)

    @property
    def executor(self) -> Executor:
        """Where tasks run: threads of this process, or the workers that OVERNIGHT_DASK names."""
        return make_executor(self.settings, self.redis)

    def describe(self) -> str:
        """Return which servers are used, without users and passwords."""
        return f"{postgres.describe(self.settings)}; {redis_client.describe(self.settings)}"

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Turn errors of Postgres and Redis into one line that shows no secret.

        Raises
        ------
        SourceError, StoreError
            In place of the libraries' errors.
        """
        with postgres.readable_errors(self.settings), redis_client.readable_errors(self.settings):
            yield


@contextmanager
def open_stores(settings: Settings, actor: str, *, interactive: bool = False) -> Iterator[Stores]:
    """Lend the connections to Postgres and Redis, and close them.

    `interactive` commands wait for Redis for a few seconds only: see `redis_client.open_redis`.

    Raises
    ------
    SettingsError, SourceError, StoreError
        As `postgres.connected` and `redis_client.connected` do.
    """
    with (
        postgres.connected(settings, f"overnight {actor}") as engine,
        redis_client.connected(settings, interactive=interactive) as client,
    ):
        yield Stores(settings, engine, client, actor)
