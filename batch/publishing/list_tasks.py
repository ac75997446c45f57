"""Tasks that make lists and write them, and tasks that read them back: see `batch.executors`.

A task has consecutive users or posts. It begins where a part begins, and a part has a fixed number of lists,
so that the digests of parts are the same however the work is cut into tasks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from batch.arrays import Float32s, Int32s
from batch.executors import TaskContext, uses_blas
from batch.feed_rules.apply import FeedRules, RuleStats
from batch.ids import Ids, encode_ids
from batch.progress import TimedIterator
from batch.publishing.encode import ListEncoder
from batch.publishing.list_stats import ListCounter, ListStats
from batch.publishing.sender import Fence, sending
from batch.publishing.written import Written
from batch.redis_client import blocks, get_many
from batch.scoring.chunk import Lists, UserRows
from batch.scoring.compile import CompiledForest
from batch.scoring.score import score_in_chunks
from batch.similar_posts import SimilarityJob, find_neighbours

COMMAND_BYTES = 512 * 1024
"""Maximum size of one command. Redis answers no other client while it runs a command."""

KEYS_BATCH = 1_000
"""Lists that are read back at a time."""


class Listed(NamedTuple):
    """(lists,) ids of the owners; (lists, n) rows of the listed posts, -1 pads; (lists, n) their scores.

    `drawn_from` is as in `scoring.chunk.Lists`.
    """

    owners: Ids
    posts: Int32s
    scores: Float32s
    drawn_from: Int32s | None = None

    def rows(self, block: slice) -> Listed:
        """Return some of the lists."""
        drawn_from = None if self.drawn_from is None else self.drawn_from[block]
        return Listed(self.owners[block], self.posts[block], self.scores[block], drawn_from)


@dataclass(frozen=True)
class ListTarget:
    """Where lists are written, and how they are encoded.

    Attributes
    ----------
    key_start
        Prefix of the lists' keys; the encoded id follows.
    fence
        Of the stage that writes.
    encoder
        Of the ids of the posts in lists.
    part
        Lists of one part.
    """

    key_start: str
    fence: Fence
    encoder: ListEncoder
    part: int


@dataclass(frozen=True)
class UsersJob:
    """What all tasks that write users' lists share.

    Attributes
    ----------
    n
        Longest list.
    """

    forest: CompiledForest
    n: int
    rules: FeedRules
    counter: ListCounter
    target: ListTarget


@dataclass(frozen=True)
class UsersTask:
    """Users whose lists a task writes: number of users before them, their ids, and what to score them by."""

    first: int
    ids: Ids
    rows: UserRows


@dataclass
class UsersWritten:
    """Users' lists written so far, and counts of them before and after the rules of the feed."""

    written: Written
    stats: ListStats
    rules: RuleStats

    def add(self, other: UsersWritten) -> None:
        """Add other users' lists."""
        self.written.add(other.written)
        self.stats.add(other.stats)
        self.rules.add(other.rules)


def write_users(context: TaskContext, job: UsersJob, task: UsersTask) -> UsersWritten:
    """Score users, apply the rules of the feed, and write their lists.

    Raises
    ------
    ModelError
        A score is NaN or infinite.
    StoreError
        The stage may not write any more.
    """
    stats, rules = ListStats(job.counter.allowed.size), RuleStats()

    def make_lists() -> Iterator[Listed]:
        for some, lists in score_in_chunks(job.forest, task.rows, job.n, context.budget_mib):
            stats.add(job.counter.count(lists))
            changed, found = job.rules.apply(lists, task.ids[some])
            rules.add(found)
            yield listed_of(task.ids[some], changed)

    return UsersWritten(write_lists(context, job.target, task.first, make_lists()), stats, rules)


def listed_of(owners: Ids, lists: Lists) -> Listed:
    """Return the lists of some owners as they are written."""
    return Listed(owners, lists.posts, lists.scores, lists.drawn_from)


@dataclass(frozen=True)
class PostsJob:
    """What all tasks that write posts' lists share; `post_ids` has the id of each row."""

    similarity: SimilarityJob
    post_ids: Ids
    target: ListTarget


@uses_blas
def write_posts(context: TaskContext, job: PostsJob, rows: range) -> Written:
    """Find the most similar posts of some posts, and write their lists, which may be empty."""
    found = find_neighbours(job.similarity, rows)
    listed = (Listed(job.post_ids[some.rows], some.posts, some.similarities) for some in found)
    return write_lists(context, job.target, rows.start, listed)


def write_lists(context: TaskContext, target: ListTarget, first: int, chunks: Iterable[Listed]) -> Written:
    """Write lists as they are made.

    Parameters
    ----------
    first
        Number of the run's lists before these: a multiple of the lists of a part.
    """
    started = time.perf_counter()
    made, written, digests = TimedIterator(chunks), Written(), dict[int, Any]()
    with sending(context.redis, target.key_start, target.fence) as send:
        for at, block in cut_blocks(made, target, first):
            lines = target.encoder.lines(*block)
            send(lines)
            digests.setdefault(at - at % target.part, hashlib.sha256()).update(lines.text)
            written.lists += len(block.owners)
            written.short += int((lines.lengths < block.posts.shape[1]).sum())
            written.empty += int((lines.lengths == 0).sum())
            written.value_bytes += int(lines.value_bytes.sum())
    written.digests = {start: digest.digest() for start, digest in digests.items()}
    written.score_seconds = made.seconds
    written.write_seconds = time.perf_counter() - started - made.seconds
    return written


def cut_blocks(chunks: Iterable[Listed], target: ListTarget, first: int) -> Iterator[tuple[int, Listed]]:
    """Cut chunks into blocks, one per command and none of two parts; yield (lists before it, block)."""
    for chunk in chunks:
        longest = target.encoder.bytes_per_line(chunk.owners, chunk.posts.shape[1])
        size, start, count = max(1, COMMAND_BYTES // longest), 0, len(chunk.owners)
        while start < count:
            at = first + start
            stop = min(start + size, count, start + target.part - at % target.part)
            yield at, chunk.rows(slice(start, stop))
            start = stop
        first += count


class Verification(NamedTuple):
    """Lists that are missing, with the key of one; number of parts that differ."""

    missing: int
    example: str
    differing: int


class WrittenPart(NamedTuple):
    """Part of the lists as they were written: (lists,) ids of the owners, and the digest."""

    owners: Ids
    digest: bytes


def verify_parts(context: TaskContext, key_start: str, parts: list[WrittenPart]) -> Verification:
    """Read lists back and compare them with what was written."""
    missing, example, differing = 0, "", 0
    for part in parts:
        checksum = hashlib.sha256()
        for block in blocks(encode_ids(part.owners), KEYS_BATCH):
            names = [key_start + owner for owner in block]
            values = get_many(context.redis, names)
            absent = [name for name, value in zip(names, values, strict=True) if value is None]
            missing, example = missing + len(absent), example or "".join(absent[:1])
            lines = (f"{owner}\t{value}\n" for owner, value in zip(block, values, strict=True))
            checksum.update("".join(lines).encode())
        differing += checksum.digest() != part.digest
    return Verification(missing, example, differing)
