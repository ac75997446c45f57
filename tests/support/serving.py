"""Helpers for tests of serving: publish a run as the batch does, and create an app over it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import redis
from flask import Flask

from contract.codec import Ranked, encode_list, encode_object
from contract.ids import WHOLE_NUMBERS, Id, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from serving.app import EXTENSION, create_app
from serving.list_store import open_redis

KEYS = Keys()
CONTROL_RUN = "20261122T030000Z-control"
NEXT_CONTROL_RUN = "20261123T030000Z-control"
TEST_RUN = "20261122T031500Z-test"

PERSONAL: Ranked = [(post, 20.0 - post) for post in range(1, 13)]
POPULAR: Ranked = [(post, 1000.0 - post) for post in range(101, 113)]

KNOWN_USER = 42
UNKNOWN_USER = 43


def publish(
    client: redis.Redis,
    run_id: str = CONTROL_RUN,
    lists: Mapping[Any, Sequence[Any]] | None = None,
    *,
    popular: Ranked = POPULAR,
    published_at: str = "2026-11-22T04:00:00+00:00",
    recipe: str | None = "liked",
    ids: IdKinds = WHOLE_NUMBERS,
    segments: Mapping[str, Ranked] | None = None,
) -> None:
    """Write a run's keys and make it live; without a recipe, as earlier releases did.

    Segments are values of the attribute `country`.
    """
    for user_id, posts in ({KNOWN_USER: PERSONAL} if lists is None else lists).items():
        client.set(KEYS.user(run_id, user_id), encode_list(posts))
    client.set(KEYS.popular(run_id), encode_list(popular))
    manifest: dict[str, Any] = {"run_id": run_id, "top_n": 12, "published_at": published_at}
    manifest |= {} if recipe is None else {"recipe": {"name": recipe}}
    if ids != WHOLE_NUMBERS:
        manifest["ids"] = ids.to_record()
    if segments is not None:
        manifest["popular_by"] = "country"
        client.hset(KEYS.segments(run_id), mapping={name: encode_list(segments[name]) for name in segments})
    client.set(KEYS.manifest(run_id), encode_object(manifest))
    client.set(KEYS.live(run_id.rpartition("-")[2]), run_id)


def remove(client: redis.Redis, run_id: str) -> None:
    """Prune a run: every key it wrote."""
    client.delete(*client.scan_iter(KEYS.run_pattern(run_id)))


def settings_for(url: str, **values: Any) -> Settings:
    """Return settings with lists of 12, no refresh unless a test calls it, and no exposures."""
    defaults = {"top_n": 12, "state_refresh_seconds": 3600.0, "exposures": False}
    return Settings.of(redis_url=url, **{**defaults, **values})


@contextmanager
def serving(settings: Settings, *, tuned: bool = True) -> Iterator[Flask]:
    """Yield the app over the Redis of the settings; stop its threads and connections afterwards.

    A request waits for Redis for 0.5 s, not 50 ms, so that a busy machine does not look like a dead Redis.
    """
    client, refresh_client = open_redis(settings, 0.5), open_redis(settings, 2.0)
    app = create_app(settings, client, refresh_client, tuned=tuned)
    yield app
    app.extensions[EXTENSION].live.stop()
    if app.extensions[EXTENSION].exposures is not None:
        app.extensions[EXTENSION].exposures.stop()
    client.close()
    refresh_client.close()


def refresh(app: Flask) -> None:
    """Refresh the state now."""
    app.extensions[EXTENSION].live.refresh()


def ask(app: Flask, path: str, status: int = 200) -> Any:
    """GET a path, check its status, and return the decoded body."""
    response = app.test_client().get(path)
    assert response.status_code == status, response.text
    return response.get_json(force=True)


def recommend(app: Flask, user_id: Id, limit: int = 5, cursor: str | None = None) -> Any:
    """GET a user's recommendations."""
    suffix = f"&cursor={cursor}" if cursor else ""
    return ask(app, f"/users/{quote(str(user_id), safe='')}/recommendations?limit={limit}{suffix}")


def posts_of(answer: Any) -> list[Id]:
    """Return the post ids of an answer, in order."""
    return [recommendation["post_id"] for recommendation in answer["recommendations"]]


@contextmanager
def monitored(url: str) -> Iterator[Callable[[], list[str]]]:
    """Watch a server by MONITOR; yield a function that returns the commands since its last call.

    Valkey reports commands in the order it ran them, so an ECHO marks where to stop.
    """
    with redis.Redis.from_url(url, decode_responses=True) as client, client.monitor() as monitor:

        def commands() -> list[str]:
            client.echo("seen so far")
            seen = (monitor.next_command()["command"] for _ in itertools.count())
            return list(itertools.takewhile(lambda command: command != "ECHO seen so far", seen))

        commands()  # drop those of our own new connections
        yield commands


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not hold in time"
        time.sleep(0.05)
