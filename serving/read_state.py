"""Reads the small state from Redis. What is broken there is left out and complained of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from contract.codec import decode_list, decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.keys import Keys
from contract.run_id import parse_run_id
from contract.score_kind import recipe_of
from serving.state import Run, State
from serving.texts import Post, Texts, decode_post

POSTS_PER_SCAN = 1000
POSTS_AT_A_STRETCH, BREATH_SECONDS = 64, 0.0005
"""Requests are answered by the same interpreter: it is left to them so long after so many texts."""


class NotLiveError(StoreError):
    """Raised when no variant has a run that can be served."""


def read_state(redis: Redis, keys: Keys, previous: State | None, texts_in_memory: int) -> State:
    """Read the state as it is now; runs only where they changed since `previous`, texts where any are new.

    Parameters
    ----------
    texts_in_memory
        Of more posts than this the texts stay in Redis, but those of the popular ones.

    Raises
    ------
    RedisError
        If Redis does not answer.
    NotLiveError
        If no variant has a live run. An emptied Redis looks like this, so the
        previous state, blocked posts and all, is better kept.
    """
    complaints: list[str] = []
    runs = {}
    for variant in VARIANTS:
        known = previous.runs.get(variant) if previous else None
        run = _read_run(redis, keys, variant, known, complaints)
        if run is not None:
            runs[variant] = run
    if not runs:
        raise NotLiveError("; ".join(["no variant has a live run", *complaints]))
    experiment = _read_experiment(redis, keys, previous, complaints)
    blocked = _read_blocked(redis, keys, complaints)
    stored = redis.hlen(keys.posts)  # a refresh adds posts while the run stays
    unchanged = previous is not None and (runs, stored) == (previous.runs, previous.posts_stored)
    if previous and unchanged:
        texts = previous.texts
    elif stored <= texts_in_memory:
        texts = Texts(_decode_posts(redis.hscan_iter(keys.posts, count=POSTS_PER_SCAN), keys, complaints))
    else:
        texts = Texts(_read_popular_posts(redis, keys, runs.values(), complaints), texts_in_memory)
    return State(runs, experiment, blocked, texts, stored, tuple(complaints))


def _read_run(redis: Redis, keys: Keys, variant: str, known: Run | None, complaints: list[str]) -> Run | None:
    """Return the variant's live run; `known`, the one before, when the new one is incomplete."""
    pointer = redis.get(keys.live(variant))
    if pointer is None:
        return None
    run_id = pointer.decode(errors="replace") if isinstance(pointer, bytes) else pointer
    if known is not None and known.run_id == run_id and known.recipe is not None:
        return known
    try:
        begun_at, _ = parse_run_id(run_id)
        manifest = redis.get(keys.manifest(run_id))
        popular = redis.get(keys.popular(run_id))
        if manifest is None or popular is None:
            raise ValueError(f"{run_id} lacks its manifest or its popular list")
        fields = decode_object(manifest)
        published_at = _published_at(fields, begun_at)
        return Run(run_id, variant, published_at, decode_list(popular), recipe_of(fields))
    except ValueError as error:
        complaints.append(f"the live run of {variant} cannot be served, keeping the one before: {error}")
        return known


def _published_at(manifest: Mapping[str, object], begun_at: datetime) -> datetime:
    """Return when the run went live; when it was begun, if the manifest does not tell."""
    try:
        moment = datetime.fromisoformat(str(manifest.get("published_at")))
    except ValueError:
        return begun_at
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_experiment(redis: Redis, keys: Keys, previous: State | None, complaints: list[str]) -> Experiment:
    value = redis.get(keys.experiment)
    known = previous.experiment if previous else NO_EXPERIMENT
    if value is None:
        if known != NO_EXPERIMENT:
            complaints.append(f"{keys.experiment} is gone, keeping the split as it was")
        return known
    try:
        return Experiment.from_fields(decode_object(value))
    except ValueError as error:
        complaints.append(f"{keys.experiment} is broken, keeping the split as it was: {error}")
        return known


def _read_blocked(redis: Redis, keys: Keys, complaints: list[str]) -> frozenset[int]:
    blocked = set()
    for member in redis.smembers(keys.blocked):
        try:
            blocked.add(int(member))
        except ValueError:
            complaints.append(f"{keys.blocked} holds {member[:80]!r}, which is not a post's id")
    return frozenset(blocked)


def _read_popular_posts(
    redis: Redis, keys: Keys, runs: Iterable[Run], complaints: list[str]
) -> dict[int, Post]:
    """Read the texts of every post in a popular list, which is answered from memory when Redis is away."""
    post_ids = sorted({post_id for run in runs for post_id, _ in run.popular})
    if not post_ids:
        return {}
    found = zip(post_ids, redis.hmget(keys.posts, post_ids), strict=True)
    return _decode_posts(
        ((post_id, value) for post_id, value in found if value is not None), keys, complaints
    )


def _decode_posts(rows: Iterable[tuple[Any, Any]], keys: Keys, complaints: list[str]) -> dict[int, Post]:
    posts, broken = {}, 0
    for count, (post_id, value) in enumerate(rows, 1):
        if count % POSTS_AT_A_STRETCH == 0:
            time.sleep(BREATH_SECONDS)
        try:
            posts[int(post_id)] = decode_post(value)
        except ValueError:
            broken += 1
    if broken:
        complaints.append(f"{keys.posts} holds {broken} broken posts; they are served without text")
    return posts
