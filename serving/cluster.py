"""A Redis Cluster, opened as a single Redis is: when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, RedisClusterException


class LateCluster:
    """Stands for a client of a cluster, which would ask the cluster for its nodes as it is made.

    Serving starts without Redis and finds it later, so the client is made by
    the first command that gets through. Threads may share it.
    """

    def __init__(self, make: Callable[[], RedisCluster]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: RedisCluster | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the client has by that name.

        Raises
        ------
        ConnectionError
            No node of the cluster answers.
        """
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._make()
                except RedisClusterException as error:
                    raise ConnectionError(str(error)) from None
            return getattr(self._client, name)

    def close(self) -> None:
        """Close the connections, if any were made."""
        if self._client is not None:
            self._client.close()
