"""Ids that are uuids or text: what is answered, under which keys, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
import redis
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

from contract.codec import encode_list, encode_object
from contract.experiment import CONTROL, TEST, Experiment
from contract.exposures import FIELD, decode_exposures
from contract.ids import IdKind, IdKinds
from serving.app import EXTENSION
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    NEXT_CONTROL_RUN,
    TEST_RUN,
    ask,
    monitored,
    posts_of,
    publish,
    recommend,
    refresh,
    serving,
    settings_for,
)

UUID = "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11"
UUID_POST = "00000000-0000-0000-0000-00000000000f"
USER = "spring/ä user"
POSTS = ["b 1", "a/2", "é", "4", "42"]
LISTED = [(post, 9.5 - rank) for rank, post in enumerate(POSTS)]
POPULAR_POSTS = ["p/1", "p 2", "p3"]
POPULAR = [(post, 7.0 - rank) for rank, post in enumerate(POPULAR_POSTS)]
TEXT_IDS = IdKinds(IdKind.TEXT, IdKind.TEXT)
UUID_IDS = IdKinds(IdKind.UUID, IdKind.NUMBER)
SECOND_RUN = "20261122T040000Z-control"


@pytest.fixture
def text_app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """A network whose users and posts have ids that are text."""
    publish(redis_client, lists={USER: LISTED}, popular=POPULAR, ids=TEXT_IDS)
    redis_client.hset(KEYS.posts, mapping={post: f'{{"text":"of {post}"}}' for post in POSTS})
    redis_client.set(KEYS.post(CONTROL_RUN, "a/2"), encode_list(LISTED[2:]))
    with serving(settings_for(redis_url, exposures=True)) as app:
        yield app


@pytest.fixture
def uuid_app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """A network whose users have uuids, and whose posts have whole numbers."""
    publish(redis_client, lists={UUID: [(7, 1.5), (8, 1.0)]}, ids=UUID_IDS)
    with serving(settings_for(redis_url)) as app:
        yield app


def test_users_and_posts_of_text_get_their_lists_by_one_get(text_app: Flask, redis_url: str) -> None:
    recommend(text_app, USER)
    with monitored(redis_url) as commands:
        answer = recommend(text_app, USER, limit=2)
        assert commands() == [f"GET recs:run:{CONTROL_RUN}:user:spring%2F%C3%A4%20user"]
    assert (answer["user_id"], answer["source"], posts_of(answer)) == (USER, "personal", POSTS[:2])
    following = recommend(text_app, USER, limit=2, cursor=answer["next_cursor"])
    assert posts_of(following) == POSTS[2:4]
    similar = ask(text_app, f"/posts/{quote('a/2', safe='')}/similar?user_id={quote(USER)}")
    assert (similar["post_id"], similar["source"], posts_of(similar)) == ("a/2", "similar", POSTS[2:])
    unknown = recommend(text_app, "spring")
    assert (unknown["source"], posts_of(unknown)) == ("popular", POPULAR_POSTS)


def test_a_cursor_of_another_user_of_text_is_refused(text_app: Flask) -> None:
    cursor = recommend(text_app, USER, limit=2)["next_cursor"]
    assert ask(text_app, f"/users/4/recommendations?cursor={cursor}", 400)["parameter"] == "cursor"


def test_existing_clients_get_texts_of_posts_of_text(text_app: Flask) -> None:
    answer = ask(text_app, f"/post/recommendations/?id={quote(USER)}&limit=2")
    assert answer["recommendations"] == [
        {"id": "b 1", "text": "of b 1", "topic": ""},
        {"id": "a/2", "text": "of a/2", "topic": ""},
    ]


@pytest.mark.parametrize("key", [KEYS.blocked, KEYS.gone])
def test_blocked_and_gone_posts_are_named_as_they_are(
    text_app: Flask, redis_client: redis.Redis, key: str
) -> None:
    recommend(text_app, USER)
    redis_client.sadd(key, "a/2", "p/1", "42")
    refresh(text_app)
    assert posts_of(recommend(text_app, USER)) == ["b 1", "é", "4"]
    assert posts_of(ask(text_app, "/posts/popular")) == ["p 2", "p3"]
    assert posts_of(ask(text_app, f"/posts/{quote('a/2', safe='')}/similar")) == ["é", "4"]


def test_uuids_are_taken_in_any_case_and_in_braces_and_answered_in_lower_case(
    uuid_app: Flask, redis_client: redis.Redis
) -> None:
    for form in (UUID, UUID.upper(), f"{{{UUID}}}", f"{{{UUID.title()}}}"):
        answer = ask(uuid_app, f"/users/{quote(form)}/recommendations?limit=1")
        assert (answer["user_id"], answer["source"], posts_of(answer)) == (UUID, "personal", [7])
        following = ask(uuid_app, f"/users/{UUID}/recommendations?cursor={answer['next_cursor']}")
        assert posts_of(following) == [8]
        assert len(ask(uuid_app, f"/post/recommendations/?id={quote(form)}")["recommendations"]) == 2
        assert ask(uuid_app, f"/posts/7/similar?user_id={quote(form)}")["variant"] == CONTROL


def test_a_blocked_uuid_may_be_in_any_case(redis_url: str, redis_client: redis.Redis) -> None:
    listed = [(UUID, 2.0), (UUID_POST, 1.0)]
    publish(redis_client, lists={1: listed}, popular=listed, ids=IdKinds(posts=IdKind.UUID))
    redis_client.sadd(KEYS.blocked, UUID.upper(), "7")
    with serving(settings_for(redis_url)) as app:
        assert posts_of(recommend(app, 1)) == [UUID_POST]
        (warning,) = app.extensions[EXTENSION].live.current.warnings
        assert "recs:blocked holds b'7', which is not a post's id" in warning


NOT_UUIDS = {
    "number": "42",
    "cut short": UUID[:-1],
    "too long": UUID + "0",
    "one brace": "{" + UUID,
    "no hyphens": UUID.replace("-", ""),
    "letters": "g" + UUID[1:],
    "hyphens elsewhere": "0d5ee3b59-d7c-4d36-8a2c-6f0a3a3c8a11",
    "line break": UUID + "\n",
    "slash": UUID[:20] + "/" + UUID[20:],
    "other digits": "٤" + UUID[1:],
    "bytes": "\udcff",
}
NOT_TEXTS = {
    "129 characters": "x" * 129,
    "nul": "a\0b",
    "line break": "a\n",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "C1": "a\x9bb",
    "bytes": "a\udcff",
    "half of a pair": "a\ud800",
    "10 kB": "1" * 10_000,
}


def percent(text: str) -> str:
    try:
        return quote(text.encode(errors="surrogateescape"), safe="")
    except UnicodeEncodeError:
        return quote(text.encode(errors="surrogatepass"), safe="")


def assert_refused(app: Flask, path: str, parameter: str, must: str) -> None:
    """Ask with the bytes of the path as they are: Flask's client would replace what is not UTF-8."""
    path, _, query = path.partition("?")
    raw_path = {"PATH_INFO": unquote_to_bytes(path).decode("latin-1"), "QUERY_STRING": query}
    chunks, status, _ = run_wsgi_app(app, EnvironBuilder().get_environ() | raw_path, buffered=True)
    body = json.loads(b"".join(chunks))
    assert status == "400 BAD REQUEST"
    assert (body["parameter"], must in body["detail"], len(body["detail"]) < 200) == (parameter, True, True)


