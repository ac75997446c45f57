"""The one lookup of a request: a GET that gives up soon and does not ask a dead Redis again at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from typing import Any, TypeVar, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, RedisClusterException, RedisError, ResponseError
from redis.retry import Retry

from contract.codec import Ranked, decode_list
from contract.errors import SettingsError, StoreError
from contract.keys import Keys
from contract.logs import redact
from contract.settings import Settings
from serving.metrics import Metrics
from serving.redis_get import Lookup
from serving.texts import NO_TEXT, Post, decode_post

T = TypeVar("T")

log = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""How long Redis is left alone after a lookup failed."""


class UnavailableError(StoreError):
    """Raised when Redis gave no answer in time, or is being left alone because it gave none."""


class WrongTypeError(StoreError):
    """Raised when a key holds another type than what is ours."""


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
        client = Redis.from_url(settings.stores.redis_url, **options)
        client.connection_pool.make_connection()  # does not connect, but takes or refuses the URL's options
    except (TypeError, ValueError) as error:
        raise SettingsError(f"REDIS_URL cannot be used: {redact(str(error), settings.secrets())}") from None
    if settings.stores.redis_cluster:
        return cast(Redis, LateCluster(lambda: RedisCluster.from_url(settings.stores.redis_url, **options)))
    return client


class Lists:
    """Reads stored lists and texts for requests, one command each. Threads may share it."""

    def __init__(self, redis: Redis, keys: Keys, metrics: Metrics) -> None:
        self._redis = redis
        # A cluster's client knows which node to ask.
        self._get = Lookup(redis).get if isinstance(redis, Redis) else lambda key: redis.get(key)
        self._keys = keys
        self._metrics = metrics
        self._rest_until = 0.0

    def get(self, key: str, most: int, blocked: Set[int]) -> Ranked | None:
        """Return the list under `key`, None if there is none, empty (and logged) if it is broken.

        Only the first `most` posts are decoded, unless one of them is blocked: then what follows matters.

        Raises
        ------
        UnavailableError
            If Redis did not answer, or lately did not.
        """
        try:
            value = self._ask(lambda: self._get(key))
            if value is None:
                return None
            head = decode_list(value, most)
            return head if blocked.isdisjoint([post for post, _ in head]) else decode_list(value)
        except ValueError as error:
            log.warning("%s is broken, answering from the popular list: %s", key, error)
        except WrongTypeError:
            log.warning("%s is not a string, answering from the popular list", key)
        return []

    def posts(self, post_ids: Sequence[int]) -> dict[int, Post]:
        """Return what answers with texts say of posts; empty for those that are not stored or broken.

        Raises
        ------
        UnavailableError
            If Redis did not answer, or lately did not.
        """
        try:
            values = self._ask(lambda: self._redis.hmget(self._keys.posts, list(post_ids)))
        except WrongTypeError:
            log.warning("%s is not a hash, answering without texts", self._keys.posts)
            values = []
        found = dict.fromkeys(post_ids, NO_TEXT)
        for post_id, value in zip(post_ids, values, strict=False):
            with suppress(ValueError):
                found[post_id] = NO_TEXT if value is None else decode_post(value)
        return found

    def _ask(self, command: Callable[[], T]) -> T:
        """Send one command, unless Redis failed one a moment ago."""
        if time.monotonic() < self._rest_until:
            raise UnavailableError("Redis did not answer a moment ago")
        if self._rest_until:
            # One asks whether it answers again; the others need not wait for that.
            self._rest_until = time.monotonic() + REST_SECONDS
        try:
            answer = command()
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
                raise WrongTypeError from None
            self._rest_until = time.monotonic() + REST_SECONDS
            self._metrics.redis_errors.inc()
            self._metrics.breaker_open.set(1)
            log.warning("Redis did not answer, leaving it alone for %s s: %s", REST_SECONDS, error)
            raise UnavailableError(str(error)) from error
        if self._rest_until:
            self._rest_until = 0.0
            self._metrics.breaker_open.set(0)
        return answer


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
