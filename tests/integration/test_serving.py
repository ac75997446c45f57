"""What serving answers, over a real Valkey."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis
from flask import Flask

from contract.codec import Ranked, encode_list, encode_object
from contract.experiment import Experiment
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    KNOWN_USER,
    NEXT_CONTROL_RUN,
    PERSONAL,
    POPULAR,
    TEST_RUN,
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


@pytest.fixture
def app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app over one published run of control."""
    publish(redis_client)
    with serving(settings_for(redis_url)) as app:
        yield app


def test_a_known_user_gets_the_head_of_their_list(app: Flask) -> None:
    answer = recommend(app, KNOWN_USER, limit=2)
    age = answer.pop("age_seconds")
    assert isinstance(answer.pop("next_cursor"), str)
    assert answer == {
        "user_id": KNOWN_USER,
        "assigned_variant": "control",
        "variant": "control",
        "run_id": CONTROL_RUN,
        "source": "personal",
        "score_kind": "liked",
        "stale": False,
        "recommendations": [
            {"post_id": 1, "score": 19.0, "rank": 1},
            {"post_id": 2, "score": 18.0, "rank": 2},
        ],
    }
    since = datetime.now(UTC) - datetime(2026, 11, 22, 4, tzinfo=UTC)
    assert age == pytest.approx(max(0, since.total_seconds()), abs=60)


def test_the_limit_is_five_by_default_and_the_length_of_a_list_at_most(app: Flask) -> None:
    assert len(ask(app, "/users/42/recommendations")["recommendations"]) == 5
    assert posts_of(recommend(app, KNOWN_USER, limit=12)) == [post for post, _ in PERSONAL]
    assert ask(app, "/users/42/recommendations?limit=13", 400)["parameter"] == "limit"


def test_an_unknown_user_gets_the_popular_list(app: Flask) -> None:
    answer = recommend(app, UNKNOWN_USER)
    assert (answer["source"], answer["score_kind"], answer["stale"]) == ("popular", "likes", False)
    assert posts_of(answer) == [101, 102, 103, 104, 105]


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("ranked", "ranked"), ("liked-if-viewed", "liked-if-viewed"), (None, "liked-if-viewed"), ("new", None)],
)
def test_a_list_says_of_what_kind_its_scores_are(
    redis_url: str, redis_client: redis.Redis, recipe: str | None, kind: str | None
) -> None:
    publish(redis_client, recipe=recipe)
    with serving(settings_for(redis_url)) as app:
        assert recommend(app, KNOWN_USER)["score_kind"] == kind
        assert recommend(app, UNKNOWN_USER)["score_kind"] == "likes"
        assert ask(app, "/posts/popular")["score_kind"] == "likes"


@pytest.mark.parametrize("recipe", ["text", None, 1, {}, {"name": ["liked"]}])
def test_a_recipe_that_is_broken_in_redis_does_not_keep_a_run_from_being_served(
    redis_url: str, redis_client: redis.Redis, recipe: object
) -> None:
    publish(redis_client)
    redis_client.set(KEYS.manifest(CONTROL_RUN), encode_object({"recipe": recipe}))
    with serving(settings_for(redis_url)) as app:
        answer = recommend(app, KNOWN_USER)
        assert (answer["source"], answer["score_kind"]) == ("personal", None)


def test_each_variant_has_its_own_kind_of_scores(redis_url: str, redis_client: redis.Redis) -> None:
    publish(redis_client, recipe="liked-if-viewed")
    publish(redis_client, TEST_RUN, recipe="ranked")
    split = Experiment("one in test", "s", 0, {str(UNKNOWN_USER): "test"})
    redis_client.set(KEYS.user(TEST_RUN, UNKNOWN_USER), encode_list(PERSONAL))
    redis_client.set(KEYS.experiment, encode_object(split.to_fields()))
    with serving(settings_for(redis_url)) as app:
        found = [recommend(app, user)["score_kind"] for user in (KNOWN_USER, UNKNOWN_USER)]
    assert found == ["liked-if-viewed", "ranked"]


def test_the_popular_list_is_answered_from_the_live_run(app: Flask) -> None:
    answer = ask(app, "/posts/popular?limit=3")
    assert posts_of(answer) == [101, 102, 103]
    assert (answer["run_id"], answer["variant"], answer["source"]) == (CONTROL_RUN, "control", "popular")


