"""Writes lists under a run's own keys, aside from what is live."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import ConnectionError, TimeoutError

from batch import redis_client
from batch.arrays import Float32s, Int32s, Int64s
from batch.publishing.encode import Encoder, Lines, bytes_per_line, pack
from batch.redis_client import blocks, get_many
from batch.scoring.chunk import Lists
from batch.similar_posts import Neighbours
from contract.errors import StoreError
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


ON_THEIR_WAY = 16


@contextmanager
def sending(client: redis.Redis, key_start: str) -> Iterator[Callable[[Lines], None]]:
    """Yield what sends lists; at the end, wait until all of them are written.

    In a cluster, where a command holds only keys of one slot, redis-py sorts
    them, sends them to their nodes and follows them when slots move.
    """
    if redis_client.is_cluster(client):
        yield lambda lines: redis_client.set_many(
            client, {key_start + whose: value for whose, value in lines.rows()}
        )
        return
    with Sender(client) as sender:
        yield lambda lines: sender.send(pack(lines, key_start))
        sender.finish()


class Sender:
    """A connection of the client's, lent for commands that may be sent twice without harm.

    It is redis-py's own connection, so everything that a URL may say holds
    here. One that breaks is made again and sent what it left unanswered; when
    that fails too, the error goes to the caller. An error that the server
    answers with goes to the caller at once.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._unanswered: deque[memoryview] = deque()

    def __enter__(self) -> Sender:
        self._connection: Any = self._pool.get_connection()  # of whose methods some have no types
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unanswered:  # their answers must not reach the next command
            self._connection.disconnect()
        self._pool.release(self._connection)

    def send(self, command: memoryview) -> None:
        """Send one command; when many are unanswered, wait for the first of them."""
        self._unanswered.append(command)
        try:
            self._connection.send_packed_command([command])
            self._await(ON_THEIR_WAY)
        except (ConnectionError, TimeoutError):
            self._send_again()

    def finish(self) -> None:
        """Wait until every command is answered."""
        try:
            self._await(0)
        except (ConnectionError, TimeoutError):
            self._send_again()

    def _await(self, left: int) -> None:
        while len(self._unanswered) > left:
            self._connection.read_response()
            self._unanswered.popleft()

    def _send_again(self) -> None:
        """Connect anew, which redis-py tries as often as the client's `retry` says, and repeat."""
        self._connection.disconnect()
        for command in self._unanswered:
            self._connection.send_packed_command([command])
        self._await(0)


KEYS_AT_A_TIME = 1_000
ADVICE = "is something else writing, evicting, or was Redis restarted? Run again"


def verify(client: redis.Redis, written: Written, expected: int) -> None:
    """Check that every user, or post, has a list, and that all lists read back are those written.

    Raises
    ------
    StoreError
        Something is missing or differs; the run must not go live.
    """
    if written.lists != expected:
        raise StoreError(f"{written.lists} lists were written, {expected} were due; run again")
    found, missing, some = hashlib.sha256(), 0, ""
    for block in blocks(chain.from_iterable(ids.tolist() for ids in written.ids), KEYS_AT_A_TIME):
        names = [f"{written.key_start}{whose}" for whose in block]
        values = get_many(client, names)
        gone = [name for name, value in zip(names, values, strict=True) if value is None]
        missing, some = missing + len(gone), some or "".join(gone[:1])
        lines = (f"{whose}\t{value}\n" for whose, value in zip(block, values, strict=True))
        found.update("".join(lines).encode())
    if missing:
        raise StoreError(f"{missing} of {expected} lists are gone, {some} among them: {ADVICE}")
    if found.digest() != written.checksum.digest():
        raise StoreError(f"lists under {written.key_start} do not read back as written: {ADVICE}")
