"""Lists that tell where they come from: the number of a post names its run and whether it is popular.

Run k owns the posts k * 1000 + n. Those with n below `PERSONAL` stand in users'
lists, the next ones in its popular list, so an answer that mixes two runs, or
takes a popular post for a personal one, gives itself away.
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
RUNS = 20
"""Runs that there can be: even ones are of control, odd ones of test."""

A_RUN = 1000
PERSONAL, POPULAR = 300, 50
TOP_N = 50
TEXT_CHARACTERS = 1_600
BLOCKED = (0, 11, PERSONAL, PERSONAL + 3)
"""Of every run these posts are blocked, the most popular one among them."""

KEYS_A_COMMAND = 500

Place = tuple[int, int]
"""A post and its rank in the stored list."""


def run_id(run: int) -> str:
    """Name a run."""
    return f"20261122T03{run:02d}00Z-{(CONTROL, TEST)[run % 2]}"


def run_of(name: str) -> int:
    """Return the number of the run of that name; -1 if it is none of ours."""
    found = re.fullmatch(r"20261122T03(\d\d)00Z-.*", name)
    return int(found[1]) if found and run_id(int(found[1])) == name else -1


def personal(run: int, user: int) -> list[int]:
    """Return the posts of a user's list, best first."""
    return [run * A_RUN + (user * 7 + place * 11) % PERSONAL for place in range(TOP_N)]


def popular(run: int) -> list[int]:
    """Return the posts of a run's popular list, best first."""
    return [run * A_RUN + PERSONAL + place for place in range(POPULAR)]


def is_blocked(post: int) -> bool:
    """Tell whether a post must never be served."""
    return post % A_RUN in BLOCKED


def page(posts: list[int], after: int, limit: int) -> list[Place]:
    """Return what a page of a list must hold that goes on after a rank (0: from the start)."""
    free = [(post, rank) for rank, post in enumerate(posts, 1) if rank > after and not is_blocked(post)]
    return free[:limit]


def text(post: int) -> str:
    """Return the text of a post, as long as those of a real network."""
    return f"Text of post {post}. ".ljust(TEXT_CHARACTERS, "-")


def write(redis: Redis, run: int, users: int) -> None:
    """Write a run's keys as the batch does."""
    name = run_id(run)
    for some in _parts(users):
        redis.mset({KEYS.user(name, user): _ranked(personal(run, user)) for user in some})
    redis.set(KEYS.popular(name), _ranked(popular(run)))
    manifest = {"run_id": name, "top_n": TOP_N, "published_at": "2026-11-22T04:00:00+00:00"}
    redis.set(KEYS.manifest(name), encode_object(manifest))


def point(redis: Redis, *runs: int) -> None:
    """Make a run live, or live again; of both variants at once."""
    redis.mset({KEYS.live(run_id(run).rpartition("-")[2]): run_id(run) for run in runs})


def prune(redis: Redis, run: int, users: int) -> None:
    """Remove a run's keys."""
    name = run_id(run)
    for some in _parts(users):
        redis.unlink(*(KEYS.user(name, user) for user in some))
    redis.unlink(KEYS.popular(name), KEYS.manifest(name))


def fill(redis: Redis, users: int) -> None:
    """Write what stands beside the runs, then the first run of each variant."""
    redis.sadd(KEYS.blocked, *(run * A_RUN + place for run in range(RUNS) for place in BLOCKED))
    redis.set(KEYS.experiment, encode_object(EXPERIMENT.to_fields()))
    for run in range(RUNS):
        posts = range(run * A_RUN, run * A_RUN + PERSONAL + POPULAR)
        texts: dict[Any, Any] = {
            post: encode_object({"text": text(post), "topic": f"run {run}"}) for post in posts
        }
        redis.hset(KEYS.posts, mapping=texts)
    for run in (0, 1):
        write(redis, run, users)
    point(redis, 0, 1)


def _parts(users: int) -> Iterator[range]:
    """Part the users by what goes into one command."""
    for start in range(0, users, KEYS_A_COMMAND):
        yield range(start, min(start + KEYS_A_COMMAND, users))


def _ranked(posts: list[int]) -> str:
    return encode_list((post, TOP_N - rank) for rank, post in enumerate(posts))
