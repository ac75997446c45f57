"""Whether another night fits: it writes every variant's run before it removes an old one."""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import ResponseError

from batch.doctoring.census import RunKeys
from batch.doctoring.finding import Finding, fail, ok, warn
from batch.doctoring.redis_server import MIB, nodes

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
