"""Writes lists under a run's own keys, aside from what is live."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from batch.arrays import Float32s, Int32s, Int64s
from batch.publishing.encode import Encoder, Lines, bytes_per_line
from batch.publishing.send import sending
from batch.scoring.chunk import Lists
from batch.similarity.similar import Neighbours
from contract.keys import Keys

COMMAND_BYTES = 512 * 1024
"""The most that the lists of one command can take. Redis answers nobody else while it carries one out."""

Listed = tuple[Int64s, Int32s, Float32s]
"""Whose lists they are (ids), the posts listed (places, -1 pads) and their scores."""


@dataclass
class Written:
    """What was written so far.

    Attributes
    ----------
    key_start
        What the lists' keys start with; the id follows.
    lists, short, empty
        Lists written; of them shorter than N; of them with nothing in them.
    value_bytes
        Size of all lists.
    checksum
        SHA-256 over `id<TAB>list<LF>` in the order of the users' or posts'
        ids: equal checksums mean equal lists.
    ids
        Whose lists were written, in that order, a block at a time.
    """

    key_start: str = ""
    lists: int = 0
    short: int = 0
    empty: int = 0
    value_bytes: int = 0
    checksum: Any = field(default_factory=hashlib.sha256)
    ids: list[Int64s] = field(default_factory=list)

    def count(self, ids: Int64s, lines: Lines, n: int) -> None:
        """Add a block of lists that hold at most n posts."""
        self.lists += len(ids)
        self.short += int((lines.lengths < n).sum())
        self.empty += int((lines.lengths == 0).sum())
        self.value_bytes += int(lines.value_bytes.sum())
        self.checksum.update(lines.text)
        self.ids.append(ids)


def write_lists(
    client: redis.Redis, keys: Keys, run_id: str, chunks: Iterable[Lists], post_ids: Int64s
) -> Written:
    """Write every user's list; the live run is not touched.

    Raises
    ------
    ModelError
        A score is no number that JSON has a word for.
    """
    listed = ((chunk.user_ids, chunk.posts, chunk.scores) for chunk in chunks)
    return _write(client, keys.user(run_id, 0).removesuffix("0"), listed, post_ids)


def write_similar(
    client: redis.Redis, keys: Keys, run_id: str, chunks: Iterable[Neighbours], post_ids: Int64s
) -> Written:
    """Write every post's list of similar posts; one that has none gets an empty list."""
    listed = ((chunk.post_ids, chunk.posts, chunk.similarities) for chunk in chunks)
    return _write(client, keys.post(run_id, 0).removesuffix("0"), listed, post_ids)


def _write(client: redis.Redis, key_start: str, chunks: Iterable[Listed], post_ids: Int64s) -> Written:
    written, encoder = Written(key_start), Encoder(post_ids)
    with sending(client, key_start) as send:
        for ids, posts, scores in blocks_of(chunks):
            lines = encoder.lines(ids, posts, scores)
            send(lines)
            written.count(ids, lines, posts.shape[1])
    return written


def blocks_of(chunks: Iterable[Listed]) -> Iterator[Listed]:
    """Cut chunks into blocks of which each makes one command."""
    for ids, posts, scores in chunks:
        step = max(1, COMMAND_BYTES // bytes_per_line(posts.shape[1]))
        for start in range(0, len(ids), step):
            block = slice(start, start + step)
            yield ids[block], posts[block], scores[block]
