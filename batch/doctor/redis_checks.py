"""Checks of the Redis servers: version, role, persistence, eviction, memory; and the count of keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from batch.doctor.finding import Finding, fail, ok, warn
from batch.redis_memory import Node
from contract.keys import Keys

MIN_VERSION = (7, 0)
MIB = 2**20


def check_servers(client: redis.Redis) -> Iterator[Finding]:
    """Check a Redis that answers; in a cluster, every primary."""
    for name, node in list_nodes(client):
        try:
            info: Any = client.info(**node)
        except ResponseError as error:
            client.ping()
            yield _warn_without_info(name, error)
            continue
        yield check_version(name, info)
        yield check_role(name, info)
        yield check_persistence(name, info, read_snapshots_enabled(client, node))
        yield check_eviction(name, info)


def _warn_without_info(name: str, error: ResponseError) -> Finding:
    """Say what is not known of a server whose INFO is forbidden or renamed."""
    unknown = "its version, role, persistence and memory are unknown, and nights do not check that lists fit"
    if isinstance(error, NoPermissionError):
        return warn(name, f"answers, but its user may not run INFO: {unknown}", "ACL SETUSER ... +info")
    return warn(
        name, f"answers, but has no command INFO: {unknown}", "allow INFO, or watch its memory by other means"
    )


def list_nodes(client: redis.Redis) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, keyword arguments that direct a command to it) of each server that holds keys."""
    if not isinstance(client, RedisCluster):
        return [("redis", {})]
    return [(f"redis {node.name}", {"target_nodes": node}) for node in client.get_primaries()]


def check_version(name: str, info: dict[str, Any]) -> Finding:
    """Check that the server is new enough; Valkey's versions continue those of Redis 7.2."""
    valkey = info.get("valkey_version")
    version = str(valkey or info.get("redis_version", "0"))
    server = f"{'Valkey' if valkey else 'Redis'} {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        return fail(name, f"{server} is too old", "use Redis 7 or newer, or Valkey 8 or newer")
    return ok(name, f"{server}, up {int(info.get('uptime_in_seconds', 0)) // 3600} h")


def check_role(name: str, info: dict[str, Any]) -> Finding:
    """Check that the server accepts writes and that its replicas are online."""
    check = f"{name} role"
    if info.get("role") == "slave":
        return fail(check, "is a replica and accepts no writes", "point REDIS_URL to the primary")
    replicas = [value for key, value in info.items() if key.startswith("slave") and isinstance(value, dict)]
    offline = [replica for replica in replicas if replica.get("state") != "online"]
    if offline:
        return warn(
            check,
            f"{len(offline)} of {len(replicas)} replicas are not online",
            "see the logs of the replicas; after a failover to one of them, recent writes are lost",
        )
    return ok(check, f"primary with {len(replicas)} replicas")


def read_snapshots_enabled(client: redis.Redis, node: dict[str, Any]) -> bool | None:
    """Return whether snapshots are saved periodically; None if CONFIG may not be read."""
    try:
        answer: Any = client.config_get("save", **node)
    except ResponseError:  # no permission, or a service without CONFIG
        return None
    return bool(answer.get("save"))


def check_persistence(name: str, info: dict[str, Any], snapshots: bool | None) -> Finding:
    """Check that the lists survive a restart."""
    check = f"{name} persistence"
    if info.get("loading"):
        return warn(check, "is still loading its data from disk", "wait, and run doctor again")
    failed = [
        key for key in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(key, "ok") != "ok"
    ]
    if failed:
        return fail(
            check,
            f"{failed[0]} is {info[failed[0]]}: Redis could not save, and may refuse writes",
            "see the log of Redis; usually the disk is full",
        )
    if info.get("aof_enabled"):
        return ok(check, "append-only file: the lists survive a restart")
    if snapshots is None:
        return ok(
            check, "no append-only file; whether snapshots are saved is unknown: CONFIG may not be read"
        )
    if snapshots:
        return ok(check, "snapshots: a restart restores the lists of the last one")
    return warn(
        check,
        "nothing is kept on disk: a restart loses every list until the next night",
        "CONFIG SET appendonly yes, or run `python -m batch run` after each restart",
    )