def test_health_and_readiness_tell_what_is_served(app: Flask) -> None:
    assert ask(app, "/healthz") == {"status": "alive"}
    ready = ask(app, "/readyz")
    assert ready["status"] == "ready"
    assert ready["runs"]["control"]["run_id"] == CONTROL_RUN
    assert isinstance(ready["runs"]["control"]["age_seconds"], int)


@pytest.mark.parametrize("path", ["/post/recommendations/", "/post/recommendations"])
def test_existing_clients_get_their_contract_with_and_without_the_last_slash(
    redis_url: str, redis_client: redis.Redis, path: str
) -> None:
    publish(redis_client)
    redis_client.hset(KEYS.posts, "1", encode_object({"text": "Крикет “live”", "topic": "sport"}))
    redis_client.hset(KEYS.posts, "2", encode_object({"text": None, "topic": None}))
    with serving(settings_for(redis_url)) as app:
        answer = ask(app, f"{path}?id=42&time=2021-12-29T21:00:00&limit=3")
    assert answer == {
        "exp_group": "control",
        "recommendations": [
            {"id": 1, "text": "Крикет “live”", "topic": "sport"},
            {"id": 2, "text": "", "topic": ""},
            {"id": 3, "text": "", "topic": ""},
        ],
    }


def test_texts_that_are_broken_in_redis_are_served_empty(redis_url: str, redis_client: redis.Redis) -> None:
    publish(redis_client)
    redis_client.hset(KEYS.posts, mapping={"1": "no json", "2": '{"text": "\\ud800"}', "x": "{}"})
    with serving(settings_for(redis_url)) as app:
        answer = ask(app, "/post/recommendations/?id=42&limit=2")
    assert [post["text"] for post in answer["recommendations"]] == ["", "?"]


def test_a_new_run_is_served_with_its_texts_after_a_refresh(app: Flask, redis_client: redis.Redis) -> None:
    recommend(app, KNOWN_USER)
    redis_client.hset(KEYS.posts, "7", encode_object({"text": "seven", "topic": "t"}))
    publish(redis_client, NEXT_CONTROL_RUN, {KNOWN_USER: [(7, 1.0)]})
    assert recommend(app, KNOWN_USER)["run_id"] == CONTROL_RUN
    refresh(app)
    assert recommend(app, KNOWN_USER)["run_id"] == NEXT_CONTROL_RUN
    assert ask(app, "/post/recommendations/?id=42")["recommendations"][0]["text"] == "seven"


@pytest.mark.parametrize("user_id", [0, 1, 42, 2**31, 2**53 + 1, 2**63 - 1])
def test_the_experiment_says_which_variant_a_user_gets(
    redis_url: str, redis_client: redis.Redis, user_id: int
) -> None:
    publish(redis_client, CONTROL_RUN, {user_id: [(1, 1.0)]})
    publish(redis_client, TEST_RUN, {user_id: [(2, 1.0)]})
    redis_client.set(KEYS.experiment, encode_object(Experiment("e", "salt", 50).to_fields()))
    in_test = int(hashlib.md5(f"{user_id}salt".encode()).hexdigest(), 16) % 100 < 50
    with serving(settings_for(redis_url)) as app:
        answer = recommend(app, user_id)
        compat = ask(app, f"/post/recommendations/?id={user_id}")
    assert (answer["variant"], posts_of(answer)) == (("test", [2]) if in_test else ("control", [1]))
    assert compat["exp_group"] == answer["variant"]


def test_without_an_experiment_everyone_is_in_control(app: Flask, redis_client: redis.Redis) -> None:
    publish(redis_client, TEST_RUN)
    assert {recommend(app, user)["variant"] for user in range(50)} == {"control"}


