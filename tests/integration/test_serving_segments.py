"""Popular posts by an attribute of users, for users without a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from flask import Flask

from contract.codec import Ranked
from serving.app import EXTENSION
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    KNOWN_USER,
    NEXT_CONTROL_RUN,
    POPULAR,
    UNKNOWN_USER,
    ask,
    monitored,
    posts_of,
    publish,
    recommend,
    refresh,
    remove,
    serving,
    settings_for,
)

IN_DE: Ranked = [(post, 90.0 - post) for post in range(31, 43)]
ODD = "São Paulo & co = 1"
SEGMENTS = {"DE": IN_DE, ODD: IN_DE[::-1], "": IN_DE[5:]}


@pytest.fixture
def app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app over a run with popular lists by country."""
    publish(redis_client, segments=SEGMENTS)
    with serving(settings_for(redis_url)) as app:
        yield app


def feed(user: int, country: str, suffix: str = "") -> str:
    return f"/users/{user}/recommendations?country={quote(country)}{suffix}"


def test_a_user_without_a_list_gets_the_popular_posts_of_the_segment(app: Flask) -> None:
    answer = ask(app, feed(UNKNOWN_USER, "DE"))
    fields = list(answer)
    assert fields[fields.index("source") + 1] == "segment"
    assert (answer["source"], answer["segment"], answer["score_kind"]) == ("popular", "DE", "likes")
    assert posts_of(answer) == [31, 32, 33, 34, 35]
    assert posts_of(ask(app, feed(UNKNOWN_USER, ODD))) == [42, 41, 40, 39, 38]
    popular = ask(app, "/posts/popular?country=DE&limit=2")
    assert (popular["segment"], posts_of(popular)) == ("DE", [31, 32])


def test_existing_clients_get_the_posts_of_the_segment_too(app: Flask) -> None:
    answer = ask(app, "/post/recommendations/?id=43&country=DE&limit=2")
    assert [post["id"] for post in answer["recommendations"]] == [31, 32]
    assert set(answer) == {"exp_group", "recommendations"}


@pytest.mark.parametrize(
    "path",
    [
        feed(KNOWN_USER, "DE"),
        feed(UNKNOWN_USER, "FR"),
        feed(UNKNOWN_USER, "de"),
        f"/users/{UNKNOWN_USER}/recommendations",
        f"/users/{UNKNOWN_USER}/recommendations?city=DE",
        "/posts/popular?country=FR",
        "/posts/101/similar?country=DE",
    ],
)
def test_with_a_list_or_without_a_known_segment_the_answer_is_as_without_segments(
    app: Flask, redis_client: redis.Redis, path: str
) -> None:
    answer = ask(app, path)
    assert "segment" not in answer
    publish(redis_client, NEXT_CONTROL_RUN)
    refresh(app)
    expected = ask(app, path)
    assert answer["run_id"] != expected["run_id"]
    for changing in ("run_id", "age_seconds", "next_cursor"):
        answer.pop(changing, None), expected.pop(changing, None)
    assert answer == expected


def test_pages_go_on_in_the_segment_by_one_lookup_whatever_the_parameter_says(
    app: Flask, redis_url: str
) -> None:
    first = ask(app, feed(UNKNOWN_USER, ODD))
    with monitored(redis_url) as commands:
        second = recommend(app, UNKNOWN_USER, limit=5, cursor=first["next_cursor"])
        assert [command.split()[:2] for command in commands()] == [["HMGET", KEYS.segments(CONTROL_RUN)]]
        assert (second["segment"], posts_of(second)) == (ODD, [37, 36, 35, 34, 33])
        last = ask(app, feed(UNKNOWN_USER, "DE", f"&cursor={second['next_cursor']}"))
        assert (last["segment"], posts_of(last), last["next_cursor"]) == (ODD, [32, 31], None)
        commands()
        ask(app, feed(UNKNOWN_USER, "DE"))
        assert commands() == [f"GET {KEYS.user(CONTROL_RUN, UNKNOWN_USER)}"]


def test_a_cursor_of_a_segment_outlives_its_run_until_that_is_pruned(
    app: Flask, redis_client: redis.Redis
) -> None:
    first = ask(app, feed(UNKNOWN_USER, "DE"))
    publish(redis_client, NEXT_CONTROL_RUN)
    refresh(app)
    second = recommend(app, UNKNOWN_USER, cursor=first["next_cursor"])
    assert (second["run_id"], second["segment"], posts_of(second)) == (
        CONTROL_RUN,
        "DE",
        [36, 37, 38, 39, 40],
    )
    remove(redis_client, CONTROL_RUN)
    path = f"/users/{UNKNOWN_USER}/recommendations?cursor={first['next_cursor']}"
    assert ask(app, path, 410)["parameter"] == "cursor"


