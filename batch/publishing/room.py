"""What memory Redis has left, node by node, and whether a run may be written into it."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError

from contract.errors import StoreError

log = logging.getLogger("batch")

MIB = 2**20


@dataclass(frozen=True)
class Node:
    """A server, with its share of all keys; `limit` is 0 where it is not known."""

    name: str
    share: float
    used: int
    limit: int
    bounded: bool
    policy: str

    @classmethod
    def of(cls, name: str, share: float, memory: dict[str, Any]) -> Node:
        """Read what `INFO memory` says. Without maxmemory all the memory of the machine is the limit."""
        bound = int(memory.get("maxmemory", 0))
        used = int(memory["used_memory"]) - int(memory.get("mem_not_counted_for_evict", 0))
        limit = bound or int(memory.get("total_system_memory", 0))
        return cls(name, share, used, limit, bound > 0, str(memory.get("maxmemory_policy", "noeviction")))


def nodes_of(client: redis.Redis) -> list[Node]:
    """Ask every server that holds keys for its memory; none where the user may not ask."""
    try:
        if not isinstance(client, RedisCluster):
            return [Node.of("Redis", 1.0, client.info("memory"))]
        holders = client.nodes_manager.slots_cache.values()
        found = []
        for name, slots in Counter(nodes[0].name for nodes in holders).items():
            memory: Any = client.info("memory", target_nodes=client.get_node(node_name=name))
            found.append(Node.of(f"Redis at {name}", slots / len(holders), memory))
        return found
    except NoPermissionError:
        log.warning("Redis does not let the batch's user ask for INFO; its free memory is not checked")
        return []


def check_room(node: Node, run_bytes: int) -> None:
    """Refuse a run that does not fit into a node, or could be evicted there."""
    if node.bounded and node.policy.startswith("allkeys"):
        raise StoreError(
            f"{node.name} evicts any key when it is full (maxmemory-policy {node.policy}), and users would "
            "lose their lists; set maxmemory-policy noeviction"
        )
    needed, free = run_bytes * node.share, node.limit - node.used
    if node.limit and needed > free:
        whose = "maxmemory" if node.bounded else "the machine's memory"
        raise StoreError(
            f"{node.name} has {max(free, 0) / MIB:.1f} MiB free of {whose}, and the run needs about "
            f"{needed / MIB:.1f} MiB; raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS"
        )