@pytest.mark.parametrize("text", NOT_UUIDS.values(), ids=NOT_UUIDS)
def test_what_is_no_uuid_is_refused(uuid_app: Flask, text: str) -> None:
    must = "must be UTF-8" if text == "\udcff" else "must be a uuid, such as"
    assert_refused(uuid_app, f"/users/{percent(text)}/recommendations", "user_id", must)
    assert_refused(uuid_app, f"/post/recommendations/?id={percent(text)}", "id", "must be a uuid")
    assert_refused(uuid_app, f"/posts/7/similar?user_id={percent(text)}", "user_id", "must be a uuid")
    assert_refused(uuid_app, f"/posts/{UUID}/similar", "post_id", "must be a whole number")


@pytest.mark.parametrize("text", NOT_TEXTS.values(), ids=NOT_TEXTS)
def test_what_is_no_text_id_is_refused(text_app: Flask, text: str) -> None:
    in_query = "must be text of 1 to 128 characters, none of them control characters"
    in_path = "must be UTF-8" if any("\ud800" <= each < "\ue000" for each in text) else in_query
    assert_refused(text_app, f"/users/{percent(text)}/recommendations", "user_id", in_path)
    assert_refused(text_app, f"/posts/{percent(text)}/similar", "post_id", in_path)
    assert_refused(text_app, f"/post/recommendations/?id={percent(text)}", "id", in_query)
    assert_refused(text_app, f"/posts/a/similar?user_id={percent(text)}", "user_id", in_query)
    assert ask(text_app, "/post/recommendations/?id=", 400)["parameter"] == "id"


@pytest.mark.parametrize("path", [f"/users/{UUID}/recommendations", "/post/recommendations/?id=abc"])
def test_before_a_run_is_loaded_no_id_is_judged(redis_url: str, path: str) -> None:
    with serving(settings_for(redis_url)) as app:
        assert "no run has been loaded" in ask(app, path, 503)["detail"]


