"""Write a run's lists under its own keys; the live run is not changed.

`write_run` is the chain from scores to Redis, one step a line. Ranges of users are tasks, which threads or
the workers of a cluster run: see batch/publishing/list_tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.arrays import Int64s
from batch.context import Stores
from batch.executors import Executor
from batch.feed_rules.apply import FeedRules
from batch.feed_rules.explore import DrawKey, Exploration
from batch.feed_rules.segments import find_popular_posts
from batch.feed_rules.topics import TopicRule
from batch.ids import Ids
from batch.loading.history import History
from batch.progress import Stages, track
from batch.publishing import shared_keys
from batch.publishing.encode import ListEncoder
from batch.publishing.list_stats import ListCounter, ListStats
from batch.publishing.list_tasks import (
    ListTarget,
    PostsJob,
    UsersJob,
    UsersTask,
    UsersWritten,
    WrittenPart,
    listed_of,
    verify_parts,
    write_posts,
    write_users,
)
from batch.publishing.memory import SAMPLED, Forecast, SampledLists, check_memory
from batch.publishing.sender import fenced
from batch.publishing.written import Written
from batch.runs.ledger import Run
from batch.scoring.chunk import Lists
from batch.scoring.score import PART_USERS, CompiledModel, score_in_chunks
from batch.similar_posts import SimilarityJob, build_post_vectors
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.errors import StoreError
from contract.settings import Settings

PARTS_PER_TASK = 16
"""Parts that a task reads back."""

ADVICE = "is something else writing, evicting, or was Redis restarted? Run again"


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

    Raises
    ------
    StoreError
        The run does not fit into Redis, or its lists do not read back as written.
    ModelError
        The model cannot be scored exactly, or a score is NaN or infinite.
    """
    client, keys, settings, run_id = stores.redis, stores.keys, stores.settings, run.run_id
    n, network = settings.night.top_n, dataset.network
    with stages.stage("score_and_write", "users") as row:
        excluded = excluded_rows(stores, dataset)
        key = DrawKey(model.seed, run.variant, dataset.split.cutoff)
        rules = FeedRules(
            TopicRule.of(network.posts, settings.feed),
            Exploration.of(settings.feed, key, dataset.now, excluded),
        )
        segments = _encode_segments(dataset, excluded, settings)
        compiled = model.compile(network, dataset.now, excluded)
        encoder = ListEncoder(network.post_ids)
        rows, sample = score_sample(compiled, n, users, settings)
        listed = listed_of(network.user_ids[rows], rules.apply(sample, network.user_ids[rows])[0])
        forecast = check_memory(
            client,
            keys,
            run_id,
            SampledLists(listed, encoder, users),
            network,
            similar_n=settings.night.similar_n,
            segments=segments,
        )
        shared_keys.write_first_manifest(client, keys, run_id)
        counter = ListCounter.of(len(network.posts), excluded, n, sample)
        lists = Writing(compiled, n, rules, counter, encoder).write(stores, run_id, network.user_ids[:users])
        shared_keys.write_popular(client, keys.popular(run_id), dataset.now, excluded, n)
        shared_keys.write_segments(client, keys.segments(run_id), segments)
        shared_keys.write_texts(client, keys, network.posts)
        pairs = users * len(network.posts)
        row |= {"users": lists.written.lists, "pairs": pairs, "bytes": lists.written.value_bytes}
        # Summed over tasks, of which several run at a time.
        row["seconds_of_scoring"] = round(lists.written.score_seconds, 3)
        row["seconds_of_writing"] = round(lists.written.write_seconds, 3)
    return WrittenRun(
        users=lists.written,
        stats=lists.stats,
        forecast=forecast,
        left_out=count_left_out(dataset.now, users, lists.stats.left_out),
        segments=len(segments),
        **rules.record(lists.rules),
    )


@dataclass(frozen=True)
class Writing:
    """What is written of a model's users: the lists of at most n posts, by the rules of the feed."""

    compiled: CompiledModel
    n: int
    rules: FeedRules
    counter: ListCounter
    encoder: ListEncoder

    def write(
        self, stores: Stores, run_id: str, ids: Ids, check: Callable[[], None] = lambda: None
    ) -> UsersWritten:
        """Score the first users, whose ids these are, write their lists, and read them back.

        Parameters
        ----------
        check
            Called before each task; an error that it raises ends the work.

        Raises
        ------
        StoreError, ModelError
            As `write_run` does.
        """
        client, keys = stores.redis, stores.keys
        found = UsersWritten(Written(), ListStats(self.counter.allowed.size), self.rules.no_lists())
        with fenced(client, keys, run_id) as fence:
            target = ListTarget(keys.user(run_id, 0).removesuffix("0"), fence, self.encoder, PART_USERS)
            job = UsersJob(self.compiled.forest, self.n, self.rules, self.counter, target)
            with closing(
                stores.executor.map(write_users, job, lambda slots: self._cut(ids, slots, check))
            ) as tasks:
                counted = ((task.written.lists, task) for task in tasks)
                for task in track(counted, ids.size, "score and write", "users"):
                    found.add(task)
        verify(stores.executor, target, found.written, ids)
        return found

    def _cut(self, ids: Ids, slots: int, check: Callable[[], None]) -> Iterator[UsersTask]:
        for first, rows in self.compiled.cut(ids.size, slots):
            check()
            yield UsersTask(first, ids[first : first + len(rows.values)], rows)