def test_without_redis_the_segment_is_answered_from_memory(app: Flask, redis_client: redis.Redis) -> None:
    first = ask(app, feed(UNKNOWN_USER, "DE"))
    redis_client.rename(KEYS.segments(CONTROL_RUN), "away")
    assert posts_of(recommend(app, UNKNOWN_USER, cursor=first["next_cursor"])) == [36, 37, 38, 39, 40]
    service = app.extensions[EXTENSION]
    service.lists._open_until = float("inf")  # the breaker is open
    answer = ask(app, feed(KNOWN_USER, "DE"))
    assert (answer["source"], answer["segment"], answer["stale"]) == ("popular", "DE", True)
    following = recommend(app, KNOWN_USER, cursor=answer["next_cursor"])
    assert (following["segment"], posts_of(following)) == ("DE", [36, 37, 38, 39, 40])


def test_blocked_posts_are_left_out_and_a_segment_of_nothing_else_gets_the_overall_list(
    app: Flask, redis_client: redis.Redis
) -> None:
    ask(app, feed(UNKNOWN_USER, "DE"))
    redis_client.sadd(KEYS.blocked, 31)
    redis_client.sadd(KEYS.gone, 33)
    refresh(app)
    assert posts_of(ask(app, feed(UNKNOWN_USER, "DE"))) == [32, 34, 35, 36, 37]
    redis_client.sadd(KEYS.gone, *(post for post, _ in IN_DE))
    refresh(app)
    answer = ask(app, feed(UNKNOWN_USER, "DE"))
    assert "segment" not in answer
    assert posts_of(answer) == [post for post, _ in POPULAR[:5]]


@pytest.mark.parametrize(
    "query", ["country=DE&country=DE", f"country={'x' * 129}", "country=D%00E", "country=%0A", "country=%FF"]
)
@pytest.mark.parametrize(
    "path", [f"/users/{UNKNOWN_USER}/recommendations?", "/posts/popular?", "/post/recommendations/?id=43&"]
)
def test_a_segment_that_cannot_be_one_is_refused_by_name(app: Flask, path: str, query: str) -> None:
    body = ask(app, path + query, 400)
    assert (body["parameter"], "country must" in body["detail"]) == ("country", True)


def test_an_empty_value_is_a_segment_as_others_are(app: Flask) -> None:
    first = ask(app, feed(UNKNOWN_USER, ""))
    assert (first["segment"], posts_of(first)) == ("", [36, 37, 38, 39, 40])
    assert posts_of(recommend(app, UNKNOWN_USER, cursor=first["next_cursor"])) == [41, 42]


def test_a_broken_list_of_a_segment_is_logged_and_the_others_are_served(
    redis_url: str, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    publish(redis_client, segments=SEGMENTS)
    redis_client.hset(KEYS.segments(CONTROL_RUN), "FR", "[[")
    with serving(settings_for(redis_url)) as app:
        assert "segment" not in ask(app, feed(UNKNOWN_USER, "FR"))
        assert ask(app, feed(UNKNOWN_USER, "DE"))["segment"] == "DE"
    assert "has a broken list of 'FR'" in caplog.text


def test_a_process_that_starts_without_redis_has_segments_with_their_texts(
    app: Flask, redis_client: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "state.json"
    redis_client.hset(KEYS.posts, "31", '{"text":"in Germany"}')
    app.extensions[EXTENSION].live.shared_file = file
    recommend(app, UNKNOWN_USER)
    with serving(settings_for("redis://127.0.0.1:1/0")) as other:
        other.extensions[EXTENSION].live.shared_file = file
        answer = ask(other, feed(UNKNOWN_USER, "DE"))
        assert (answer["segment"], answer["stale"], posts_of(answer)[0]) == ("DE", True, 31)
        first = ask(other, "/post/recommendations/?id=43&country=DE")["recommendations"][0]
        assert first == {"id": 31, "text": "in Germany", "topic": ""}


def test_segments_are_read_once_a_run_and_texts_of_their_posts_are_kept(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish(redis_client, segments=SEGMENTS)
    redis_client.hset(KEYS.posts, mapping={str(post): '{"text":"t"}' for post in range(1, 50)})
    with serving(settings_for(redis_url, texts_in_memory=5)) as app, monitored(redis_url) as commands:
        ask(app, feed(UNKNOWN_USER, "DE"))
        assert sum(KEYS.segments(CONTROL_RUN) in command for command in commands()) == 1
        refresh(app)
        assert not any(KEYS.segments(CONTROL_RUN) in command for command in commands())
        ask(app, "/post/recommendations/?id=43&country=DE")
        assert [command.split()[0] for command in commands()] == ["GET"]
