"""Texts in answers: all in memory, or of a big network those used last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from flask import Flask

from contract.codec import encode_object
from tests.support.serving import (
    KEYS,
    NEXT_CONTROL_RUN,
    PERSONAL,
    POPULAR,
    ask,
    monitored,
    publish,
    refresh,
    serving,
    settings_for,
)

POSTS = {post_id: {"text": f"text {post_id}", "topic": "t"} for post_id, _ in [*PERSONAL, *POPULAR]}


@pytest.fixture
def big(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app over a network with more posts than may be held: room for five besides the popular ones."""
    publish(redis_client)
    redis_client.hset(KEYS.posts, mapping={str(post): encode_object(said) for post, said in POSTS.items()})
    with serving(settings_for(redis_url, texts_in_memory=5)) as app:
        ask(app, "/readyz")
        yield app


def texts(app: Flask, user: int, limit: int = 5) -> list[str]:
    answer = ask(app, f"/post/recommendations/?id={user}&limit={limit}")
    return [post["text"] for post in answer["recommendations"]]


def test_texts_not_used_lately_are_read_at_once_by_one_more_lookup(big: Flask, redis_url: str) -> None:
    with monitored(redis_url) as commands:
        assert texts(big, 42) == [f"text {post}" for post in range(1, 6)]
        assert [command.split()[0] for command in commands()] == ["GET", "HMGET"]
        assert texts(big, 42) == [f"text {post}" for post in range(1, 6)]
        assert [command.split()[0] for command in commands()] == ["GET"]


def test_texts_of_popular_posts_are_always_there(
    big: Flask, redis_url: str, redis_client: redis.Redis
) -> None:
    with monitored(redis_url) as commands:
        assert texts(big, 43) == [f"text {post}" for post in range(101, 106)]
        assert [command.split()[0] for command in commands()] == ["GET"]
    redis_client.delete(KEYS.posts)
    assert texts(big, 42, limit=12) == [""] * 12
    assert texts(big, 43, limit=12) == [f"text {post}" for post in range(101, 113)]


def test_a_new_run_brings_new_texts(big: Flask, redis_client: redis.Redis) -> None:
    texts(big, 42)
    redis_client.hset(KEYS.posts, "1", encode_object({"text": "rewritten", "topic": "t"}))
    publish(redis_client, NEXT_CONTROL_RUN)
    refresh(big)
    assert texts(big, 42)[:2] == ["rewritten", "text 2"]


@pytest.mark.parametrize("value", ["no json", "[]", None])
def test_a_text_that_is_broken_or_missing_is_empty(
    big: Flask, redis_client: redis.Redis, value: str | None
) -> None:
    redis_client.hdel(KEYS.posts, "2") if value is None else redis_client.hset(KEYS.posts, "2", value)
    assert texts(big, 42, limit=3) == ["text 1", "", "text 3"]


def test_posts_under_a_key_of_another_type_are_served_without_texts(
    big: Flask, redis_client: redis.Redis
) -> None:
    redis_client.delete(KEYS.posts)
    redis_client.set(KEYS.posts, "x")
    assert texts(big, 42) == [""] * 5