def test_a_variant_without_a_live_run_is_served_from_the_other(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish(redis_client, TEST_RUN, {KNOWN_USER: PERSONAL})
    with serving(settings_for(redis_url)) as app:
        answer = recommend(app, KNOWN_USER)
        assert (answer["variant"], answer["source"]) == ("test", "personal")
        assert ask(app, "/post/recommendations/?id=42")["exp_group"] == "test"
        assert ask(app, "/posts/popular")["variant"] == "test"
        assert list(ask(app, "/readyz")["runs"]) == ["test"]


@pytest.mark.parametrize("key", [KEYS.blocked, KEYS.gone])
def test_blocked_and_gone_posts_are_left_out_of_every_answer(
    app: Flask, redis_client: redis.Redis, key: str
) -> None:
    redis_client.sadd(key, 1, 3, 101)
    answer = recommend(app, KNOWN_USER, limit=3)
    assert [(r["post_id"], r["rank"]) for r in answer["recommendations"]] == [(2, 2), (4, 4), (5, 5)]
    assert posts_of(ask(app, "/posts/popular?limit=2")) == [102, 103]
    assert ask(app, "/post/recommendations/?id=42&limit=1")["recommendations"][0]["id"] == 2


def test_a_post_that_is_back_is_served_again(app: Flask, redis_client: redis.Redis) -> None:
    redis_client.sadd(KEYS.gone, 1, 2)
    redis_client.sadd(KEYS.blocked, 2)
    assert posts_of(recommend(app, KNOWN_USER, limit=2)) == [3, 4]
    redis_client.delete(KEYS.gone)
    refresh(app)
    assert posts_of(recommend(app, KNOWN_USER, limit=2)) == [1, 3]


def test_posts_in_explored_places_are_marked_with_their_probability_and_counted(
    redis_url: str, redis_client: redis.Redis
) -> None:
    listed: list[tuple[float, ...]] = [*PERSONAL]
    listed[2], listed[4], listed[7] = (3, 17.0, 0.25), (5, 15.0, 0.125), (8, 12.0, 1)
    publish(redis_client, lists={KNOWN_USER: listed, 44: PERSONAL})
    redis_client.sadd(KEYS.blocked, 5)
    with serving(settings_for(redis_url)) as app:
        first, plain = recommend(app, KNOWN_USER), recommend(app, 44)
        drawn = {"post_id": 3, "score": 17.0, "rank": 3, "source": "explore", "probability": 0.25}
        assert first["recommendations"][2] == drawn
        del drawn["source"], drawn["probability"]
        assert plain["recommendations"][2] == drawn
        assert [set(each) for each in first["recommendations"]].count({"post_id", "score", "rank"}) == 4
        assert first["source"] == "personal"
        following = recommend(app, KNOWN_USER, cursor=first["next_cursor"])["recommendations"]
        assert [(each["post_id"], each.get("probability")) for each in following] == [
            (7, None), (8, 1.0), (9, None), (10, None), (11, None),
        ]  # fmt: skip
        texts = ask(app, "/post/recommendations/?id=42")["recommendations"]
        assert [list(each) for each in texts] == [["id", "text", "topic"]] * 5
        assert "overnight_explored_posts_total 3.0" in app.test_client().get("/metrics").text


@pytest.mark.parametrize("row", ['[1,2,"0.5"]', "[1,2,0]", "[1,2,1.5]", "[1,2,0.5,1]"])
def test_a_list_with_a_broken_probability_is_answered_with_the_popular_list(
    app: Flask, redis_client: redis.Redis, row: str
) -> None:
    redis_client.set(KEYS.user(CONTROL_RUN, KNOWN_USER), f"[{row}]")
    assert recommend(app, KNOWN_USER)["source"] == "popular"


def test_a_short_list_is_not_filled_with_posts_the_user_liked(
    redis_url: str, redis_client: redis.Redis
) -> None:
    # Two posts are left that the user has not liked; the popular ones missing from the list are liked.
    publish(redis_client, lists={KNOWN_USER: [(3, 0.5), (1, 0.4)]}, popular=[(1, 9.0), (2, 8.0), (3, 7.0)])
    with serving(settings_for(redis_url)) as app:
        answer = recommend(app, KNOWN_USER, limit=5)
    assert (posts_of(answer), answer["source"], answer["next_cursor"]) == ([3, 1], "personal", None)


def test_a_full_list_that_lost_posts_to_blocking_is_answered_shorter(
    app: Flask, redis_client: redis.Redis
) -> None:
    redis_client.sadd(KEYS.blocked, 2, 12)
    assert posts_of(recommend(app, KNOWN_USER, limit=12)) == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_page_is_filled_from_behind_blocked_posts(app: Flask, redis_client: redis.Redis) -> None:
    redis_client.sadd(KEYS.blocked, *range(1, 8))
    answer = recommend(app, KNOWN_USER, limit=3)
    assert (answer["source"], posts_of(answer)) == ("personal", [8, 9, 10])
    rest = recommend(app, KNOWN_USER, limit=3, cursor=answer["next_cursor"])
    assert (posts_of(rest), rest["next_cursor"]) == ([11, 12], None)


@pytest.mark.parametrize("stored", [[], [(900, 1.0), (901, 0.5)]], ids=["empty", "all blocked"])
def test_a_user_with_nothing_left_gets_the_popular_list(
    app: Flask, redis_client: redis.Redis, stored: Ranked
) -> None:
    redis_client.sadd(KEYS.blocked, 900, 901)
    redis_client.set(KEYS.user(CONTROL_RUN, 7), encode_list(stored))
    answer = recommend(app, 7)
    assert (answer["source"], posts_of(answer)) == ("popular", [101, 102, 103, 104, 105])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "no json",
        "42",
        "null",
        '{"1": 2}',
        "[1, 2]",
        "[[1]]",
        '[["1", 2]]',
        "[[1.5, 2]]",
        "[[1, NaN]]",
        "[[1, 1e999]]",
        f"[[1, {10**400}]]",
        "[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda value: repr(value[:16]),
)
def test_a_broken_value_is_answered_with_the_popular_list_and_logged(
    app: Flask, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, value: str | bytes
) -> None:
    redis_client.set(KEYS.user(CONTROL_RUN, KNOWN_USER), value)
    answer = recommend(app, KNOWN_USER)
    assert (answer["source"], answer["stale"], len(answer["recommendations"])) == ("popular", False, 5)
    assert KEYS.user(CONTROL_RUN, KNOWN_USER) in caplog.text


