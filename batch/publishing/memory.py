"""Forecast the memory of Redis that a run takes; a run that does not fit fails before its lists are written.

A key takes more than its text: a hash table entry, an object, and the allocator's rounding. `key_bytes`
adds these up for Redis; Valkey needs slightly less. The memory of runs that will be removed does not
count as free, because they are removed only when the new run is live.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import redis

from batch.arrays import Int64s
from batch.ids import encode_ids
from batch.loading.network import Network
from batch.publishing.encode import ListEncoder
from batch.publishing.list_tasks import Listed
from batch.publishing.shared_keys import texts_of
from batch.redis_memory import Node, nodes_of
from contract.errors import StoreError
from contract.keys import Keys

SAMPLED = 1_000
"""Lists, texts and ids whose length is measured."""

NO_SEGMENTS: Mapping[str, str] = MappingProxyType({})

_ENTRY_BYTES = 24
_OBJECT_BYTES = 16
_SLOT_BYTES = 16
"""Hash table: 8 bytes a slot; the table doubles when it is full, so at most half of the slots are empty."""
_KEY_HEAD_BYTES, _VALUE_HEAD_BYTES = 3, 6


@dataclass(frozen=True)
class Forecast:
    """Memory of Redis that a run will take, in bytes.

    Attributes
    ----------
    users_bytes, similar_bytes, texts_bytes, segments_bytes
        Lists of users, lists of similar posts, texts that are not stored yet, and popular lists by segment.
    used_before
        Memory used before, summed over the nodes of a cluster; None if Redis does not report it.
    """

    users_bytes: int
    similar_bytes: int
    texts_bytes: int
    used_before: int | None
    segments_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of the parts."""
        return self.users_bytes + self.similar_bytes + self.texts_bytes + self.segments_bytes

    def record(self, client: redis.Redis) -> dict[str, Any]:
        """Return the forecast, and the memory that Redis reports as taken by now, for the run's manifest."""
        nodes = nodes_of(client) if self.used_before is not None else []
        taken = sum(node.used for node in nodes) - self.used_before if self.used_before is not None else None
        return {
            "forecast_bytes": self.total_bytes,
            "redis_bytes": taken,
            "policies": sorted({node.policy for node in nodes}),
        }


@dataclass(frozen=True)
class SampledLists:
    """Lists of some of the users that will get one.

    Attributes
    ----------
    users
        Number of all of them.
    """

    listed: Listed
    encoder: ListEncoder
    users: int


def check_memory(
    client: redis.Redis,
    keys: Keys,
    run_id: str,
    sample: SampledLists,
    network: Network,
    *,
    similar_n: int,
    segments: Mapping[str, str] = NO_SEGMENTS,
) -> Forecast:
    """Forecast the memory of a run from some of its lists, and check that it fits.

    Parameters
    ----------
    similar_n
        Longest list of similar posts; 0 if none are made.
    segments
        Value of an attribute -> popular list of its users.

    Raises
    ------
    StoreError
        The run does not fit, or could be evicted.
    """
    if not len(sample.listed.owners):
        return Forecast(0, 0, 0, None)
    posts = len(network.posts)
    user, pair = _list_bytes(sample, keys.user(run_id, 0))
    similar = 0.0
    if similar_n:
        length = min(similar_n, posts) * pair + 2
        key_length = len(keys.post(run_id, 0)) - 1 + _longest(encode_ids(_sample(network.post_ids)))
        similar = float(key_bytes(key_length, np.array([length]))[0])
    texts = _text_bytes(network.posts) * max(0, posts - int(client.hlen(keys.posts)))
    nodes = nodes_of(client)
    if not nodes:
        log.warning(
            "Redis does not report its memory: INFO is forbidden or renamed. The night goes on, without "
            "checking that its lists fit; see that enough memory is free"
        )
    used = sum(node.used for node in nodes) if nodes else None
    by_segment = sum(
        float(key_bytes(len(name), np.array([len(value)]))[0]) for name, value in segments.items()
    )
    forecast = Forecast(
        users_bytes=round(user * sample.users),
        similar_bytes=round(similar * posts),
        texts_bytes=round(texts),
        used_before=used,
        segments_bytes=round(by_segment),
    )
    for node in nodes:
        require_memory(node, forecast.total_bytes)
    return forecast


def key_bytes(key_length: int, value_lengths: Int64s) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the bytes that Redis needs for keys of one length with strings of the given lengths."""
    own = _ENTRY_BYTES + _OBJECT_BYTES + _SLOT_BYTES
    names = _rounded_up(np.array([key_length + _KEY_HEAD_BYTES]))
    return own + names + _rounded_up(np.asarray(value_lengths) + _VALUE_HEAD_BYTES)


def _rounded_up(sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Round up as jemalloc does: to a multiple of an eighth of the next power of two, and of 8."""
    step = np.maximum(2.0 ** (np.ceil(np.log2(sizes)) - 3), 8)
    rounded: np.ndarray[Any, np.dtype[np.float64]] = np.ceil(sizes / step) * step
    return rounded


def _list_bytes(sample: SampledLists, key: str) -> tuple[float, float]:
    """Return the mean bytes of a user's list in Redis, and the mean length of a pair in it."""
    lines = sample.encoder.lines(*sample.listed)
    id_length = round(float((lines.tabs - lines.starts[:-1]).mean()))
    taken = key_bytes(len(key) - 1 + id_length, lines.value_bytes)
    return float(taken.mean()), float(lines.value_bytes.sum() / max(int(lines.lengths.sum()), 1))


def _text_bytes(posts: pd.DataFrame) -> float:
    """Return the mean bytes of a post's text in the hash of texts."""
    sampled = islice(texts_of(posts), 0, None, max(1, len(posts) // SAMPLED))
    lengths = [len(text.encode()) for _, text in sampled]
    key_length = _longest(str(post_id) for post_id in _sample(posts.index.to_numpy()))
    return float(key_bytes(key_length, np.array(lengths)).mean())


def _sample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return some rows, the first and the last among them."""
    rows = np.linspace(0, len(values) - 1, min(SAMPLED, len(values))).astype(np.int64)
    return values[rows]


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts))


log = logging.getLogger("batch")

MIB = 2**20


def require_memory(node: Node, run_bytes: int) -> None:
    """Check that a run fits into a node and cannot be evicted there.

    Raises
    ------
    StoreError
        It does not fit, or the node evicts keys.
    """
    if node.bounded and node.policy.startswith("allkeys"):
        raise StoreError(
            f"{node.name} evicts any key when it is full (maxmemory-policy {node.policy}), and users would "
            "lose their lists; set maxmemory-policy noeviction"
        )
    needed = run_bytes * node.share
    if node.limit and needed > node.limit - node.used:
        whose = "maxmemory" if node.bounded else "the machine's memory"
        raise StoreError(
            f"{node.name} has {node.free / MIB:.1f} MiB free of {whose}, and the run needs about "
            f"{needed / MIB:.1f} MiB; raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS"
        )
