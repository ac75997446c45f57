"""Read the state from Redis. Broken values are ignored, with a warning."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from redis import Redis

from contract.codec import Ranked, decode_list, decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.ids import Id, IdKind, IdKinds, parse_id
from contract.keys import Keys
from contract.manifest import parse_time
from contract.run_id import parse_run_id
from contract.score_kind import recipe_of
from serving.state import Run, State, popular_posts
from serving.texts import Post, Texts, decode_post

POSTS_PER_SCAN = 1000
POSTS_BATCH, YIELD_SECONDS = 64, 0.0005
"""After this many texts the thread sleeps this long, so that threads with requests get the GIL."""


class NotLiveError(StoreError):
    """Raised when no variant has a run that can be served."""


def read_state(redis: Redis, keys: Keys, previous: State | None, texts_in_memory: int) -> State:
    """Read the state; reuse what has not changed of `previous` (its runs and texts).

    Parameters
    ----------
    texts_in_memory
        Maximum number of texts to keep in memory. If there are more posts, only
        the texts of popular posts are read; the others are read on demand.

    Raises
    ------
    RedisError
        If Redis does not answer.
    NotLiveError
        If no variant has a live run. This is how an emptied Redis looks, so the
        caller should keep the previous state with its blocked posts.
    """
    return _StateReader(redis, keys, previous).read(texts_in_memory)


class _StateReader:
    """Reads one state, and collects its warnings."""

    def __init__(self, redis: Redis, keys: Keys, previous: State | None) -> None:
        self._redis = redis
        self._keys = keys
        self._previous = previous
        self._warnings: list[str] = []

    def read(self, texts_in_memory: int) -> State:
        found = {variant: self._read_run(variant) for variant in VARIANTS}
        runs = {variant: run for variant, run in found.items() if run is not None}
        if not runs:
            raise NotLiveError("; ".join(["no variant has a live run", *self._warnings]))
        experiment = self._read_experiment()
        kinds = {run.ids.posts for run in runs.values()}  # two, while a network changes them
        blocked = self._read_post_ids(self._keys.blocked, kinds) | self._read_post_ids(self._keys.gone, kinds)
        stored = self._redis.hlen(self._keys.posts)  # `batch refresh` adds posts to a live run
        before = self._previous
        if before is not None and (runs, stored) == (before.runs, before.posts_stored):
            texts = before.texts
        elif stored <= texts_in_memory:
            every = self._redis.hscan_iter(self._keys.posts, count=POSTS_PER_SCAN)
            texts = Texts(self._decode_posts(every, kinds))
        else:
            texts = Texts(self._read_popular_posts(runs.values(), kinds), texts_in_memory)
        return State(runs, experiment, blocked, texts, stored, tuple(self._warnings))

    def _read_run(self, variant: str) -> Run | None:
        """Return the variant's live run; the previous one if the new one is incomplete."""
        known = self._previous.runs.get(variant) if self._previous else None
        # What was loaded from a file may be what an earlier release knew of the run.
        known_is_stale = self._previous is not None and self._previous.stale
        pointer = self._redis.get(self._keys.live(variant))
        if pointer is None:
            return None
        run_id = pointer.decode(errors="replace") if isinstance(pointer, bytes) else pointer
        if known is not None and known.run_id == run_id and not known_is_stale:
            return known
        try:
            started_at, _ = parse_run_id(run_id)
            manifest = self._redis.get(self._keys.manifest(run_id))
            popular = self._redis.get(self._keys.popular(run_id))
            if manifest is None or popular is None:
                raise ValueError(f"{run_id} has no manifest or no popular list")
            fields = decode_object(manifest)
            published_at = parse_time(fields.get("published_at")) or started_at
            ids, popular_by = IdKinds.from_record(fields.get("ids")), fields.get("popular_by")
            return Run(
                run_id,
                variant,
                published_at,
                decode_list(popular, ids.posts),
                recipe=recipe_of(fields),
                ids=ids,
                popular_by=popular_by,
                segments={} if popular_by is None else self._read_segments(run_id, ids.posts),
            )
        except ValueError as error:
            self._warn(f"the live run of {variant} cannot be served, keeping the one before: {error}")
            return known

    def _read_segments(self, run_id: str, kind: IdKind) -> dict[str, Ranked]:
        """Read the popular lists of all segments; a broken one is left out."""
        key, segments = self._keys.segments(run_id), {}
        for name, value in self._redis.hscan_iter(key):
            segment = name.decode(errors="replace") if isinstance(name, bytes) else name
            try:
                segments[segment] = decode_list(value, kind)
            except ValueError as error:
                self._warn(f"{key} has a broken list of {segment[:80]!r}, which gets the run's: {error}")
        return segments

    def _read_experiment(self) -> Experiment:
        value = self._redis.get(self._keys.experiment)
        known = self._previous.experiment if self._previous else NO_EXPERIMENT
        if value is None:
            if known != NO_EXPERIMENT:
                self._warn(f"{self._keys.experiment} is gone, keeping the split as it was")
            return known
        try:
            return Experiment.from_fields(decode_object(value))
        except ValueError as error:
            self._warn(f"{self._keys.experiment} is broken, keeping the split as it was: {error}")
            return known

    def _read_post_ids(self, key: str, kinds: Collection[IdKind]) -> frozenset[Id]:
        post_ids: set[Id] = set()
        for member in self._redis.smembers(key):
            found = _decode_id(member, kinds)
            post_ids |= found
            if not found:
                self._warn(f"{key} holds {member[:80]!r}, which is not a post's id")
        return frozenset(post_ids)

    def _read_popular_posts(self, runs: Iterable[Run], kinds: Collection[IdKind]) -> dict[Id, Post]:
        """Read the texts of all popular lists, which are served from memory without Redis."""
        post_ids = popular_posts(runs)
        if not post_ids:
            return {}
        found = zip(post_ids, self._redis.hmget(self._keys.posts, post_ids), strict=True)
        rows = ((str(post_id), value) for post_id, value in found if value is not None)
        return self._decode_posts(rows, kinds)

    def _decode_posts(self, rows: Iterable[tuple[Any, Any]], kinds: Collection[IdKind]) -> dict[Id, Post]:
        posts: dict[Id, Post] = {}
        broken = 0
        for count, (post_id, value) in enumerate(rows, 1):
            if count % POSTS_BATCH == 0:
                time.sleep(YIELD_SECONDS)
            found = _decode_id(post_id, kinds)
            try:
                posts |= dict.fromkeys(found, decode_post(value))
                broken += not found
            except ValueError:
                broken += 1
        if broken:
            self._warn(f"{self._keys.posts} holds {broken} broken posts; they are served without text")
        return posts

    def _warn(self, message: str) -> None:
        self._warnings.append(message)


def _decode_id(stored: bytes | str, kinds: Collection[IdKind]) -> set[Id]:
    """Decode an id that is a member of a set or a field of a hash, as an id of each kind that it can be."""
    found: set[Id] = set()
    for kind in kinds:
        with suppress(ValueError):
            if kind is IdKind.NUMBER:
                found.add(int(stored))
            else:
                found.add(parse_id(stored.decode() if isinstance(stored, bytes) else stored, kind))
    return found