def score_sample(compiled: CompiledModel, n: int, users: int, settings: Settings) -> tuple[Int64s, Lists]:
    """Score some of the first users, the first and the last among them; return their rows and lists."""
    rows = np.unique(np.linspace(0, max(users - 1, 0), min(SAMPLED, users)).astype(np.int64))
    some = compiled.of_users(rows)
    chunks = [
        lists
        for _, lists in score_in_chunks(
            some.forest, some.user_rows(0, rows.size), n, settings.night.memory_budget_mib
        )
    ]
    return rows, Lists.concatenate(chunks, n)


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


def _encode_segments(dataset: Dataset, excluded: Int64s, settings: Settings) -> dict[str, str]:
    """Return the popular posts by OVERNIGHT_POPULAR_BY as Redis has them; none if it is empty."""
    name, network = settings.feed.popular_by, dataset.network
    if not name:
        return {}
    found = find_popular_posts(network, dataset.now, excluded, name=name, n=settings.night.top_n)
    return shared_keys.encode_segments(found, network.post_ids)


def write_similar_posts(
    stores: Stores, run: Run, model: Model, dataset: Dataset, *, stages: Stages
) -> Written:
    """Write for each post its most similar posts; nothing if OVERNIGHT_SIMILAR_N is 0."""
    n, ids, written = stores.settings.night.similar_n, dataset.network.post_ids, Written()
    if n == 0:
        return written
    with stages.stage("similar", "posts") as row:
        vectors = build_post_vectors(model, dataset)
        similarity = SimilarityJob.of(vectors, ids.size, excluded_rows(stores, dataset), n)
        size = similarity.posts_per_chunk * -(-PART_USERS // similarity.posts_per_chunk)
        key_start = stores.keys.post(run.run_id, 0).removesuffix("0")
        with fenced(stores.redis, stores.keys, run.run_id) as fence:
            target = ListTarget(key_start, fence, ListEncoder(ids), size)
            job = PostsJob(similarity, ids, target)
            parts = [range(at, min(at + size, ids.size)) for at in range(0, ids.size, size)]
            with closing(stores.executor.map(write_posts, job, lambda _: parts)) as tasks:
                counted = ((task.lists, task) for task in tasks)
                for task in track(counted, ids.size, "similar posts", "posts"):
                    written.add(task)
        verify(stores.executor, target, written, ids)
        row |= {"posts": written.lists, "bytes": written.value_bytes, "without": written.empty}
    return written


def excluded_rows(stores: Stores, dataset: Dataset) -> Int64s:
    """Return the rows of posts that no list may have: blocked posts, and posts newer than the cutoff."""
    blocked = shared_keys.blocked_rows(stores.redis, stores.keys, dataset.network)
    return np.union1d(blocked, dataset.hidden)


def verify(executor: Executor, target: ListTarget, written: Written, ids: Ids) -> None:
    """Read all lists back and check that none is missing and none differs.

    Parameters
    ----------
    ids
        Of the users or posts that should have a list, in the order of the lists.

    Raises
    ------
    StoreError
        A list is missing or differs; the run must not go live.
    """
    if written.lists != ids.size:
        raise StoreError(f"{written.lists} lists were written instead of {ids.size}; run again")
    missing, example, differing = 0, "", 0
    with closing(
        executor.map(verify_parts, target.key_start, lambda _: _cut_parts(target, written, ids))
    ) as tasks:
        for found in tasks:
            missing, differing = missing + found.missing, differing + found.differing
            example = min(filter(None, (example, found.example)), default="")
    if missing:
        raise StoreError(f"{missing} of {ids.size} lists are missing, for example {example}: {ADVICE}")
    if differing:
        raise StoreError(f"lists under {target.key_start} do not read back as written: {ADVICE}")


def _cut_parts(target: ListTarget, written: Written, ids: Ids) -> Iterator[list[WrittenPart]]:
    firsts = range(0, ids.size, target.part)
    for start in range(0, len(firsts), PARTS_PER_TASK):
        yield [
            WrittenPart(ids[first : first + target.part], written.digests[first])
            for first in firsts[start : start + PARTS_PER_TASK]
        ]
