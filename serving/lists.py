"""The one lookup of a request: a GET that gives up soon and does not ask a dead Redis again at once."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.retry import Retry

from contract.codec import Ranked, decode_list
from contract.errors import SettingsError, StoreError
from contract.logs import redact
from contract.settings import CLUSTER_ON, Settings
from serving.cluster import LateCluster

log = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""How long Redis is left alone after a lookup failed."""


class UnavailableError(StoreError):
    """Raised when Redis gave no answer in time, or is being left alone because it gave none."""


def open_redis(settings: Settings, timeout_seconds: float) -> Redis:
    """Make a client that waits so long for Redis and no longer; it connects when first used.

    RESP2 and no driver info keep a new connection down to AUTH and SELECT.
    redis-py's retries and its patient backoff are turned off: a request has
    the popular list to fall back on, and the refresh comes round again.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    try:
        client = Redis.from_url(settings.redis_url, **options)
        client.connection_pool.make_connection()  # does not connect, but takes or refuses the URL's options
    except (TypeError, ValueError) as error:
        raise SettingsError(f"REDIS_URL cannot be used: {redact(str(error), settings.secrets())}") from None
    if settings.redis_cluster == CLUSTER_ON:
        return cast(Redis, LateCluster(lambda: RedisCluster.from_url(settings.redis_url, **options)))
    return client


class Lists:
    """Reads stored lists for requests, one GET each. Threads may share it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._rest_until = 0.0

    def get(self, key: str) -> Ranked | None:
        """Return the list under `key`, None if there is none, empty (and logged) if it is broken.

        Raises
        ------
        UnavailableError
            If Redis did not answer, or lately did not.
        """
        if time.monotonic() < self._rest_until:
            raise UnavailableError("Redis did not answer a moment ago")
        try:
            value = self._redis.get(key)
            return None if value is None else decode_list(value)
        except ValueError as error:
            log.warning("%s is broken, answering from the popular list: %s", key, error)
            return []
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
                log.warning("%s is not a string, answering from the popular list", key)
                return []
            self._rest_until = time.monotonic() + REST_SECONDS
            log.warning("Redis did not answer, leaving it alone for %s s: %s", REST_SECONDS, error)
            raise UnavailableError(str(error)) from error