def check_eviction(name: str, info: dict[str, Any]) -> Finding:
    """Check that a full Redis does not evict lists; volatile-* policies keep them: they never expire."""
    check, policy = f"{name} eviction", str(info.get("maxmemory_policy", "noeviction"))
    limit = int(info.get("maxmemory", 0))
    fix = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"
    if policy.startswith("allkeys") and limit:
        found = f"{policy} with maxmemory {limit / MIB:.0f} MiB: a full Redis evicts users' lists"
        return fail(check, found, fix)
    if policy.startswith("allkeys"):
        return warn(check, f"{policy}, harmless only while maxmemory is 0", fix)
    evicted = int(info.get("evicted_keys", 0))
    found = f"{policy}, maxmemory {f'{limit / MIB:.0f} MiB' if limit else 'not set'}"
    if evicted:
        return warn(
            check, f"{found}; {evicted} keys were evicted since it started", "find out under which policy"
        )
    return ok(check, found)


MAX_KEYS = 5_000_000
"""Most keys that `count_keys` counts."""

SCAN_BATCH = 5_000
SAMPLE_KEYS = 20


@dataclass
class RunKeys:
    """The number of keys of each kind that a run has, and some keys of lists."""

    user: int = 0
    post: int = 0
    popular: int = 0
    segments: int = 0
    manifest: int = 0
    sample: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.user + self.post + self.popular + self.segments + self.manifest


@dataclass(frozen=True)
class KeyCounts:
    """The keys of every run.

    Attributes
    ----------
    complete
        False if there are more than `MAX_KEYS`.
    unknown
        Keys under the prefix of runs that are of no known kind.
    """

    runs: dict[str, RunKeys]
    complete: bool
    unknown: list[str]


def count_keys(client: redis.Redis, keys: Keys, max_keys: int = MAX_KEYS) -> KeyCounts:
    """Count the keys of all runs under a prefix, at most `max_keys`."""
    prefix = keys.run_pattern("").removesuffix(":*")
    scan = client.scan_iter(match=f"{prefix}*", count=SCAN_BATCH)
    runs: dict[str, RunKeys] = {}
    unknown: list[str] = []
    for key in islice(scan, max_keys):
        run_id, _, rest = key[len(prefix) :].partition(":")
        kind = rest.partition(":")[0]
        if kind not in ("user", "post", "popular", "segments", "manifest"):
            unknown.append(key)
            continue
        run = runs.setdefault(run_id, RunKeys())
        setattr(run, kind, getattr(run, kind) + 1)
        if kind == "user" and len(run.sample) < SAMPLE_KEYS:
            run.sample.append(key)
    return KeyCounts(runs, next(scan, None) is None, unknown)


CHECK = "memory for a night"


def measure_run_bytes(client: redis.Redis, run: RunKeys, manifest: dict[str, Any]) -> int | None:
    """Return the memory of a run: the forecast of its manifest, else estimated from some lists; else None."""
    if forecast := manifest.get("forecast_bytes"):
        return int(forecast)
    try:
        sizes = [int(client.memory_usage(key, samples=0) or 0) for key in run.sample]
    except ResponseError:
        return None
    return round(sum(sizes) / len(sizes) * run.total) if sizes else None


def check_memory(nodes: list[Node], run_bytes: list[int | None]) -> Finding:
    """Check that the free memory of all nodes suffices for runs as large as the live ones."""
    known = [size for size in run_bytes if size is not None]
    if not nodes or not all(node.limit for node in nodes) or not known:
        return ok(CHECK, "unknown: no live run to estimate from, or Redis does not report its memory")
    limit = "maxmemory" if any(node.bounded for node in nodes) else "the machine's memory"
    needed, free = sum(known), sum(node.free for node in nodes)
    found = f"{free / MIB:.1f} MiB free of {limit}, a night takes about {needed / MIB:.1f} MiB"
    fix = "raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS"
    if free < needed:
        return fail(CHECK, found, fix)
    return warn(CHECK, found, fix) if free < 1.5 * needed else ok(CHECK, found)
