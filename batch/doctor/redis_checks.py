"""Redis as a server: version, role, what a restart leaves, and what it does when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from batch.doctor.finding import Finding, fail, ok, warn
from contract.keys import Keys

OLDEST = (7, 0)
MIB = 2**20


def examined(client: redis.Redis) -> Iterator[Finding]:
    """Examine a Redis that answers, every primary of a cluster by itself."""
    for name, node in nodes(client):
        try:
            info: Any = client.info(**node)
        except NoPermissionError:
            client.ping()
            yield warn(name, "answers, but its user may not ask for INFO", "ACL SETUSER ... +info")
            continue
        yield version(name, info)
        yield role(name, info)
        yield persistence(name, info, saves(client, node))
        yield eviction(name, info)


def nodes(client: redis.Redis) -> list[tuple[str, dict[str, Any]]]:
    """Return each server that holds keys: its name, and what names it to the client's commands."""
    if not isinstance(client, RedisCluster):
        return [("redis", {})]
    return [(f"redis {node.name}", {"target_nodes": node}) for node in client.get_primaries()]


def version(name: str, info: dict[str, Any]) -> Finding:
    """See whether the server is new enough; Valkey counts its versions on from Redis 7.2."""
    valkey = info.get("valkey_version")
    told = str(valkey or info.get("redis_version", "0"))
    server = f"{'Valkey' if valkey else 'Redis'} {told}"
    numbers = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return fail(name, f"{server} is too old", "use Redis 7 or newer, or Valkey 8 or newer")
    return ok(name, f"{server}, up {int(info.get('uptime_in_seconds', 0)) // 3600} h")


def role(name: str, info: dict[str, Any]) -> Finding:
    """See whether it takes writes, and whether a replica lags."""
    check = f"{name} role"
    if info.get("role") == "slave":
        return fail(check, "is a replica and takes no writes", "point REDIS_URL to the primary")
    replicas = [value for key, value in info.items() if key.startswith("slave") and isinstance(value, dict)]
    away = [replica for replica in replicas if replica.get("state") != "online"]
    if away:
        return warn(
            check,
            f"{len(away)} of {len(replicas)} replicas are not online",
            "see the replicas' logs; one that is to take over lacks what was written since",
        )
    return ok(check, f"primary with {len(replicas)} replicas")


def saves(client: redis.Redis, node: dict[str, Any]) -> bool | None:
    """Tell whether snapshots are saved from time to time; None where that may not be asked."""
    try:
        answer: Any = client.config_get("save", **node)
    except ResponseError:  # no right to ask, or a service that has no CONFIG
        return None
    return bool(answer.get("save"))


def persistence(name: str, info: dict[str, Any], saving: bool | None) -> Finding:
    """See what a restart would leave of the lists."""
    check = f"{name} persistence"
    if info.get("loading"):
        return warn(check, "is still reading its data from disk", "wait, and ask again")
    broken = [
        key for key in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(key, "ok") != "ok"
    ]
    if broken:
        return fail(
            check,
            f"{broken[0]} is {info[broken[0]]}: Redis could not save, and may refuse writes",
            "see its log; most often the disk is full",
        )
    if info.get("aof_enabled"):
        return ok(check, "append-only file: a restart brings the lists back")
    if saving is None:
        return ok(check, "no append-only file; whether snapshots are saved may not be asked")
    if saving:
        return ok(check, "snapshots: a restart brings back the lists of the last one")
    return warn(
        check,
        "nothing is kept on disk: a restart loses every list until the next night",
        "CONFIG SET appendonly yes, or run `python -m batch run` after each restart",
    )


