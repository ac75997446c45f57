"""Write a run's lists under its own keys; the live run is not changed.

write_run is the chain from scores to Redis, one step a line.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import redis
from redis.exceptions import ConnectionError, TimeoutError

from batch import redis_client
from batch.arrays import Float32s, Int32s, Int64s
from batch.context import Stores
from batch.feed_rules.explore import DrawKey, Exploration
from batch.feed_rules.segments import find_popular_posts
from batch.feed_rules.topics import TopicStats
from batch.ids import Ids, encode_ids
from batch.loading.history import History
from batch.progress import Stages, TimedIterator, track
from batch.publishing import shared_keys
from batch.publishing.encode import Lines, ListEncoder, pack
from batch.publishing.list_stats import ListStats
from batch.publishing.memory import Forecast, check_memory
from batch.redis_client import blocks, get_many
from batch.runs.ledger import Run
from batch.scoring.chunk import Lists
from batch.similar_posts import Neighbours, build_post_vectors, find_similar_posts
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.errors import StoreError
from contract.keys import Keys
from contract.settings import Settings

COMMAND_BYTES = 512 * 1024
"""Maximum size of one command. Redis answers no other client while it runs a command."""


class Listed(NamedTuple):
    """(lists,) rows of the owners; (lists, n) rows of the listed posts, -1 pads; (lists, n) their scores.

    `drawn_from` is as in `scoring.chunk.Lists`.
    """

    owners: Int64s
    posts: Int32s
    scores: Float32s
    drawn_from: Int32s | None = None

    def rows(self, block: slice) -> Listed:
        """Return some of the lists."""
        drawn_from = None if self.drawn_from is None else self.drawn_from[block]
        return Listed(self.owners[block], self.posts[block], self.scores[block], drawn_from)


@dataclass
class Written:
    """Lists written so far.

    Attributes
    ----------
    key_start
        Prefix of the lists' keys; the encoded id follows.
    lists, short, empty
        Lists written; those shorter than N; those without any post.
    value_bytes
        Size of all lists.
    checksum
        SHA-256 over `id<TAB>list<LF>` in the order of the users' or posts' ids, which are encoded: equal
        checksums mean equal lists.
    ids
        Ids of the lists' owners in that order, one array per block.
    """

    key_start: str = ""
    lists: int = 0
    short: int = 0
    empty: int = 0
    value_bytes: int = 0
    checksum: Any = field(default_factory=hashlib.sha256)
    ids: list[Ids] = field(default_factory=list)

    def count(self, ids: Ids, lines: Lines, n: int) -> None:
        """Count a block of lists of at most n posts."""
        self.lists += len(ids)
        self.short += int((lines.lengths < n).sum())
        self.empty += int((lines.lengths == 0).sum())
        self.value_bytes += int(lines.value_bytes.sum())
        self.checksum.update(lines.text)
        self.ids.append(ids)


@dataclass(frozen=True)
class WrittenRun:
    """The lists of a run as written: users' lists, their counts, and the memory that was expected.

    Attributes
    ----------
    left_out
        Reason -> pairs of a user and a post that the lists leave out.
    topics
        From `TopicStats.record`; None without a limit of posts per topic.
    explored
        From `Exploration.record`; None without explored places.
    segments
        Number of values with popular posts of their own.
    """

    users: Written
    stats: ListStats
    forecast: Forecast
    left_out: dict[str, int]
    topics: dict[str, Any] | None = None
    explored: dict[str, int] | None = None
    segments: int = 0


def write_run(
    stores: Stores, run: Run, model: Model, dataset: Dataset, *, users: int, stages: Stages
) -> WrittenRun:
    """Score the first `users` users and write their lists, the popular posts and the posts' texts.

    Each step below pulls chunks from the one before it, so only a few chunks are in memory at a time.

    Raises
    ------
    StoreError
        The run does not fit into Redis, or its lists do not read back as written.
    ModelError
        The model cannot be scored exactly, or a score is NaN or infinite.
    """
    client, keys, settings, run_id = stores.redis, stores.keys, stores.settings, run.run_id
    with stages.stage("score_and_write", "users") as row:
        excluded = excluded_rows(stores, dataset)
        network = dataset.network
        topics = TopicStats.of(network.posts, settings.feed)
        key = DrawKey(model.seed, run.variant, dataset.split.cutoff)
        exploration = Exploration.of(settings.feed, key, dataset.now, excluded, network.user_ids)
        segments = _encode_segments(dataset, excluded, settings)
        stats = ListStats(len(network.posts), excluded, settings.night.top_n)
        chunks = stats.through(score_lists(model, dataset, excluded, users=users, settings=settings))
        chunks = apply_rules(chunks, topics, exploration)
        waiting = TimedIterator(chunks)
        tracked = track(waiting, users, "score and write", "users")
        lists, forecast = check_memory(
            client,
            keys,
            run_id,
            tracked,
            network,
            users=users,
            similar_n=settings.night.similar_n,
            segments=segments,
        )
        shared_keys.write_first_manifest(client, keys, run_id)
        written = write_lists(
            client,
            keys,
            run_id,
            lists,
            user_ids=network.user_ids,
            post_ids=network.post_ids,
        )
        shared_keys.write_popular(client, keys.popular(run_id), dataset.now, excluded, settings.night.top_n)
        shared_keys.write_segments(client, keys.segments(run_id), segments)
        shared_keys.write_texts(client, keys, network.posts)
        verify(client, written, users)
        pairs = users * len(network.posts)
        row |= {"users": written.lists, "pairs": pairs, "bytes": written.value_bytes}
        # Chunks are scored while others are written: this is the time that writing waited for scores.
        row["seconds_waited_for_scores"] = round(waiting.seconds, 3)
    return WrittenRun(
        users=written,
        stats=stats,
        forecast=forecast,
        left_out=count_left_out(dataset.now, users, stats.left_out),
        topics=None if topics is None else topics.record(),
        explored=None if exploration is None else exploration.record(),
        segments=len(segments),
    )


def count_left_out(history: History, users: int, pairs: int) -> dict[str, int]:
    """Count the pairs of the first `users` users and a post that lists leave out, by the first reason.

    Parameters
    ----------
    pairs
        All of them.
    """
    liked, own = history.excluded.of_users(0, users), 0
    if history.own is not None:
        own = liked.union(history.own.of_users(0, users)).posts.size - liked.posts.size
    return {"liked": liked.posts.size, "own": own, "viewed": pairs - liked.posts.size - own}


def apply_rules(
    chunks: Iterator[tuple[int, Lists]], topics: TopicStats | None, exploration: Exploration | None
) -> Iterator[tuple[int, Lists]]:
    """Apply the rules of the feed to scored lists, chunk by chunk."""
    limited = chunks if topics is None else topics.through(chunks)
    return limited if exploration is None else exploration.through(limited)


def _encode_segments(dataset: Dataset, excluded: Int64s, settings: Settings) -> dict[str, str]:
    """Return the popular posts by OVERNIGHT_POPULAR_BY as Redis has them; none if it is empty."""
    name, network = settings.feed.popular_by, dataset.network
    if not name:
        return {}
    found = find_popular_posts(network, dataset.now, excluded, name=name, n=settings.night.top_n)
    return shared_keys.encode_segments(found, network.post_ids)


def score_lists(
    model: Model, dataset: Dataset, excluded: Int64s, *, users: int, settings: Settings
) -> Iterator[tuple[int, Lists]]:
    """Compile a model and score the first `users` users; yield (number of users, their lists) by chunk."""
    compiled = model.compile(dataset.network, dataset.now, excluded)
    yield from compiled.score(
        settings.night.top_n,
        users=users,
        budget_mib=settings.night.memory_budget_mib,
        threads=settings.night.threads,
    )


def write_similar_posts(
    stores: Stores, run: Run, model: Model, dataset: Dataset, *, stages: Stages
) -> Written:
    """Write for each post its most similar posts; nothing if OVERNIGHT_SIMILAR_N is 0."""
    client, n = stores.redis, stores.settings.night.similar_n
    if n == 0:
        return Written()
    with stages.stage("similar", "posts") as row:
        posts = len(dataset.network.posts)
        found = find_similar_posts(
            build_post_vectors(model, dataset), posts, excluded_rows(stores, dataset), n
        )
        lists = track(found, posts, "similar posts", "posts")
        written = write_similar(client, stores.keys, run.run_id, lists, dataset.network.post_ids)
        verify(client, written, posts)
        row |= {"posts": written.lists, "bytes": written.value_bytes, "without": written.empty}
    return written


def excluded_rows(stores: Stores, dataset: Dataset) -> Int64s:
    """Return the rows of posts that no list may have: blocked posts, and posts newer than the cutoff."""
    blocked = shared_keys.blocked_rows(stores.redis, stores.keys, dataset.network)
    return np.union1d(blocked, dataset.hidden)


def write_lists(
    client: redis.Redis,
    keys: Keys,
    run_id: str,
    chunks: Iterable[Lists],
    *,
    user_ids: Ids,
    post_ids: Ids,
) -> Written:
    """Write every user's list.

    Parameters
    ----------
    user_ids, post_ids
        Ids of the users and posts whose rows the lists have.

    Raises
    ------
    ModelError
        A score is NaN or infinite.
    """
    listed = (Listed(chunk.rows, chunk.posts, chunk.scores, chunk.drawn_from) for chunk in chunks)
    encoder = ListEncoder(user_ids, post_ids)
    return _write(client, keys.user(run_id, 0).removesuffix("0"), listed, encoder)


def write_similar(
    client: redis.Redis, keys: Keys, run_id: str, chunks: Iterable[Neighbours], post_ids: Ids
) -> Written:
    """Write every post's list of similar posts; a post without any gets an empty list."""
    listed = (Listed(chunk.rows, chunk.posts, chunk.similarities) for chunk in chunks)
    encoder = ListEncoder(post_ids, post_ids)
    return _write(client, keys.post(run_id, 0).removesuffix("0"), listed, encoder)