def test_a_key_of_another_type_is_answered_with_the_popular_list(
    app: Flask, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.delete(KEYS.user(CONTROL_RUN, KNOWN_USER))
    redis_client.hset(KEYS.user(CONTROL_RUN, KNOWN_USER), "a", "b")
    answer = recommend(app, KNOWN_USER)
    assert (answer["source"], answer["stale"]) == ("popular", False)
    assert "is not a string" in caplog.text


@pytest.mark.parametrize("key", [KEYS.manifest(NEXT_CONTROL_RUN), KEYS.popular(NEXT_CONTROL_RUN)])
@pytest.mark.parametrize("value", [None, "no json", "42", "[" * 100_000])
def test_a_live_run_that_is_incomplete_leaves_the_one_before_served(
    app: Flask, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, key: str, value: str | None
) -> None:
    recommend(app, KNOWN_USER)
    publish(redis_client, NEXT_CONTROL_RUN, {KNOWN_USER: [(7, 1.0)]})
    redis_client.delete(key)
    if value is not None:
        redis_client.set(key, value)
    refresh(app)
    refresh(app)
    assert recommend(app, KNOWN_USER)["run_id"] == CONTROL_RUN
    assert caplog.text.count("keeping the one before") == 1


@pytest.mark.parametrize(
    "experiment",
    ["no json", "[]", "{}", '{"name":"e","salt":"s","percent_test":null}', '{"percent_test":200}'],
)
def test_a_broken_or_lost_experiment_keeps_the_split_as_it_was(
    app: Flask, redis_client: redis.Redis, experiment: str
) -> None:
    publish(redis_client, TEST_RUN)
    redis_client.set(KEYS.experiment, encode_object(Experiment("e", "s", 100).to_fields()))
    assert recommend(app, KNOWN_USER)["variant"] == "test"
    redis_client.set(KEYS.experiment, experiment)
    refresh(app)
    assert recommend(app, KNOWN_USER)["variant"] == "test"
    redis_client.delete(KEYS.experiment)
    refresh(app)
    assert recommend(app, KNOWN_USER)["variant"] == "test"


def test_a_manifest_without_a_time_gives_the_age_since_the_run_began(
    app: Flask, redis_client: redis.Redis
) -> None:
    redis_client.set(KEYS.manifest(CONTROL_RUN), encode_object({"published_at": "yesterday"}))
    since = datetime.now(UTC) - datetime(2026, 11, 22, 3, tzinfo=UTC)
    age = recommend(app, KNOWN_USER)["age_seconds"]
    assert age == pytest.approx(max(0, since.total_seconds()), abs=60)


def test_a_request_makes_exactly_one_command(app: Flask, redis_url: str) -> None:
    cursor = recommend(app, KNOWN_USER)["next_cursor"]
    popular_cursor = recommend(app, UNKNOWN_USER)["next_cursor"]
    known, unknown = KEYS.user(CONTROL_RUN, KNOWN_USER), KEYS.user(CONTROL_RUN, UNKNOWN_USER)
    expected = {
        "/users/42/recommendations": [f"GET {known}"],
        f"/users/42/recommendations?cursor={cursor}": [f"GET {known}"],
        "/users/43/recommendations": [f"GET {unknown}"],
        f"/users/43/recommendations?cursor={popular_cursor}": [f"GET {KEYS.popular(CONTROL_RUN)}"],
        "/post/recommendations/?id=42&time=2021-12-29T21:00:00": [f"GET {known}"],
        "/post/recommendations/?id=43": [f"GET {unknown}"],
        "/posts/7/similar": [f"GET {KEYS.post(CONTROL_RUN, 7)}"],
        "/posts/popular": [],
        "/readyz": [],
        "/metrics": [],
        "/openapi.json": [],
    }
    with monitored(redis_url) as commands:
        made = {}
        for path in expected:
            assert app.test_client().get(path).status_code == 200
            made[path] = commands()
    assert made == expected


def test_a_refresh_makes_a_handful_of_commands(app: Flask, redis_url: str) -> None:
    recommend(app, KNOWN_USER)
    with monitored(redis_url) as commands:
        refresh(app)
        assert [command.split()[:2] for command in commands()] == [
            ["GET", KEYS.live("control")],
            ["GET", KEYS.live("test")],
            ["GET", KEYS.experiment],
            ["SMEMBERS", KEYS.blocked],
            ["SMEMBERS", KEYS.gone],
            ["HLEN", KEYS.posts],
        ]


@pytest.mark.parametrize(("user_id", "posts"), [(KNOWN_USER, PERSONAL), (UNKNOWN_USER, POPULAR)])
def test_pages_neither_repeat_nor_skip_over_a_nightly_flip(
    app: Flask, redis_client: redis.Redis, user_id: int, posts: Ranked
) -> None:
    first = recommend(app, user_id)
    other_posts: Ranked = [(post, 1.0) for post in range(1, 5)]
    publish(redis_client, NEXT_CONTROL_RUN, {user_id: other_posts}, popular=other_posts, recipe="ranked")
    refresh(app)
    second = recommend(app, user_id, cursor=first["next_cursor"])
    third = recommend(app, user_id, cursor=second["next_cursor"])
    pages = [first, second, third]
    assert [post for page in pages for post in posts_of(page)] == [post for post, _ in posts]
    assert {(page["run_id"], page["variant"], page["source"]) for page in pages} == {
        (CONTROL_RUN, "control", first["source"])
    }
    assert {page["score_kind"] for page in pages} == {"liked" if user_id == KNOWN_USER else "likes"}
    assert third["next_cursor"] is None
    assert recommend(app, user_id)["run_id"] == NEXT_CONTROL_RUN


def test_pages_do_not_repeat_when_posts_are_blocked_and_unblocked_in_between(
    app: Flask, redis_client: redis.Redis
) -> None:
    redis_client.sadd(KEYS.blocked, 2)
    first = recommend(app, KNOWN_USER, limit=3)
    assert posts_of(first) == [1, 3, 4]
    redis_client.srem(KEYS.blocked, 2)
    redis_client.sadd(KEYS.blocked, 3, 5, 12)
    refresh(app)
    second = recommend(app, KNOWN_USER, limit=6, cursor=first["next_cursor"])
    assert posts_of(second) == [6, 7, 8, 9, 10, 11]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("user_id", [KNOWN_USER, UNKNOWN_USER])
def test_a_cursor_of_a_pruned_run_is_gone(app: Flask, redis_client: redis.Redis, user_id: int) -> None:
    cursor = recommend(app, user_id)["next_cursor"]
    publish(redis_client, NEXT_CONTROL_RUN)
    remove(redis_client, CONTROL_RUN)
    refresh(app)
    response = app.test_client().get(f"/users/{user_id}/recommendations?cursor={cursor}")
    assert (response.status_code, response.content_type) == (410, "application/problem+json")
    assert response.get_json(force=True)["parameter"] == "cursor"
    assert recommend(app, user_id)["run_id"] == NEXT_CONTROL_RUN


def test_a_cursor_of_a_live_run_whose_keys_are_lost_is_answered_from_memory(
    app: Flask, redis_client: redis.Redis
) -> None:
    cursor = recommend(app, UNKNOWN_USER)["next_cursor"]
    redis_client.flushall()
    answer = recommend(app, UNKNOWN_USER, cursor=cursor)
    assert (answer["source"], posts_of(answer)) == ("popular", [106, 107, 108, 109, 110])
