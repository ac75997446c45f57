"""Read lists from Redis: one GET a request, with a short timeout and a circuit breaker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import SSLConnection
from redis.exceptions import (
    ConnectionError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from contract.codec import StoredList, decode_stored_list
from contract.errors import SettingsError, StoreError
from contract.ids import Id, IdKind
from contract.keys import Keys
from contract.logs import redact
from contract.settings import Settings
from serving.connections import connection_class_of
from serving.metrics import Metrics
from serving.texts import NO_TEXT, Post, decode_post
from serving.tuned.redis_get import NotConnectedYetError, RedisGet

T = TypeVar("T")

log = logging.getLogger(__name__)

BREAKER_SECONDS = 1.0
"""After a failed lookup, or MAX_TIMEOUTS late replies in a row, how long a worker does not ask Redis."""

MAX_TIMEOUTS = 2
"""A single late reply may be due to its connection or to a busy machine: the next request asks again."""


class UnavailableError(StoreError):
    """Raised when Redis did not answer in time, or is not asked because it lately did not."""


class WrongTypeError(StoreError):
    """Raised when a key has another type than ours."""


def open_redis(settings: Settings, timeout_seconds: float) -> Redis:
    """Create a client with this timeout for each reply; it connects on first use.

    RESP2 without driver info limits a new connection to AUTH, SELECT and PING.
    redis-py's retries and backoff are off: a request falls back on the popular
    list, and the next refresh is a second away. In a cluster the timeout holds
    for connecting too, since requests connect.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": settings.serving.redis_connect_timeout_ms / 1000,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    try:
        connection_class = connection_class_of(settings.stores.redis_url)
        client = Redis.from_url(settings.stores.redis_url, connection_class=connection_class, **options)
        connection: Any = client.connection_pool.make_connection()  # checks the options, without connecting
        if issubclass(connection_class, SSLConnection):
            with suppress(OSError, RedisError):  # each connection reports it
                connection.make_context()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"REDIS_URL cannot be used: {redact(str(error), settings.secrets())}") from None
    if settings.stores.redis_cluster:
        options["socket_connect_timeout"] = timeout_seconds
        options["connection_pool_class"] = partial(_make_pool, connection_class)
        return cast(Redis, LazyCluster(lambda: RedisCluster.from_url(settings.stores.redis_url, **options)))
    return client


def _make_pool(connection_class: type[Any], **options: Any) -> ConnectionPool:
    """Make a pool with this class of connections, whatever class the options name."""
    return ConnectionPool(**{**options, "connection_class": connection_class})


class ListStore:
    """Reads lists and texts for requests, one command each, with a circuit breaker. Thread-safe.

    Without `tuned`, lists are read by the client's own GET.
    """

    def __init__(self, redis: Redis, keys: Keys, metrics: Metrics, *, tuned: bool = True) -> None:
        # A cluster's client chooses the node to ask.
        self._reads: Reads = RedisGet(redis) if tuned and isinstance(redis, Redis) else ClientReads(redis)
        self._keys = keys
        self._metrics = metrics
        self._open_until = 0.0
        self._timeouts = 0

    def keep_connected(self) -> None:
        """Open connections, before a request needs them or after Redis closed them."""
        self._reads.keep_connected()

    def get(self, key: str, kind: IdKind | None, field: str | None = None) -> StoredList | None:
        """Return the list of posts under `key`, or in a field of the hash; None if there is none.

        A broken list is logged, and empty. So is one with ids of another kind, if `kind` is not None.

        Raises
        ------
        UnavailableError
            If Redis did not answer in time, or lately did not.
        """
        try:
            if field is None:
                value = self._execute(lambda: self._reads.get(key))
            else:
                (value,) = self._execute(lambda: self._reads.hmget(key, [field]))
            return None if value is None else decode_stored_list(value, kind)
        except ValueError as error:
            log.warning("%s is broken, answering from the popular list: %s", key, error)
        except WrongTypeError:
            expected = "string" if field is None else "hash"
            log.warning("%s is not a %s, answering from the popular list", key, expected)
        return StoredList([])

    def get_posts(self, post_ids: Sequence[Id]) -> dict[Id, Post]:
        """Return text and topic of posts; empty for posts that are missing or broken.

        Raises
        ------
        UnavailableError
            If Redis did not answer in time, or lately did not.
        """
        try:
            values = self._execute(lambda: self._reads.hmget(self._keys.posts, post_ids))
        except WrongTypeError:
            log.warning("%s is not a hash, answering without texts", self._keys.posts)
            values = []
        found = dict.fromkeys(post_ids, NO_TEXT)
        for post_id, value in zip(post_ids, values, strict=False):
            with suppress(ValueError):
                found[post_id] = NO_TEXT if value is None else decode_post(value)
        return found

    def _execute(self, command: Callable[[], T]) -> T:
        """Run one command, unless the breaker is open."""
        if time.monotonic() < self._open_until:
            raise UnavailableError("Redis did not answer a moment ago")
        if self._open_until:
            # One request tries whether Redis answers again; the others do not wait for that.
            self._open_until = time.monotonic() + BREAKER_SECONDS
        try:
            reply = command()
        except NotConnectedYetError as error:  # Redis may be well: only this request does without
            self._metrics.redis_errors.inc()
            raise UnavailableError(str(error)) from None
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
                raise WrongTypeError from None
            self._metrics.redis_errors.inc()
            if isinstance(error, TimeoutError):
                self._timeouts += 1
                if self._timeouts < MAX_TIMEOUTS:
                    raise UnavailableError(str(error)) from error
            self._open_until = time.monotonic() + BREAKER_SECONDS
            self._metrics.breaker_open.set(1)
            log.warning("Redis did not answer, serving popular posts for %s s: %s", BREAKER_SECONDS, error)
            raise UnavailableError(str(error)) from error
        if self._timeouts:
            self._timeouts = 0
        if self._open_until:
            self._open_until = 0.0
            self._metrics.breaker_open.set(0)
        return reply


class Reads(Protocol):
    """How lists and texts are read: by `RedisGet` or `ClientReads`."""

    def get(self, key: str) -> bytes | None:
        """Return the value under `key`; None if there is none."""

    def hmget(self, name: str, fields: Sequence[Id]) -> Sequence[bytes | None]:
        """Return the values of fields of a hash, in order."""

    def keep_connected(self) -> None:
        """Open connections before requests need them; do not raise."""


class ClientReads:
    """Reads by redis-py's client."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def get(self, key: str) -> bytes | None:
        """Return the value under `key`; None if there is none."""
        value: bytes | None = self._redis.get(key)
        return value

    def hmget(self, name: str, fields: Sequence[Id]) -> Sequence[bytes | None]:
        """Return the values of fields of a hash, in order."""
        values: list[bytes | None] = self._redis.hmget(name, list(fields))
        return values

    def keep_connected(self) -> None:
        """Use one connection, of a cluster one to each primary, so that it is open."""
        with suppress(RedisError, RedisClusterException, OSError):  # requests report what fails
            self._redis.ping()


class LazyCluster:
    """A cluster client that is created on first use. Thread-safe.

    redis-py's cluster client connects when it is created, but serving must
    start without Redis.
    """

    def __init__(self, create: Callable[[], RedisCluster]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._client: RedisCluster | None = None

    def __getattr__(self, name: str) -> Any:
        """Return the client's attribute.

        Raises
        ------
        ConnectionError
            No node of the cluster answers.
        """
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._create()
                except RedisClusterException as error:
                    raise ConnectionError(str(error)) from None
            return getattr(self._client, name)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if self._client is not None:
            self._client.close()
