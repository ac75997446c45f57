"""The batch's Redis client: open it, make errors readable, scan and delete keys of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    ClusterCrossSlotError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from contract.errors import SettingsError, StoreError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.logs import redact
from contract.settings import Settings
from contract.text import as_clause

T = TypeVar("T")

TIMEOUT_SECONDS, INTERACTIVE_TIMEOUT_SECONDS = 30, 5
"""How long a night, and a command that somebody waits for, wait for a reply; only a night asks again."""

RETRIES = 3
KEYS_BATCH = 5_000

ADVICE = (
    (AuthenticationError, "check the user and password in REDIS_URL"),
    (NoPermissionError, "give the batch's user the right to write"),
    (ReadOnlyError, "REDIS_URL points to a replica; point it to the primary"),
    (OutOfMemoryError, "raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS"),
    ((MovedError, ClusterCrossSlotError), "it is a Redis Cluster; set OVERNIGHT_REDIS_CLUSTER=on"),
    (RedisClusterException, "check that the cluster is whole, or set OVERNIGHT_REDIS_CLUSTER=off"),
    (
        TimeoutError,
        "it does not answer in time; check whether it hangs or is overloaded",
    ),
    (ConnectionError, "check that it is up, and REDIS_URL"),
)


def open_redis(
    settings: Settings, *, interactive: bool = False, timeout_seconds: float | None = None
) -> redis.Redis:
    """Make a client. It connects when it is first used; a client of a cluster connects here.

    `interactive` clients are for commands that somebody waits for: see TIMEOUT_SECONDS, which
    `timeout_seconds` replaces.

    Raises
    ------
    SettingsError
        The URL has an unknown option.
    StoreError
        The cluster does not answer.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": timeout_seconds
        or (INTERACTIVE_TIMEOUT_SECONDS if interactive else TIMEOUT_SECONDS),
        "retry": Retry(ExponentialBackoff(), RETRIES),
    }
    if interactive:
        options["retry"] = Retry(ExponentialBackoff(), RETRIES, supported_errors=(ConnectionError,))
    try:
        client: redis.Redis = redis.Redis.from_url(settings.stores.redis_url, **options)
        client.connection_pool.make_connection()  # does not connect; checks the URL's options
    except (TypeError, ValueError) as error:
        reason = redact(str(error), settings.secrets())
        raise SettingsError(f"REDIS_URL cannot be used: {reason}") from None
    if settings.stores.redis_cluster:
        with readable_errors(settings):
            # It has the same commands, but is not a subclass.
            return cast(redis.Redis, RedisCluster.from_url(settings.stores.redis_url, **options))
    return client


def is_cluster(client: redis.Redis) -> bool:
    """Return whether this is a client of a cluster."""
    return isinstance(client, RedisCluster)


def disconnect(client: redis.Redis) -> None:
    """Close all connections; the next command opens new ones."""
    if isinstance(client, RedisCluster):
        client.disconnect_connection_pools()
    else:
        client.connection_pool.disconnect()


def set_many(client: redis.Redis, values: dict[str, str]) -> None:
    """Set many keys of a cluster, on whichever nodes they are."""
    cast(Any, client).mset_nonatomic(values)


def get_many(client: redis.Redis, names: Sequence[str]) -> list[str | None]:
    """Return the values of many keys, in order; works in a cluster too."""
    found: Any = client.mget_nonatomic(names) if isinstance(client, RedisCluster) else client.mget(names)
    return list(found)


@contextmanager
def connected(settings: Settings, *, interactive: bool = False) -> Iterator[redis.Redis]:
    """Lend a client with readable errors, and close it; `interactive` as in `open_redis`.

    Raises
    ------
    SettingsError, StoreError
        As `open_redis` and `readable_errors` do.
    """
    client = open_redis(settings, interactive=interactive)
    try:
        with readable_errors(settings):
            yield client
    finally:
        client.close()


@contextmanager
def readable_errors(settings: Settings) -> Iterator[None]:
    """Turn errors of Redis into one line that shows no secret.

    Raises
    ------
    StoreError
        In place of redis-py's error.
    """
    try:
        yield
    except (RedisError, RedisClusterException) as error:  # the second is not a subclass of the first
        advice = next((text for kind, text in ADVICE if isinstance(error, kind)), "see the log of Redis")
        if isinstance(error, ConnectionError):
            advice = settings.stores.describe_default("redis_url") or advice
        server = describe(settings)
        reason = redact(as_clause(str(error)), settings.secrets())
        raise StoreError(f"{server}: {reason}; {advice}") from None


def describe(settings: Settings) -> str:
    """Return which host REDIS_URL names, without user and password."""
    url = urlsplit(settings.stores.redis_url)
    return f"Redis at {url.hostname or url.path}"


def live_run_id(client: redis.Redis, keys: Keys, variant: str) -> str | None:
    """Return the id of the run that a variant serves, as its live pointer has it; None without a pointer."""
    run_id = client.get(keys.live(variant))
    return str(run_id) if run_id else None


def live_run_ids(client: redis.Redis, keys: Keys) -> dict[str, str]:
    """Return variant -> id of its live run, for the variants that have one."""
    found = {variant: live_run_id(client, keys, variant) for variant in VARIANTS}
    return {variant: run_id for variant, run_id in found.items() if run_id}


def runs_in(client: redis.Redis, keys: Keys) -> set[str]:
    """Return the ids of all runs that have keys. A manifest is a run's first key and its last."""
    first, last = keys.manifest("*").split("*")
    found = client.scan_iter(match=keys.any_manifest_pattern, count=KEYS_BATCH)
    between = (key[len(first) : -len(last)] for key in found)
    return {run_id for run_id in between if ":" not in run_id}  # the list of the user `manifest` has one


def remove_run(client: redis.Redis, keys: Keys, run_id: str) -> int:
    """Remove all keys of a run, its manifest last; return their number."""
    manifest = keys.manifest(run_id)
    found = (
        key for key in client.scan_iter(match=keys.run_pattern(run_id), count=KEYS_BATCH) if key != manifest
    )
    removed = sum(_unlink(client, block) for block in blocks(found, KEYS_BATCH))
    return removed + _unlink(client, [manifest])


def keys_of_run(client: redis.Redis, keys: Keys, run_id: str) -> int:
    """Count the keys of a run."""
    return sum(1 for _ in client.scan_iter(match=keys.run_pattern(run_id), count=KEYS_BATCH))


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def _unlink(client: redis.Redis, names: list[str]) -> int:
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.unlink(name)
        return sum(pipe.execute())