def _write(client: redis.Redis, key_start: str, chunks: Iterable[Listed], encoder: ListEncoder) -> Written:
    written = Written(key_start)
    with sending(client, key_start) as send:
        for listed in cut_blocks(chunks, encoder):
            lines = encoder.lines(*listed)
            send(lines)
            written.count(encoder.owner_ids[listed.owners], lines, listed.posts.shape[1])
    return written


def cut_blocks(chunks: Iterable[Listed], encoder: ListEncoder) -> Iterator[Listed]:
    """Cut chunks into blocks, one block per command."""
    for chunk in chunks:
        step = max(1, COMMAND_BYTES // encoder.bytes_per_line(chunk.posts.shape[1]))
        for start in range(0, len(chunk.owners), step):
            yield chunk.rows(slice(start, start + step))


MAX_UNANSWERED = 16


@contextmanager
def sending(client: redis.Redis, key_start: str) -> Iterator[Callable[[Lines], None]]:
    """Yield a function that sends lists; at the end, wait until all are written.

    In a cluster a command has keys of one slot only; redis-py groups the keys, sends them to their nodes
    and follows slots that move.
    """
    if redis_client.is_cluster(client):
        yield lambda lines: redis_client.set_many(
            client, {key_start + owner: value for owner, value in lines.rows()}
        )
        return
    with Sender(client) as sender:
        yield lambda lines: sender.send(pack(lines, key_start))
        sender.finish()


class Sender:
    """Send commands in a pipeline over one connection of the client; they may be sent twice.

    It uses redis-py's own connection, so all options of the URL apply. If the connection breaks, it
    connects again and repeats the unanswered commands; if that fails too, the caller gets the error. An
    error reply of the server goes to the caller at once.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._unanswered: deque[memoryview] = deque()

    def __enter__(self) -> Sender:
        self._connection: Any = self._pool.get_connection()  # some of its methods have no types
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unanswered:  # their answers must not reach the next command
            self._connection.disconnect()
        self._pool.release(self._connection)

    def send(self, command: memoryview) -> None:
        """Send one command; if many are unanswered, wait for the first of them."""
        self._unanswered.append(command)
        try:
            self._connection.send_packed_command([command])
            self._await(MAX_UNANSWERED)
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
        """Connect again (retried as the client's `retry` says) and repeat the unanswered commands."""
        self._connection.disconnect()
        for command in self._unanswered:
            self._connection.send_packed_command([command])
        self._await(0)


KEYS_BATCH = 1_000
ADVICE = "is something else writing, evicting, or was Redis restarted? Run again"


def verify(client: redis.Redis, written: Written, expected: int) -> None:
    """Read all lists back and check that none is missing and none differs.

    Parameters
    ----------
    expected
        Number of users or posts that should have a list.

    Raises
    ------
    StoreError
        A list is missing or differs; the run must not go live.
    """
    if written.lists != expected:
        raise StoreError(f"{written.lists} lists were written instead of {expected}; run again")
    checksum, missing, example = hashlib.sha256(), 0, ""
    for block in blocks(chain.from_iterable(encode_ids(ids) for ids in written.ids), KEYS_BATCH):
        names = [written.key_start + owner for owner in block]
        values = get_many(client, names)
        absent = [name for name, value in zip(names, values, strict=True) if value is None]
        missing, example = missing + len(absent), example or "".join(absent[:1])
        lines = (f"{owner}\t{value}\n" for owner, value in zip(block, values, strict=True))
        checksum.update("".join(lines).encode())
    if missing:
        raise StoreError(f"{missing} of {expected} lists are missing, for example {example}: {ADVICE}")
    if checksum.digest() != written.checksum.digest():
        raise StoreError(f"lists under {written.key_start} do not read back as written: {ADVICE}")
