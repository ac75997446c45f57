"""Synthetic lists in which the id of a post gives its run and whether it is popular.

Run k owns the posts k * 1000 + n. Those with n below PERSONAL are in users'
lists, the next ones in the popular list. So an answer that mixes two runs, or
takes a popular post for a personal one, is detected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from redis import Redis

from contract.codec import encode_list, encode_object
from contract.experiment import CONTROL, TEST, Experiment
from contract.keys import Keys

KEYS = Keys()
EXPERIMENT = Experiment("fire", "salt", 50)
MAX_RUNS = 20
"""Even runs are of control, odd runs of test."""

POSTS_PER_RUN = 1000
PERSONAL, POPULAR = 300, 50
TOP_N = 50
TEXT_CHARACTERS = 1_600
BLOCKED = (0, 11, PERSONAL, PERSONAL + 3)
"""These posts of every run are blocked, the most popular one included."""

KEYS_BATCH = 500

RankedPost = tuple[int, int]
"""A post and its rank in the stored list."""


def run_id(run: int) -> str:
    """Return the id of a run."""
    return f"20261122T03{run:02d}00Z-{(CONTROL, TEST)[run % 2]}"


def run_of(name: str) -> int:
    """Return the number of the run with that id; -1 for the id of another run."""
    found = re.fullmatch(r"20261122T03(\d\d)00Z-.*", name)
    return int(found[1]) if found and run_id(int(found[1])) == name else -1


def personal(run: int, user: int) -> list[int]:
    """Return the posts of a user's list, best first."""
    return [run * POSTS_PER_RUN + (user * 7 + index * 11) % PERSONAL for index in range(TOP_N)]


def popular(run: int) -> list[int]:
    """Return the posts of a run's popular list, best first."""
    return [run * POSTS_PER_RUN + PERSONAL + index for index in range(POPULAR)]


def is_blocked(post: int) -> bool:
    """Return whether a post must never be served."""
    return post % POSTS_PER_RUN in BLOCKED


def page(posts: list[int], after: int, limit: int) -> list[RankedPost]:
    """Return the expected page of a list that starts after a rank (0: the first page)."""
    allowed = [(post, rank) for rank, post in enumerate(posts, 1) if rank > after and not is_blocked(post)]
    return allowed[:limit]


def text(post: int) -> str:
    """Return the text of a post, as long as texts of a real network."""
    return f"Text of post {post}. ".ljust(TEXT_CHARACTERS, "-")


def write(redis: Redis, run: int, users: int) -> None:
    """Write a run's keys as the batch does."""
    name = run_id(run)
    for batch in _user_batches(users):
        redis.mset({KEYS.user(name, user): _encode(personal(run, user)) for user in batch})
    redis.set(KEYS.popular(name), _encode(popular(run)))
    manifest = {"run_id": name, "top_n": TOP_N, "published_at": "2026-11-22T04:00:00+00:00"}
    redis.set(KEYS.manifest(name), encode_object(manifest))


def set_live(redis: Redis, *runs: int) -> None:
    """Make runs live with one command, each for its variant."""
    redis.mset({KEYS.live(run_id(run).rpartition("-")[2]): run_id(run) for run in runs})


def prune(redis: Redis, run: int, users: int) -> None:
    """Remove a run's keys."""
    name = run_id(run)
    for batch in _user_batches(users):
        redis.unlink(*(KEYS.user(name, user) for user in batch))
    redis.unlink(KEYS.popular(name), KEYS.manifest(name))


def fill(redis: Redis, users: int) -> None:
    """Write the keys that runs share, then the first run of each variant, and make both live."""
    redis.sadd(KEYS.blocked, *(run * POSTS_PER_RUN + post for run in range(MAX_RUNS) for post in BLOCKED))
    redis.set(KEYS.experiment, encode_object(EXPERIMENT.to_fields()))
    for run in range(MAX_RUNS):
        posts = range(run * POSTS_PER_RUN, run * POSTS_PER_RUN + PERSONAL + POPULAR)
        texts: dict[Any, Any] = {
            post: encode_object({"text": text(post), "topic": f"run {run}"}) for post in posts
        }
        redis.hset(KEYS.posts, mapping=texts)
    for run in (0, 1):
        write(redis, run, users)
    set_live(redis, 0, 1)


def _user_batches(users: int) -> Iterator[range]:
    """Yield ranges of users, one for each command."""
    for start in range(0, users, KEYS_BATCH):
        yield range(start, min(start + KEYS_BATCH, users))


def _encode(posts: list[int]) -> str:
    return encode_list((post, TOP_N - rank) for rank, post in enumerate(posts))
