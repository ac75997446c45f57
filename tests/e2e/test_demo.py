"""`python -m demo up`, from an empty folder to right answers, on a small simulated network."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.processes import free_port
from tests.support.demo import Done, demo, demo_until, processes_of

SMALL = ("--users", "200", "--posts", "50", "--interactions", "5000")
RIGHT = "Every answer is right."
STAYS = "Ctrl-C stops everything"
REVERSE_THE_POPULAR_LISTS = """
import json, os, redis
client = redis.Redis.from_url(os.environ["REDIS_URL"])
for key in client.keys("recs:run:*:popular"):
    client.set(key, json.dumps(json.loads(client.get(key))[::-1]))
"""


def up_once(folder: Path) -> Done:
    return demo(folder, "up", "--once", "--port", str(free_port()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small network in it, and the servers that `simulate` started."""
    path = tmp_path_factory.mktemp("demo") / "folder"
    simulated = demo(path, "simulate", *SMALL, "--seed", "7")
    assert simulated.code == 0, simulated.errors
    yield path
    demo(path, "stop")
    assert processes_of(path) == []


@pytest.fixture(scope="module")
def first(folder: Path) -> Done:
    """What the first `up --once` printed; the network and its night are there from then on."""
    return up_once(folder)


def test_the_first_start_runs_the_night_and_gets_right_answers(folder: Path, first: Done) -> None:
    assert (first.code, RIGHT in first.out) == (0, True), first
    assert "Running the night" in first.out
    for path in (
        "/recommendations?limit=5",
        "/posts/popular?limit=5",
        "/post/recommendations/?id=",
        "GET recs:run:",
    ):
        assert path in first.out
    assert processes_of(folder) == []


def test_the_next_start_takes_what_is_there(folder: Path, first: Done) -> None:
    again = up_once(folder)
    assert (again.code, RIGHT in again.out) == (0, True), again
    assert "Network already loaded (simulated): 200 users, 50 posts, 5,000 interactions" in again.out
    assert "Night already run" in again.out
    assert "Running the night" not in again.out


def test_a_wrong_answer_is_named(folder: Path, first: Done) -> None:
    demo(folder, "exec", "--", sys.executable, "-c", REVERSE_THE_POPULAR_LISTS)
    done = up_once(folder)
    demo(folder, "exec", "--", sys.executable, "-c", REVERSE_THE_POPULAR_LISTS)
    demo(folder, "stop")
    assert done.code == 1
    assert RIGHT not in done.out
    assert done.error.startswith("error: /users/")
    assert "/posts/popular?limit=5: posts with " in done.error


def test_a_taken_port_is_told_before_anything_starts(folder: Path, first: Done) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = demo(folder, "up", "--once", "--port", str(port))
    assert (done.code, done.out) == (2, "")
    assert done.errors.startswith(f"error: cannot listen on 127.0.0.1 port {port} (Address already in use)")
    assert done.errors.count("\n") == 1
    assert processes_of(folder) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["up", "--network", "no-such-folder"], {}, "error: there is no folder no-such-folder"),
        (["up"], {"OVERNIGHT_PORT": "http"}, "error: OVERNIGHT_PORT='http': must be a number"),
        (["up", "--limit-users", "0"], {}, "--limit-users"),
        (["simulate", "--users", "many"], {}, "--users"),
    ],
)
def test_a_wrong_option_or_setting_is_named(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], named: str
) -> None:
    done = demo(tmp_path, *arguments, **environment)
    assert (done.code, named in done.error) == (2, True), done
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(folder: Path, first: Done, sign: signal.Signals) -> None:
    with demo_until(STAYS, folder, "up", "--port", str(free_port())) as process:
        assert len(processes_of(folder)) > 3
        os.killpg(process.pid, sign)  # as a terminal does: to the whole group
        assert process.wait() == 0
    assert processes_of(folder) == []


def test_a_second_up_is_refused_and_stop_ends_the_first(folder: Path, first: Done) -> None:
    with demo_until(STAYS, folder, "up", "--port", str(free_port())) as process:
        second = up_once(folder)
        assert (second.code, second.out) == (4, "")
        assert f"(process {process.pid})" in second.error
        assert demo(folder, "exec", "true").code == 0
        assert process.poll() is None
        assert demo(folder, "stop") == (0, "Stopped; the data stays.\n", "")
        assert process.wait() == 0
    assert processes_of(folder) == []


def test_what_a_killed_up_leaves_is_taken_over(folder: Path, first: Done) -> None:
    port = str(free_port())
    with demo_until(STAYS, folder, "up", "--port", port) as process:
        process.kill()
        process.wait()
    assert len(processes_of(folder)) > 3
    done = demo(folder, "up", "--once", "--port", port)
    assert (done.code, RIGHT in done.out) == (0, True), done
    assert processes_of(folder) == []


def test_a_new_network_needs_a_new_night_and_an_interrupted_one_does_not_count(
    folder: Path, first: Done
) -> None:
    assert demo(folder, "simulate", *SMALL, "--seed", "8").code == 0
    with demo_until("Running the night", folder, "up", "--port", str(free_port())) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert processes_of(folder) == []
    done = up_once(folder)
    assert "Network already loaded" in done.out
    assert "Running the night" in done.out
    assert (done.code, RIGHT in done.out) == (0, True), done


def test_simulate_uses_the_database_of_the_environment(tmp_path: Path, database_url: str) -> None:
    done = demo(tmp_path / "unused", "simulate", *SMALL, DATABASE_URL=database_url)
    assert (done.code, done.out.startswith("200 users, 50 posts, 5,000 interactions")) == (0, True), done
    assert not (tmp_path / "unused").exists()
    assert demo(tmp_path / "unused", "oracle", DATABASE_URL=database_url).code == 0
