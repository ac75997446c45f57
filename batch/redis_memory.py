"""The memory of the Redis servers, as they report it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError


@dataclass(frozen=True)
class Node:
    """A server and its share of all keys; `used` and `limit` in bytes, `limit` 0 if it is unknown."""

    name: str
    share: float
    used: int
    limit: int
    bounded: bool
    policy: str

    @classmethod
    def of(cls, name: str, share: float, memory: dict[str, Any]) -> Node:
        """Read the answer to `INFO memory`. Without maxmemory the limit is the memory of the machine."""
        bound = int(memory.get("maxmemory", 0))
        used = int(memory["used_memory"]) - int(memory.get("mem_not_counted_for_evict", 0))
        limit = bound or int(memory.get("total_system_memory", 0))
        return cls(name, share, used, limit, bound > 0, str(memory.get("maxmemory_policy", "noeviction")))

    @property
    def free(self) -> int:
        """Bytes below the limit, at least 0."""
        return max(self.limit - self.used, 0)


def nodes_of(client: redis.Redis) -> list[Node]:
    """Return the memory of every server that holds keys; an empty list if one does not report it.

    Users may lack the right to INFO, and services rename or restrict it.
    """
    try:
        if not isinstance(client, RedisCluster):
            return [Node.of("Redis", 1.0, client.info("memory"))]
        holders = client.nodes_manager.slots_cache.values()
        found = []
        for name, slots in Counter(nodes[0].name for nodes in holders).items():
            memory: Any = client.info("memory", target_nodes=client.get_node(node_name=name))
            found.append(Node.of(f"Redis at {name}", slots / len(holders), memory))
        return found
    except (ResponseError, KeyError):
        return []
