"""Redis as a server: version, role, what a restart leaves, and what it does when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from batch.doctoring.finding import Finding, fail, ok, warn

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