def test_the_fast_path_answers_for_plain_ids_and_leaves_the_others_to_flask(
    text_app: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["42", "Az.09_~@-", UUID, "x" * 128, "manifest", ".."]
    others = ["a b", "a/recommendations", "%2F", "é", "a+b", "a:b"]
    for user in plain + others:
        redis_client.set(KEYS.user(CONTROL_RUN, user), encode_list([(user, 1.0)]))
    reached: list[str] = []
    fallback: Any = text_app.wsgi_app.fallback  # type: ignore[attr-defined]

    def note(environ: dict[str, Any], start_response: Any) -> Any:
        reached.append(environ["PATH_INFO"].encode("latin-1").decode())
        return fallback(environ, start_response)

    monkeypatch.setattr(text_app.wsgi_app, "fallback", note)
    for user in plain + others:
        answer = recommend(text_app, user)
        assert (answer["user_id"], posts_of(answer)) == (user, [user])
    assert reached == [f"/users/{user}/recommendations" for user in others]


def test_a_pin_is_by_the_text_of_the_id_and_buckets_are_those_of_sql(
    text_app: Flask, redis_client: redis.Redis
) -> None:
    publish(redis_client, TEST_RUN, {USER: LISTED}, ids=TEXT_IDS)
    for percent_test, pins in ((0, {USER: TEST}), (100, {USER: CONTROL}), (50, {})):
        split = Experiment("split", "salt", percent_test, pins)
        redis_client.set(KEYS.experiment, encode_object(split.to_fields()))
        refresh(text_app)
        for user in (USER, "4", "é"):
            assert recommend(text_app, user)["assigned_variant"] == split.variant_of(user)


def test_exposures_name_users_of_text(text_app: Flask, redis_client: redis.Redis) -> None:
    recommend(text_app, USER)
    ask(text_app, "/post/recommendations/?id=4")
    text_app.extensions[EXTENSION].exposures.stop()
    entries: Any = redis_client.xrange(KEYS.exposures)
    noted = [each for _, fields in entries for each in decode_exposures(fields[FIELD])]
    assert sorted((each.user_id, each.source) for each in noted) == [("4", "popular"), (USER, "personal")]


def test_a_process_that_starts_without_redis_knows_the_kinds_of_ids(
    redis_url: str, redis_client: redis.Redis, text_app: Flask, tmp_path: Path
) -> None:
    file = tmp_path / "state.json"
    redis_client.sadd(KEYS.blocked, "p/1")
    text_app.extensions[EXTENSION].live.shared_file = file
    recommend(text_app, USER)
    with serving(settings_for("redis://127.0.0.1:1/0")) as app:
        app.extensions[EXTENSION].live.shared_file = file
        answer = recommend(app, USER)
        assert (answer["user_id"], answer["stale"], posts_of(answer)) == (USER, True, ["p 2", "p3"])
        assert ask(app, "/users/%0A/recommendations", 400)["parameter"] == "user_id"


def test_a_network_that_changes_its_ids_is_served_by_those_of_the_newest_run(
    redis_client: redis.Redis, text_app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until `test` has a run with the new ids, its lists are old; posts of both kinds are blocked."""
    publish(redis_client, TEST_RUN, {42: [(1, 1.0), (2, 0.5), (3, 0.2)]})
    split = Experiment("split", "salt", 0, {"new": TEST, "42": TEST})
    redis_client.set(KEYS.experiment, encode_object(split.to_fields()))
    publish(redis_client, NEXT_CONTROL_RUN, {USER: LISTED}, popular=POPULAR, ids=TEXT_IDS)
    redis_client.sadd(KEYS.blocked, "101", "2", "a/2")
    redis_client.sadd(KEYS.gone, "3", "é")
    text_app.extensions[EXTENSION].live.shared_file = tmp_path / "state.json"
    refresh(text_app)
    assert posts_of(recommend(text_app, USER)) == ["b 1", "4", "42"]
    answer = recommend(text_app, "new")
    assert (answer["source"], answer["run_id"], posts_of(answer)[0]) == ("popular", TEST_RUN, 102)
    assert posts_of(recommend(text_app, "42")) == [1]
    assert "broken" not in caplog.text
    assert "not a post's id" not in caplog.text
    assert (tmp_path / "state.json").exists()


def test_a_run_whose_kinds_of_ids_are_unknown_leaves_the_one_before_served(
    text_app: Flask, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    recommend(text_app, USER)
    publish(redis_client, SECOND_RUN, {USER: LISTED})
    manifest = {"run_id": SECOND_RUN, "ids": {"users": "oid", "posts": "text"}}
    redis_client.set(KEYS.manifest(SECOND_RUN), encode_object(manifest))
    refresh(text_app)
    assert recommend(text_app, USER)["run_id"] == CONTROL_RUN
    assert "cannot be served, keeping the one before" in caplog.text