def eviction(name: str, info: dict[str, Any]) -> Finding:
    """See whether a full Redis would throw lists away; volatile-* spares them, since they never expire."""
    check, policy = f"{name} eviction", str(info.get("maxmemory_policy", "noeviction"))
    limit = int(info.get("maxmemory", 0))
    mend = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration"
    if policy.startswith("allkeys") and limit:
        told = f"{policy} with maxmemory {limit / MIB:.0f} MiB: a full Redis throws users' lists away"
        return fail(check, told, mend)
    if policy.startswith("allkeys"):
        return warn(check, f"{policy}, harmless only as long as maxmemory is 0", mend)
    evicted = int(info.get("evicted_keys", 0))
    told = f"{policy}, maxmemory {f'{limit / MIB:.0f} MiB' if limit else 'not set'}"
    if evicted:
        return warn(
            check, f"{told}; {evicted} keys were evicted since it started", "find out under which policy"
        )
    return ok(check, told)


MOST_KEYS = 5_000_000
"""Where there are more, the census says that it is not complete."""

KEYS_AT_A_TIME = 5_000
SAMPLED = 20


@dataclass
class RunKeys:
    """How many keys of each kind a run has, and some keys of lists."""

    user: int = 0
    post: int = 0
    popular: int = 0
    manifest: int = 0
    sample: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.user + self.post + self.popular + self.manifest


@dataclass(frozen=True)
class Census:
    """Every run that has keys.

    Attributes
    ----------
    complete
        No key was left out for there being too many.
    strange
        Keys among those of runs that are of no kind of ours.
    """

    runs: dict[str, RunKeys]
    complete: bool
    strange: list[str]


def census(client: redis.Redis, keys: Keys, most_keys: int = MOST_KEYS) -> Census:
    """Count the keys of all runs under a prefix, at most so many."""
    head = keys.run_pattern("").removesuffix(":*")
    found = client.scan_iter(match=f"{head}*", count=KEYS_AT_A_TIME)
    runs: dict[str, RunKeys] = {}
    strange: list[str] = []
    for key in islice(found, most_keys):
        run_id, _, rest = key[len(head) :].partition(":")
        kind = rest.partition(":")[0]
        if kind not in ("user", "post", "popular", "manifest"):
            strange.append(key)
            continue
        run = runs.setdefault(run_id, RunKeys())
        setattr(run, kind, getattr(run, kind) + 1)
        if kind == "user" and len(run.sample) < SAMPLED:
            run.sample.append(key)
    return Census(runs, next(found, None) is None, strange)


CHECK = "memory for a night"


def free_memory(client: redis.Redis) -> tuple[int, bool] | None:
    """Return the free bytes of all nodes, and whether maxmemory bounds them; None where nothing tells."""
    total, bounded = 0, False
    for _, node in nodes(client):
        try:
            info: Any = client.info("memory", **node)
        except ResponseError:
            return None
        limit = int(info.get("maxmemory", 0))
        bounded |= limit > 0
        limit = limit or int(info.get("total_system_memory", 0))
        if not limit:
            return None
        total += max(limit - int(info["used_memory"]), 0)
    return total, bounded


def bytes_of_run(client: redis.Redis, run: RunKeys, manifest: dict[str, Any]) -> int | None:
    """Return what a run takes: as it was forecast, else measured on some of its lists; None if neither is."""
    if forecast := manifest.get("forecast_bytes"):
        return int(forecast)
    try:
        sizes = [int(client.memory_usage(key, samples=0) or 0) for key in run.sample]
    except ResponseError:
        return None
    return round(sum(sizes) / len(sizes) * run.total) if sizes else None


def enough(free: tuple[int, bool] | None, needed: list[int | None]) -> Finding:
    """Judge the free memory against what the runs now live take."""
    known = [size for size in needed if size is not None]
    if free is None or not known:
        return ok(CHECK, "cannot be told: no live run to go by, or Redis does not say")
    bytes_free, bounded = free
    of_what = "maxmemory" if bounded else "the machine's memory"
    told = f"{bytes_free / MIB:.1f} MiB free of {of_what}, a night takes about {sum(known) / MIB:.1f} MiB"
    mend = "raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS"
    if bytes_free < sum(known):
        return fail(CHECK, told, mend)
    return warn(CHECK, told, mend) if bytes_free < 1.5 * sum(known) else ok(CHECK, told)
